"""`python -m tvmcompress.serving`: what `tvmcompress device serve` and `device tracker` run, with little imported.

Whoever reaches the port runs code here, so it is open to this machine alone unless told otherwise.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Sequence

from tvmcompress import process
from tvmcompress.errors import TvmcompressError, UsageError
from tvmcompress.serving import front, tracker, watchdog

OPEN = "--anyone-may-run-code"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tvmcompress.serving", description="Serve this board to tvmcompress.")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    made.add_argument("--port", type=int, default=9090, help="the first port to try (default: 9090)")
    made.add_argument("--name", "--key", default="", help="the board's name, such as that of its target")
    made.add_argument("--tracker", default="", metavar="HOST:PORT", help="a tracker to register with")
    made.add_argument("--tls", default="", metavar="FOLDER", help="certificates: only who has one may connect")
    made.add_argument(OPEN, dest="open", action="store_true", help="listen on other addresses without TLS")
    made.add_argument("--track", action="store_true", help="be a tracker, not a board")
    return made


def serve(
    host: str = "127.0.0.1", port: int = 9090, name: str = "", registry: str = "", tls: str = "", open: bool = False,
    track: bool = False,
) -> None:  # fmt: skip
    """Serves until SIGTERM or Ctrl-C. Prints where, once it listens."""
    secure = front.context(tls, "board", server=True) if tls else None
    if not tls and not open and not loopback(host):
        raise UsageError(
            f"--host {host} lets everybody who reaches it run code here: give --tls FOLDER, or {OPEN}, "
            "or leave it out and reach the board with --ssh"
        )
    if " " in name or "@" in name or len(name) > 100:
        raise UsageError(f"name '{name[:40]}': wanted one without spaces and @")
    if not 0 <= port < 65536:
        raise UsageError(f"port {port}: wanted one from 0 to 65535")
    where = address(registry)
    outer = watchdog.bound(host, port, 100)
    listening = watchdog.bound("127.0.0.1", 0) if secure else outer
    shown = outer.getsockname()[1]
    print(f"listening on {f'[{host}]' if ':' in host else host}:{shown}", flush=True)
    watchdog.heed_sigterm()
    if secure is not None and os.fork() == 0:  # the front; with this process it dies
        guard(outer, listening.getsockname()[1], secure)
    if track:
        at, inner = listening.getsockname()[:2]
        watchdog.keep(lambda: tracker.run(listening), lambda: tracker.answering(at, inner), say)
    else:
        client = front.context(tls, "board", server=False) if tls else None
        watchdog.serve_board(listening, name, where, say, client, shown)


def guard(outer: socket.socket, port: int, secure: ssl.SSLContext) -> None:
    """TLS in front of the port, under a watchdog of its own; never returns."""
    try:
        process.die_with_parent()
        watchdog.keep(lambda: front.run(outer, port, secure), lambda: True, say)
    finally:
        os._exit(1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"tracker '{text[:60]}': wanted HOST:PORT")
    return host.strip("[]"), int(port)


def main(arguments: Sequence[str] | None = None) -> int:
    o = parser().parse_args(arguments)
    try:
        serve(o.host, o.port, o.name, o.tracker, o.tls, o.open, o.track)
    except KeyboardInterrupt:
        return 130
    except TvmcompressError as error:
        say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
