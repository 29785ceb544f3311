"""TuningLog: what was measured of kernels' decisions, on which board, for which target.

    with TuningLog.open("tuning.db") as log:
        log.add(Trial(target=…, workload="conv2d …", decisions={"tile": …}, times_ms=(0.21, 0.2), …))
        log.best(target, "conv2d …")

A file of SQLite, or by URL a database of PostgreSQL (postgresql://…) for many machines. Every trial is a transaction,
on the disk before `add` returns. A trial belongs to one target, board, and version of TVM and of our schedules, and is
never found for another.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from tvmcompress import trials
from tvmcompress.errors import UsageError
from tvmcompress.ir.files import atomic_write
from tvmcompress.trials import CONFIRMED, EMULATED, PASSING, STATUSES, Trial, read_line, record
from tvmcompress.tuning_log_database import Transaction, TuningLogError, engine_of, reading_url

SCHEMA = 1

_metadata = MetaData()
_about = Table("about", _metadata, Column("name", String(64), primary_key=True), Column("value", Text))
PLACE = {"target": 160, "workload": 400, "board": 160, "versions": 80}  # to what a trial belongs, and its longest name


def _place(key: bool = False) -> list[Column]:
    return [Column(name, String(length), nullable=False, primary_key=key) for name, length in PLACE.items()]


_trials = Table(
    "trials",
    _metadata,
    Column("id", Integer, primary_key=True),
    *_place(),
    Column("digest", String(32), nullable=False),
    Column("decisions", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("times_ms", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("conditions", Text, nullable=False),
    Column("at", String(32), nullable=False),
    UniqueConstraint(*PLACE, "digest"),
)
_confirmed = Table(
    "confirmed",
    _metadata,
    *_place(key=True),
    Column("decisions", Text, nullable=False),
    Column("at", String(32), nullable=False),
)
_jobs = Table("jobs", _metadata, Column("job", String(64), primary_key=True), Column("spent_s", Float, nullable=False))


def default_path() -> Path:
    """Where the log of this user lies, unless TVMCOMPRESS_LOG names another."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base, "tvmcompress", "tuning.db")


