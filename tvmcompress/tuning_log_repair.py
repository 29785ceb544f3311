"""Saving what can be read of a damaged tuning log."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tvmcompress.errors import UsageError
from tvmcompress.trials import digest
from tvmcompress.tuning_log import PLACE, TuningLog, stored
from tvmcompress.tuning_log_database import DamagedLogError

LEAST_ROW = 64  # bytes that a row takes at least


def repaired(where: str | os.PathLike) -> tuple[Path, int, Path | None]:
    """Saves what can be read of a damaged file into a new one in its place.

    Returns the path, how many trials it has, and what the damaged file is called now (None: there was no damage).
    Raises TuningLogError, and changes nothing, for a log that is not damaged but cannot be opened, as when another
    program holds it for long.
    """
    path = Path(where)
    if "://" in str(where):
        raise UsageError("repair: is for a file; a server repairs its database itself")
    if not path.is_file():
        raise UsageError(f"repair: no file '{where}'")
    with contextlib.suppress(DamagedLogError), TuningLog.open(path) as log:
        if log.sound():
            return path, len(log.trials()), None
    fresh = path.with_name(f"{path.name}.repaired-{os.getpid()}")
    try:
        saved = _salvage(path, fresh)
        aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d%H%M%S}")
        for suffix in ("-wal", "-shm"):  # they belong to the damaged file
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        path.rename(aside)
        fresh.rename(path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    return path, saved, aside


def _salvage(damaged: Path, fresh: Path) -> int:
    """Row by row, as far as SQLite finds them: trials, what was confirmed of them, and what jobs have spent."""
    with TuningLog.open(fresh) as log, contextlib.closing(sqlite3.connect(f"file:{damaged}?mode=ro", uri=True)) as old:
        old.row_factory = sqlite3.Row
        with contextlib.suppress(sqlite3.Error):
            old.execute("PRAGMA writable_schema = ON")  # else it reads nothing of a file that is cut off
        most = damaged.stat().st_size // LEAST_ROW
        found = {}
        for row in _rows(old, "trials", most):
            with contextlib.suppress(ValueError, TypeError, IndexError):
                trial = stored(row)
                if log.add(trial):
                    found[(*trial.place, trial.digest)] = trial
        for row in _rows(old, "confirmed", most):
            with contextlib.suppress(ValueError, TypeError, IndexError):
                kept = found.get((*(row[name] for name in PLACE), digest(json.loads(row["decisions"]))))
                if kept is not None:
                    log.confirm(kept, row["at"])
        for row in _rows(old, "jobs", most):
            with contextlib.suppress(ValueError, TypeError, IndexError):
                log.spend(str(row["job"]), float(row["spent_s"]))
    return len(found)


def _rows(old: sqlite3.Connection, table: str, most: int) -> Iterator[sqlite3.Row]:
    """By their numbers: a page that is lost takes along only what was on it. `most`: as high as they can be, where not
    even the last can be asked for."""
    try:
        last = old.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
    except sqlite3.DatabaseError:
        last = most
    for number in range(1, last + 1):
        with contextlib.suppress(sqlite3.Error):
            row = old.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,)).fetchone()
            if row is not None:
                yield row
