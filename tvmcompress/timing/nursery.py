"""A process with little in it, of which children are forked: a fork of one that has all of TVM takes ten times as long.

The parent sends the end of a pipe. The nursery forks, and tells the number of the child, which takes work from the pipe
and answers there, one after the other. The nursery ends with the parent's end of the connection, its children with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path

from tvmcompress import bindings, process
from tvmcompress.timing import session
from tvmcompress.timing.session import Work

POLL_S = 0.5  # between looks at whether the work is still wanted

Ended = tuple[str, object, str]  # ok, error, crash or timeout; what was measured; what went wrong


class Nursery:
    """May be used by several threads. Close it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[Child] = []
        self.begin()

    def begin(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tvmcompress.timing.nursery", str(theirs.fileno())]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self.connection = Connection(ours.detach())

    def run(self, work: Work, seconds: float, given_up: Callable[[], bool]) -> Ended:
        """What came of it within `seconds`. Raises KeyboardInterrupt soon after `given_up` has become true.

        The child has the next work too if this one went well, and is killed if not.
        """
        child: Child | None = None
        deadline = time.monotonic() + seconds
        try:
            data = pickle.dumps(work, protocol=5)
            child = self.child()
            child.pipe.send_bytes(data)
            while not child.pipe.poll(min(POLL_S, max(deadline - time.monotonic(), 0))):
                if given_up():
                    raise KeyboardInterrupt
                if time.monotonic() >= deadline:
                    return "timeout", None, f"no result within {seconds:g} s"
            ended: Ended = child.pipe.recv()
            if ended[0] == "ok":
                with self.lock:
                    self.idle.append(child)
                child = None
            return ended
        except (EOFError, OSError) as error:
            return "crash", None, f"the process that spoke to the board died ({error or type(error).__name__})"
        finally:
            if child is not None:
                child.kill()

    def child(self) -> Child:
        """One that waits for work."""
        with self.lock:
            if self.process.poll() is not None:  # killed, for want of memory perhaps; its children died with it
                self.connection.close()
                self.forget()
                self.begin()
            if self.idle:
                return self.idle.pop()
            mine, theirs = socket.socketpair()
            with theirs:
                send_handle(self.connection, theirs.fileno(), self.process.pid)
                return Child(self.connection.recv(), Connection(mine.detach()))

    def forget(self) -> None:
        while self.idle:
            self.idle.pop().kill()

    def close(self) -> None:
        self.forget()
        self.connection.close()
        self.process.kill()
        self.process.wait()


@dataclass
class Child:
    """A process that does one work after the other."""

    pid: int
    pipe: Connection

    def kill(self) -> None:
        self.pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def serve(connection: Connection) -> None:
    """The nursery's own loop."""
    bindings.ffi()
    gc.freeze()  # what is here stays, and is not copied in children
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    while True:
        try:
            handle = recv_handle(connection)
        except (EOFError, OSError):
            return
        child = os.fork()
        if child == 0:
            live(handle, connection)
        os.close(handle)
        connection.send(child)


def reap() -> None:
    """Children that have ended; their processor time is this process's from then on."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def live(handle: int, connection: Connection) -> None:
    """The child: never returns."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process.die_with_parent()
        connection.close()
        pipe = Connection(handle)
        while True:
            pipe.send(ended(pickle.loads(pipe.recv_bytes())))
    finally:
        os._exit(0)


def ended(work: Work) -> Ended:
    try:
        return "ok", session.measured(work), ""
    except Exception as error:  # of whatever class, it belongs to the parent
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "error", None, f"{type(error).__name__}: {(lines or [''])[-1][:300]}"


if __name__ == "__main__":
    process.die_with_parent()
    serve(Connection(int(sys.argv[1])))
