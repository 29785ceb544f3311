"""A process with little in it, of which children are forked: a fork of one that has all of TVM takes ten times as long.

The parent sends work with a pipe for the outcome; the nursery forks and tells the child's number. It ends with the
parent's end of the connection, and its children with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
        """What came of it within `seconds`. Raises KeyboardInterrupt soon after `given_up` has become true."""
        mine, theirs = socket.socketpair()
        result = Connection(mine.detach())
        child, deadline = 0, time.monotonic() + seconds
        try:
            data = pickle.dumps(work, protocol=5)
            with self.lock:
                if self.process.poll() is not None:  # killed, for want of memory perhaps
                    self.begin()
                self.connection.send_bytes(data)
                send_handle(self.connection, theirs.fileno(), self.process.pid)
                child = self.connection.recv()
            theirs.close()
            while not result.poll(min(POLL_S, max(deadline - time.monotonic(), 0))):
                if given_up():
                    raise KeyboardInterrupt
                if time.monotonic() >= deadline:
                    return "timeout", None, f"no result within {seconds:g} s"
            ended: Ended = result.recv()
            child = 0  # it is ending by itself
            return ended
        except (EOFError, OSError) as error:
            return "crash", None, f"the process that spoke to the board died ({error or type(error).__name__})"
        finally:
            result.close()
            if child:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def serve(connection: Connection) -> None:
    """The nursery's own loop."""
    bindings.ffi()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        try:
            work = pickle.loads(connection.recv_bytes())
            handle = recv_handle(connection)
        except (EOFError, OSError):
            return
        child = os.fork()
        if child == 0:
            live(work, handle, connection)
        os.close(handle)
        connection.send(child)


def live(work: Work, handle: int, connection: Connection) -> None:
    """The child: never returns."""
    try:
        process.die_with_parent()
        connection.close()
        result = Connection(handle)
        try:
            ended: Ended = ("ok", session.measured(work), "")
        except Exception as error:  # of whatever class, it belongs to the parent
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            ended = ("error", None, f"{type(error).__name__}: {(lines or [''])[-1][:300]}")
        result.send(ended)
    finally:
        os._exit(0)


if __name__ == "__main__":
    process.die_with_parent()
    serve(Connection(int(sys.argv[1])))
