"""A PostgreSQL server for tests: the fixture `postgresql` starts one of their own, or skips."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tvmcompress import process

USER = "postgres"  # as whom it runs where the tests run as root, which it refuses


class Server:
    """Reached through a socket in its own folder alone."""

    def __init__(self, programs: Path, owner: dict[str, Any]) -> None:
        self.programs, self.owner, self.numbers = programs, owner, itertools.count()
        self.folder = Path(tempfile.mkdtemp(prefix="tvmcompress-postgresql-"))
        if owner:
            shutil.chown(self.folder, USER, USER)
        options = ("-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.call("initdb", "-D", str(self.folder / "data"), *options)
        self.start()

    def call(self, program: str, *words: str) -> None:
        subprocess.run(
            [self.programs / program, *words], check=True, capture_output=True, cwd=self.folder, **self.owner
        )

    def start(self) -> None:
        options = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off", "shared_buffers=16MB")
        words = [self.programs / "postgres", "-D", self.folder / "data"]
        words += [word for option in options for word in ("-c", option)]
        self.process = subprocess.Popen(
            words, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=process.die_with_parent, **self.owner,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                assert time.monotonic() < deadline and self.process.poll() is None, "PostgreSQL does not start"
                time.sleep(0.1)

    def execute(self, text: str) -> None:
        import psycopg

        with psycopg.connect(f"host={self.folder} user=tests dbname=postgres", autocommit=True) as connection:
            connection.execute(text)

    def database(self) -> str:
        """The URL of a new one."""
        name = f"log{next(self.numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tests@/{name}?host={self.folder}"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # which ends its clients' connections
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def programs() -> Path | None:
    """Where they are: Debian has them in no path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    owner: dict[str, Any] = {}
    if os.getuid() == 0:
        if USER not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip(f"PostgreSQL does not run as root, and there is no user '{USER}'")
        owner = {"user": USER, "group": USER, "extra_groups": []}
    server = Server(folder, owner)
    yield server
    server.close()
