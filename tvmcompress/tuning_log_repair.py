"""Saving what can be read of a damaged tuning log."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from tvmcompress.errors import UsageError
from tvmcompress.tuning_log import TuningLog, TuningLogError, stored


def repaired(where: str | os.PathLike) -> tuple[Path, int, Path | None]:
    """Saves what can be read of a damaged file into a new one in its place.

    Returns the path, how many trials it has, and what the damaged file is called now (None: there was no damage).
    """
    path = Path(where)
    if "://" in str(where) or not path.is_file():
        raise UsageError(f"repair: no file '{where}'")
    try:
        with TuningLog.open(path) as log:
            if log.sound():
                return path, len(log.trials()), None
    except TuningLogError as error:
        if "newer version" in str(error):
            raise
    fresh = path.with_name(f"{path.name}.repaired-{os.getpid()}")
    saved = _salvage(path, fresh)
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d%H%M%S}")
    for suffix in ("-wal", "-shm"):  # they belong to the damaged file
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    fresh.rename(path)
    return path, saved, aside


def _salvage(damaged: Path, fresh: Path) -> int:
    """Row by row, as far as SQLite finds them."""
    saved = 0
    with TuningLog.open(fresh) as log, contextlib.closing(sqlite3.connect(f"file:{damaged}?mode=ro", uri=True)) as old:
        old.row_factory = sqlite3.Row
        with contextlib.suppress(sqlite3.Error):
            last = old.execute("SELECT max(id) FROM trials").fetchone()[0] or 0
            for number in range(1, last + 1):
                with contextlib.suppress(sqlite3.Error, ValueError, TypeError, IndexError):
                    row = old.execute("SELECT * FROM trials WHERE id = ?", (number,)).fetchone()
                    if row is not None:
                        saved += log.add(stored(row))
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            fresh.with_name(fresh.name + suffix).unlink()
    return saved
