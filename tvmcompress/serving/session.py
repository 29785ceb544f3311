"""One client's session: a process in which TVM serves whatever the client asks, until it goes or its time is over."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tvmcompress import bindings, process
from tvmcompress.serving import jobs, programs

FOLDER = "tvmcompress-session-"  # and the process that made it
FIRST_WORD_S = 5.0
FATAL = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


@dataclass
class Session:
    """`how` it ended: `ok`, `timeout`, `ended` by request, or the signal or error that it died of; empty while it runs.

    `said`: the last line that it wrote before it died.
    """

    name: str
    owner: str
    deadline: float  # by time.monotonic
    folder: Path
    pid: int = 0
    how: str = ""
    said: str = ""
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(
        cls, connection: socket.socket, name: str, owner: str, seconds: float, before: Callable[[], None] | None = None
    ) -> Session:
        """Forks. `before` is called in the child before it serves."""
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        session = cls(name, owner, time.monotonic() + (seconds or float("inf")), folder)
        session.pid = os.fork()
        if session.pid == 0:
            _live(connection, folder, before, os.getppid())
        return session

    def end(self, why: str) -> None:
        """Kills it and what it started; `reap` must follow."""
        if not self.how:
            self.how = why
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def ended(self, status: int) -> None:
        """With what `waitpid` told of it."""
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):
            lines = (self.folder / "said").read_bytes()[-4000:].decode(errors="replace").split("\n")
            self.said = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
        if not self.how:
            self.how = "ok" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind
        shutil.rmtree(self.folder, ignore_errors=True)

    def told(self) -> dict:
        return {"name": self.name, "state": "ended" if self.how else "running", "how": self.how, "said": self.said}


def _live(connection: socket.socket, folder: Path, before: Callable[[], None] | None, parent: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        process.die_with_parent(parent)
        for number in FATAL:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        own = os.dup(connection.fileno())
        os.closerange(3, own)
        os.closerange(own + 1, own + 4096)
        os.set_blocking(own, True)
        os.chdir(folder)
        if before is not None:
            before()
        serve(own, folder)
        code = 0
    except BaseException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        with contextlib.suppress(OSError):
            os.write(2, f"\n{lines[-1][:300]}\n".encode())
    finally:
        os._exit(code)


def serve(descriptor: int, folder: Path) -> None:
    """TVM's loop, with the functions that its clients expect of a server."""
    ffi = bindings.ffi(bare=True)
    files = folder / "files"
    files.mkdir()

    def path(name: str) -> str:
        """Where a file of the client's lies: in the session's folder, whatever its name says."""
        return str(files / Path(str(name)).name)

    @ffi.register_global_func("tvm.rpc.server.workpath", override=True)
    def workpath(name: str) -> str:
        return path(name)

    @ffi.register_global_func("tvm.rpc.server.load_module", override=True)
    def load_module(name: str) -> object:
        return ffi.load_module(path(name))

    programs.offer(ffi)
    jobs.offer(ffi, files)
    # TVM's clients speak first: one that shook hands and then says nothing is not waited for.
    if select.select([descriptor], [], [], FIRST_WORD_S)[0]:
        ffi.get_global_func("rpc.ServerLoop")(descriptor)


def clear_up() -> None:
    """Folders of listeners that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(ValueError, OSError):
            owner = int(folder.name.removeprefix(FOLDER).split("-")[0])
            if not Path(f"/proc/{owner}").exists() and sys.platform == "linux":
                shutil.rmtree(folder, ignore_errors=True)
