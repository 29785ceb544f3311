"""The watchdog: holds the port, starts the listener behind it, and starts it again when it stops answering.

What it looks at is not whether the listener's process is there but whether it answers, every few seconds, as a client
would ask. Clients that come in between wait at the port, which stays open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable

from tvmcompress import process, wire
from tvmcompress.errors import TvmcompressError
from tvmcompress.serving import listener, session

PERIOD_S = 2.0  # between looks
DEADLINE_S = 5.0  # for an answer
STRIKES = 2  # looks without an answer
START_S = 60.0  # for the first answer: an emulated board takes its time
BACKLOG = 512
BACK_OFF_S = (0.2, 1.0, 2.0, 5.0, 10.0)


def bound(host: str, port: int, ports: int = 1) -> socket.socket:
    """A socket that listens at the first free one of `ports` ports. Raises TvmcompressError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + ports):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
        except OSError as error:
            listening.close()
            if candidate == port + ports - 1:
                raise TvmcompressError(f"{host}:{candidate}: {error.strerror}; choose another with --port") from error
            continue
        listening.listen(BACKLOG)
        return listening
    raise TvmcompressError("no port to try")


class _State:
    stopped = False


def heed_sigterm() -> None:
    """Ends this process with 143; an exception alone is lost where Python ignores those, as at a fork."""

    def stop_now(*_: object) -> None:
        _State.stopped = True
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, stop_now)


def keep(serve: Callable[[], None], answers: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Runs `serve` in a child, again whenever it ends or `answers` is false twice. Until this process ends."""
    failures = 0
    while True:
        child, begun = start(serve), time.monotonic()
        try:
            why = watch(child, answers)
        finally:
            stop(child)
            session.clear_up()
        failures = 0 if time.monotonic() - begun > 60 else failures + 1
        say(f"the listener {why}; it is started again")
        time.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1] if failures else 0)


def watch(child: int, answers: Callable[[], bool]) -> str:
    """Returns why the child is not to be trusted any more."""
    begun, answered, strikes = time.monotonic(), False, 0
    while True:
        if _State.stopped:
            raise SystemExit(143)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if answers():
            answered, strikes = True, 0
        elif answered or time.monotonic() - begun > START_S:
            strikes += 1
            if strikes >= STRIKES:
                return "does not answer"
        time.sleep(PERIOD_S if answered and not strikes else 0.2)


def start(serve: Callable[[], None]) -> int:
    parent, child = os.getpid(), os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        process.die_with_parent(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        serve()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def stop(child: int) -> None:
    """With its sessions, which die with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def answering(host: str, port: int) -> bool:
    """Whether a board answers there."""
    try:
        wire.Control("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host, port, DEADLINE_S).close()
    except TvmcompressError:
        return False
    return True


def serve_board(
    listening: socket.socket, name: str, tracker: tuple[str, int] | None, say: Callable[[str], None],
    tls: ssl.SSLContext | None = None, port: int = 0,
) -> None:  # fmt: skip
    """A board behind the port, until this process ends; `tls` and `port` are for the tracker."""
    host, own = listening.getsockname()[:2]
    keep(lambda: listener.run(listening, name, tracker, None, tls, port), lambda: answering(host, own), say)
