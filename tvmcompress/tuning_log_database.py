"""The database under a tuning log: a file of SQLite's, or a server of PostgreSQL's; its errors in our words.

There is one transaction at a time, so that what was looked up in it stays so; others wait. When one has ended it is on
the disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from tvmcompress.errors import MissingDependencyError, TvmcompressError, UsageError

PATIENCE_S = 30  # for another writer
IDLE_S = 60  # after which a server ends a transaction whose client says nothing
LOCK = 7_864_321  # in PostgreSQL, a number of ours for "somebody is in a transaction"
ALONE = (
    f"SELECT set_config('lock_timeout', '{PATIENCE_S}s', true), "
    f"set_config('idle_in_transaction_session_timeout', '{IDLE_S}s', true), pg_advisory_xact_lock({LOCK})"
)
# For create_engine. A connection to a server is tried before it is used: the server may have been started again.
OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {"connect_args": {"timeout": PATIENCE_S}},
    "postgresql": {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True},
}


class TuningLogError(TvmcompressError):
    """The log cannot be read or written."""


class DamagedLogError(TuningLogError):
    """Its file is not what was written."""


def engine_of(url: str, read_only: bool = False) -> Engine:
    """Raises UsageError for what cannot be a URL of a database, MissingDependencyError for one that wants a driver."""
    kind = url.split(":")[0]
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, **OPTIONS.get(parsed.get_backend_name(), {}))
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        said = str(error).replace(url, "…")[:120]  # it may hold a password
        raise UsageError(f"tuning log '{kind}:…': {said}; wanted a path or postgresql://…") from error
    except ImportError as error:
        what = "'tvmcompress[postgresql]'" if "psycopg" in str(error) or error.name == "psycopg" else error.name
        raise MissingDependencyError(f"tuning log {kind}://…: its driver is missing: pip install {what}") from error
    if engine.dialect.name == "sqlite":
        begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        event.listen(engine, "connect", _settle_reader if read_only else _settle)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    if engine.dialect.name == "postgresql":
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(ALONE))
    return engine


def _settle(connection: Any, _record: object) -> None:
    """Readers beside a writer, every commit on the disk, and transactions begun by us: Python's begin too late."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout = {1000 * PATIENCE_S}", "journal_mode = WAL", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _settle_reader(connection: Any, _record: object) -> None:
    """Transactions begun by us; nothing that would write."""
    connection.isolation_level = None


def reading_url(path: Path) -> str:
    """A URL for a file that may not be written, nor anything beside it, where SQLite would keep its locks: it is taken
    to stay as it is, unless a writer has left something beside it."""
    left = path.with_name(f"{path.name}-wal")
    more = "" if left.exists() and left.stat().st_size else "&immutable=1"
    return f"sqlite:///file:{quote(str(path.absolute()))}?mode=ro{more}&uri=true"


class Transaction:
    """One transaction, with the database's errors in our words."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name

    def __enter__(self) -> Connection:
        try:
            self.context = self.engine.begin()
            return self.context.__enter__()
        except SQLAlchemyError as error:
            raise self.translated(error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.context.__exit__(kind, error, trace)
        except SQLAlchemyError as failure:
            raise self.translated(failure) from failure
        if isinstance(error, SQLAlchemyError) and not isinstance(error, IntegrityError):
            raise self.translated(error) from error

    def translated(self, error: SQLAlchemyError) -> TvmcompressError:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0][:160]
        if "full" in said or "disk I/O" in said or "too large" in said.lower():
            with_room = ""
            if Path(self.name).parent.is_dir():
                with_room = f"; {shutil.disk_usage(Path(self.name).parent).free} bytes are free there"
            return TuningLogError(f"tuning log {self.name}: cannot be written ({said}){with_room}; nothing was lost")
        if "not a database" in said or "malformed" in said:
            return DamagedLogError(f"tuning log {self.name}: {said}; `tvmcompress log repair` keeps what can be read")
        return TuningLogError(f"tuning log {self.name}: {said}")
