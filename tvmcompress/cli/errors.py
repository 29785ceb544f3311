"""From whatever went wrong to one or two lines on stderr and an exit code."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from tvmcompress.errors import TvmcompressError

INTERRUPTED = 130
TERMINATED = 143
HINT = "this is a bug; TVMCOMPRESS_DEBUG=1 shows where"


class _State:
    stopped: tuple[str, int] | None = None  # by a signal: what to say, and the exit code
    quiet_from: int | None = None  # a copy of the real stderr while TVM's own messages are kept off it


def debugging() -> bool:
    return os.environ.get("TVMCOMPRESS_DEBUG", "0") not in ("", "0")


def be_verbose() -> None:
    os.environ["TVMCOMPRESS_DEBUG"] = "1"
    _let_tvm_speak()


def run(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a click command to the end and return its exit code; nothing is raised."""
    _State.stopped = None
    previous = _install_signals()
    if not debugging():
        _silence_tvm()
    try:
        given = None if arguments is None else list(arguments)
        with warnings.catch_warnings():
            if not debugging():
                warnings.simplefilter("ignore")  # what libraries have to say to programmers
            result = command.main(args=given, prog_name="tvmcompress", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BaseException as error:
        return _report(error)
    finally:
        _let_tvm_speak()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _report(error: BaseException) -> int:
    if debugging() and not isinstance(error, click.exceptions.Exit | click.UsageError):
        traceback.print_exc()
    # A signal inside one of TVM's callbacks comes out as an error of some other kind.
    if _State.stopped:
        return _say(*_State.stopped)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _say("interrupted", INTERRUPTED)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, TvmcompressError):
        return _say(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; Python must not try to flush it again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, MemoryError):
        return _say("out of memory", 1)
    if isinstance(error, OSError) and error.strerror:
        return _say(f"{error.filename or 'input or output'}: {error.strerror}", 1)
    lines = str(error).strip().splitlines() or [""]
    return _say(f"{type(error).__name__}: {lines[-1][:300]}\n{HINT}", 1)


def _say(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _install_signals() -> dict[int, Any]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        _State.stopped = ("interrupted", INTERRUPTED)
        raise KeyboardInterrupt

    def terminate(_number: int, _frame: FrameType | None) -> None:
        _State.stopped = ("terminated", TERMINATED)
        raise SystemExit(TERMINATED)  # so that temporary files are removed on the way out

    try:
        return {
            signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
            signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        }
    except ValueError:  # not in the main thread
        return {}


def _silence_tvm() -> None:
    """Send file descriptor 2, where TVM's C++ writes, nowhere; Python's stderr goes on to the real one."""
    try:
        if sys.stderr.fileno() != 2:
            return
    except (OSError, ValueError, AttributeError):
        return
    _State.quiet_from = os.dup(2)
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(os.dup(_State.quiet_from), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    faulthandler.enable(file=_State.quiet_from)


def _let_tvm_speak() -> None:
    if _State.quiet_from is None:
        return
    faulthandler.disable()
    os.dup2(_State.quiet_from, 2)
    os.close(_State.quiet_from)
    _State.quiet_from = None
