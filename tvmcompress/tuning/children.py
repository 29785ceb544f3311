"""Work in forked children: what crashes or hangs there is a result here, and nothing outlives this process.

A child of a process that has TVM loaded starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from tvmcompress import process

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """`status`: ok, error (`error` says which), crash (of the child) or timeout. `value`: what the work returned.

    `conditions`: what the machine that did it said of its state.
    """

    status: str
    value: Any = None
    error: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)


def run(
    work: Sequence[Callable[[], Any]], at_once: int, seconds: float, given_up: Callable[[], bool] | None = None
) -> list[Outcome]:
    """The outcome of each piece of work, at most `at_once` at a time, each with `seconds` of its own.

    Everything is killed, and KeyboardInterrupt raised, within a second after `given_up` has become true.
    """
    outcomes: dict[int, Outcome] = {}
    waiting = list(enumerate(work))
    running: dict[Connection, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, function = waiting.pop(0)
                child = _Child(index, function, time.monotonic() + seconds)
                running[child.pipe] = child
            left = min(child.deadline for child in running.values()) - time.monotonic()
            ready = wait(list(running), max(left if given_up is None else min(left, 1.0), 0))
            if given_up is not None and given_up():
                raise KeyboardInterrupt
            for pipe in ready:
                child = running.pop(pipe)  # type: ignore[call-overload]
                outcomes[child.index] = child.outcome()
            for pipe, child in list(running.items()):
                if time.monotonic() >= child.deadline:
                    del running[pipe]
                    child.kill()
                    outcomes[child.index] = Outcome("timeout", error=f"no result within {seconds:g} s")
    finally:
        for child in running.values():
            child.kill()
    return [outcomes[i] for i in range(len(work))]


class _Child:
    def __init__(self, index: int, function: Callable[[], Any], deadline: float) -> None:
        self.index, self.deadline = index, deadline
        self.pipe, theirs = _fork.Pipe(duplex=False)
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  what it and its libraries print; closed by `kill`
        self.process = _fork.Process(
            target=_live, args=(function, theirs, self.said.fileno(), os.getpid()), daemon=False
        )
        try:
            with process.interrupts_wait():
                self.process.start()
        finally:
            theirs.close()

    def outcome(self) -> Outcome:
        try:
            outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            outcome = Outcome("crash", error=self.last_words())
        self.kill()
        return outcome

    def last_words(self) -> str:
        self.said.seek(0, os.SEEK_END)
        self.said.seek(max(self.said.tell() - 4000, 0))
        lines = [line.strip() for line in self.said.read().decode(errors="replace").splitlines() if line.strip()]
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}: {lines[-1][:200]}" if lines else how

    def kill(self) -> None:
        """With whatever it has started: a compiler, a linker."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True) if self.process.is_alive() else []:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.said.close()


def _live(function: Callable[[], Any], pipe: Connection, output: int, parent: int) -> None:
    """The child. Ctrl-C is the parent's to handle; with the parent it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, process.INTERRUPTS)
    for number in (signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)  # TVM's own handlers print a page
    process.die_with_parent(parent)
    os.dup2(output, 1)
    os.dup2(output, 2)
    outcomes: list[Outcome] = []

    def work() -> None:
        try:
            outcomes.append(Outcome("ok", function()))
        except Exception as error:  # of whatever class, it belongs to the parent
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            outcomes.append(Outcome("error", error=f"{type(error).__name__}: {(lines or [''])[-1][:300]}"))

    # In a thread of its own: TVM keeps its workers by thread, and those of the parent's did not survive the fork.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pipe.send(outcomes[0])
    pipe.close()
    os._exit(0)  # without TVM's own farewell, which may wait for workers that are not there