class TuningLog:
    """An open log. Use with `with`; may be shared by threads and, each with its own, by any number of processes."""

    def __init__(self, engine: Engine, name: str, read_only: bool = False) -> None:
        self.engine, self.name, self.read_only = engine, name, read_only
        self._prepare()

    @classmethod
    def open(cls, where: str | os.PathLike | None = None) -> TuningLog:
        """A path, which is made if need be, a URL of SQLAlchemy's, or this user's own log.

        Raises UsageError for a URL that cannot be one, TuningLogError for a log that is damaged, written by a newer
        version or not reachable. A file that may not be written is opened for reading.
        """
        where = where or os.environ.get("TVMCOMPRESS_LOG") or default_path()
        if "://" in str(where):
            return cls(engine_of(str(where)), str(where).split("://")[0] + "://…")
        path = Path(where)
        if path.is_dir():
            raise UsageError(f"tuning log {path}: is a folder; wanted a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TuningLogError(f"tuning log {path}: {error.strerror}") from error
        if path.exists() and not os.access(path, os.R_OK):
            raise TuningLogError(f"tuning log {path}: may not be read")
        if path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            return cls(engine_of(reading_url(path), read_only=True), str(path), read_only=True)
        return cls(engine_of(f"sqlite:///{path}"), str(path))

    def __enter__(self) -> TuningLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the database; all is written already."""
        self.engine.dispose()

    # -- trials -------------------------------------------------------------------------------------------------------

    def add(self, trial: Trial) -> bool:
        """Writes a trial down; False when these decisions are known already. What failed for no fault of the decisions
        is replaced. Raises TuningLogError when it cannot be written: then nothing of it is.
        """
        if trial.status not in STATUSES:
            raise UsageError(f"status '{trial.status}': wanted one of {', '.join(STATUSES)}")
        row = _row(trial)
        same = _same(row)
        try:
            with self._begin() as connection:
                connection.execute(delete(_trials).where(*same, _trials.c.status.in_(PASSING)))
                if connection.execute(select(_trials.c.id).where(*same)).first():
                    return False
                connection.execute(insert(_trials).values(row))
        except IntegrityError:  # another writer's, since we looked
            return False
        return True

    def trials(
        self,
        target: str | None = None,
        workload: str | None = None,
        board: str | None = None,
        versions: str | None = None,
    ) -> list[Trial]:
        """In the order in which they were made; of one target, kernel, board or version, or of all."""
        given = {"target": target, "workload": workload, "board": board, "versions": versions}
        wanted = [getattr(_trials.c, name) == value for name, value in given.items() if value is not None]
        with self._begin() as connection:
            rows = connection.execute(select(_trials).where(*wanted).order_by(_trials.c.id)).mappings().all()
        return [stored(row) for row in rows]

    def since(self, number: int, target: str, board: str, versions: str) -> tuple[int, list[Trial]]:
        """Trials that were written down after the one of this number, by anyone; and the number of the last."""
        wanted = [_trials.c.target == target, _trials.c.board == board, _trials.c.versions == versions]
        with self._begin() as connection:
            found = select(_trials).where(_trials.c.id > number, *wanted).order_by(_trials.c.id)
            rows = connection.execute(found).mappings().all()
        return max((row["id"] for row in rows), default=number), [stored(row) for row in rows]

    def best(self, target: str, workload: str, board: str | None = None, versions: str | None = None) -> Trial | None:
        """What was confirmed last, or else the fastest trial that gave right results (`trials.fastest`)."""
        return min(self.chosen(self.trials(target, workload, board, versions)), key=lambda t: t.ms, default=None)

    def chosen(self, found: Sequence[Trial]) -> list[Trial]:
        """Of the trials of each kernel, target, board and version the one that `compile` takes: what was confirmed
        there, or else the fastest."""
        confirmed, best = self.confirmed(), {trial.place: trial for trial in trials.fastest(found)}
        named = {t.place: t for t in found if t.status == "ok" and confirmed.get(t.place, ("", ""))[0] == t.digest}
        return list((best | named).values())

    def decisions(self, target: str, versions: str, board: str | None = None) -> dict[str, Mapping[str, Any]]:
        """The best decisions for each kernel that was tuned for a target: what `compile` takes.

        Those confirmed last come first; see `confirm`. What an emulated board measured counts only for that board.
        """
        found = self.trials(target, None, board, versions)
        real = [trial for trial in found if board is not None or not trial.board.endswith(EMULATED)]
        best: dict[str, Trial] = {}
        for trial in trials.fastest(real):
            if trial.workload not in best or trial.ms < best[trial.workload].ms:
                best[trial.workload] = trial
        tables = {workload: trial.decisions for workload, trial in best.items()}
        wanted = [_confirmed.c.target == target, _confirmed.c.versions == versions]
        wanted += [_confirmed.c.board == board] if board is not None else []
        with self._begin() as connection:
            rows = connection.execute(select(_confirmed).where(*wanted).order_by(_confirmed.c.at)).all()
        kept = (row for row in rows if board is not None or not row.board.endswith(EMULATED))
        return tables | {row.workload: json.loads(row.decisions) for row in kept}

    def confirm(self, trial: Trial, at: str = "") -> None:
        """Notes what won when the best of a kernel's trials were timed again, in turn with the untuned one. `at`: when
        that was, now unless given; what was noted later stays."""
        row = {name: getattr(trial, name) for name in PLACE}
        same = [getattr(_confirmed.c, name) == value for name, value in row.items()]
        with self._begin() as connection:
            if at and connection.execute(select(_confirmed.c.at).where(*same, _confirmed.c.at >= at)).first():
                return
            connection.execute(delete(_confirmed).where(*same))
            connection.execute(insert(_confirmed).values(**row, decisions=_json(trial.decisions), at=at or _now()))

    def confirmed(self) -> dict[tuple[str, ...], tuple[str, str]]:
        """By (target, workload, board, versions) the digest of what was confirmed, and when."""
        with self._begin() as connection:
            rows = connection.execute(select(_confirmed)).mappings().all()
        return {tuple(r[name] for name in PLACE): (trials.digest(json.loads(r["decisions"])), r["at"]) for r in rows}

    def merge(self, other: TuningLog) -> int:
        """Takes over all trials of another log, and what was confirmed there. Returns how many trials were new."""
        found, confirmed = other.trials(), other.confirmed()
        new = sum(map(self.add, found))
        for trial in found:
            if confirmed.get(trial.place, ("", ""))[0] == trial.digest:
                self.confirm(trial, confirmed[trial.place][1])
        return new

    def remove(self, trials: Iterable[Trial]) -> int:
        """Takes trials out of the log; returns how many were in it."""
        count = 0
        with self._begin() as connection:
            for row in map(_row, trials):
                count += connection.execute(delete(_trials).where(*_same(row))).rowcount
        return count

    def sound(self) -> bool:
        """Whether a file of SQLite is whole; a server sees to that itself."""
        if self.engine.dialect.name != "sqlite":
            return True
        with self._begin() as connection:
            return connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"

    # -- time spent ---------------------------------------------------------------------------------------------------

    def spent(self, job: str) -> float:
        """Seconds that were spent on a job in all its runs."""
        with self._begin() as connection:
            return float(connection.execute(select(_jobs.c.spent_s).where(_jobs.c.job == job)).scalar() or 0.0)

    def spend(self, job: str, seconds: float) -> None:
        """Adds to that."""
        with self._begin() as connection:
            more = update(_jobs).where(_jobs.c.job == job).values(spent_s=_jobs.c.spent_s + seconds)
            if not connection.execute(more).rowcount:
                connection.execute(insert(_jobs).values(job=job, spent_s=seconds))

    # -- numbers that are known of boards -----------------------------------------------------------------------------

    def number(self, name: str) -> float | None:
        """What was noted last by that name, if anything."""
        with self._begin() as connection:
            found = connection.execute(select(_about.c.value).where(_about.c.name == _fact(name))).scalar()
        return None if found is None else float(found)

    def note_number(self, name: str, value: float) -> None:
        """In place of what was noted before."""
        with self._begin() as connection:
            connection.execute(delete(_about).where(_about.c.name == _fact(name)))
            connection.execute(insert(_about).values(name=_fact(name), value=repr(value)))

    # -- records, one a line ------------------------------------------------------------------------------------------

    def export(self, path: str | os.PathLike, found: Iterable[Trial]) -> int:
        """Writes trials as lines of JSON, each with all that belongs to it, also when it was confirmed. Returns how
        many."""
        confirmed, lines = self.confirmed(), []
        for trial in found:
            chosen, at = confirmed.get(trial.place, ("", ""))
            told = record(trial) | ({CONFIRMED: at} if chosen == trial.digest else {})
            lines.append(json.dumps(told, sort_keys=True, ensure_ascii=False))
        with atomic_write(Path(path)) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return len(lines)

    def import_lines(self, lines: Iterable[str]) -> tuple[int, int, list[tuple[int, str, str]]]:
        """Adds records: how many were new, how many known, and for each bad line its number, text and what is wrong."""
        new = known = 0
        bad: list[tuple[int, str, str]] = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                trial, confirmed = read_line(line)
            except ValueError as error:
                bad.append((number, line.rstrip("\n"), str(error)))
                continue
            added = self.add(trial)
            new, known = new + added, known + (not added)
            if confirmed and trial.status == "ok":
                self.confirm(trial, confirmed)
        return new, known, bad

    # -- the database -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Tables, when there are none; TuningLogError for those of a newer version."""
        with self._begin() as connection:
            if not self.read_only:
                _metadata.create_all(connection)
            found = connection.execute(select(_about.c.value).where(_about.c.name == "schema")).scalar()
            if found is None and not self.read_only:
                connection.execute(insert(_about).values(name="schema", value=str(SCHEMA)))
        if found is not None and not (found.isdigit() and int(found) <= SCHEMA):
            raise TuningLogError(
                f"tuning log {self.name}: written by a newer version of tvmcompress (schema {found}, here {SCHEMA}); "
                "update, or name another with --log"
            )

    def _begin(self) -> Transaction:
        return Transaction(self.engine, self.name)


def _fact(name: str) -> str:
    return f"number {hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")


def _row(trial: Trial) -> dict[str, Any]:
    values = {f.name: getattr(trial, f.name) for f in fields(trial)}
    dumped: dict[str, Any] = {name: _json(values[name]) for name in ("decisions", "times_ms", "conditions")}
    dumped["error"] = trial.error.replace("\0", "")  # which a crash may print, and PostgreSQL refuses
    return {**values, **dumped, "digest": trial.digest, "at": trial.at or _now()}


def _same(row: Mapping[str, Any]) -> list:
    """What finds the trial of a row."""
    return [_trials.c[name] == row[name] for name in (*PLACE, "digest")]


def stored(row: Mapping[Any, Any] | sqlite3.Row) -> Trial:
    """The trial that a row of the database is."""
    values = {f.name: row[f.name] for f in fields(Trial)}
    loaded = {name: json.loads(values[name]) for name in ("decisions", "times_ms", "conditions")}
    return Trial(**{**values, **loaded, "times_ms": tuple(loaded["times_ms"])})
