"""What goes over the wire between a host and a board: TVM's handshake, and beside it requests in JSON.

TVM's own clients say `client:KEY` and get a session, in which they may run anything. A client that says CONTROL instead
may ask a board of ours how it is, lease it, and learn how a session ended; each request and answer is a frame, an
int32 (little-endian) with the number of bytes of JSON that follow. A tracker is spoken to in frames from the start.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import time
from typing import Any

from tvmcompress.errors import TvmcompressError

MAGIC, TRACKER_MAGIC = 0xFF271, 0x2F271
SUCCESS, MISMATCH = MAGIC, MAGIC + 2
CONTROL = "!tvmcompress"  # no key of TVM's: those are names
PROTOCOL = 2  # raised when a client wants what an older server has not
MOST_KEY, MOST_FRAME = 4096, 1 << 20  # bytes


# What is read of the answer to `status`.
STATUS = {
    "name": str, "instance": str, "time": (int, float), "emulated": bool, "conditions": dict, "versions": {"tvm": str},
    "cpu": {"architecture": str, "model": str, "cores": int, "features": list},
}  # fmt: skip


class BoardError(TvmcompressError):
    """A board or a tracker cannot be reached, does not answer in time, or is not what was looked for."""


class Unreachable(BoardError):
    """Nobody listens there."""


class Peer:
    """One connection with a deadline on every step. Raises BoardError."""

    def __init__(self, host: str, port: int, seconds: float, name: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.name, self.seconds = name or f"{host}:{port}", seconds
        try:
            self.socket = socket.create_connection((host, port), seconds)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket)
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unreachable(f"device {self.name}: cannot connect: {reason}; is its server running?") from error
        self.socket.settimeout(seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(self.socket)

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.settimeout(self.seconds)
            self.socket.sendall(data)
        except OSError as error:
            raise self.lost(error) from error

    def receive(self, size: int) -> bytes:
        """All of so many bytes, within the deadline: a peer that sends them one by one is none that answers."""
        data, until = bytearray(), time.monotonic() + self.seconds
        while len(data) < size:
            try:
                self.socket.settimeout(max(until - time.monotonic(), 1e-3))
                part = self.socket.recv(size - len(data))
            except OSError as error:
                raise self.lost(error) from error
            if not part:
                raise BoardError(f"device {self.name}: it closed the connection")
            data += part
        return bytes(data)

    def number(self) -> int:
        return int(struct.unpack("<i", self.receive(4))[0])

    def ask(self, request: Any) -> Any:
        """Sends a request in a frame and returns the answer."""
        self.send(frame(request))
        return unframed(self.receive(sized(self.number(), MOST_FRAME)))

    def lost(self, error: OSError) -> BoardError:
        if isinstance(error, TimeoutError):
            return BoardError(f"device {self.name}: no answer within {self.seconds:g} s")
        return BoardError(f"device {self.name}: {error.strerror or error}")


class Control(Peer):
    """A connection on which a board answers requests. `status`: what it said of itself at the start."""

    def __init__(self, host: str, port: int, seconds: float, name: str = "") -> None:
        super().__init__(host, port, seconds, name)
        try:
            self.send(greeting(f"client:{CONTROL}"))
            code = self.number()
            if code == MISMATCH:
                raise BoardError(
                    f"device {self.name}: a plain TVM server, or one that is older; "
                    "start 'tvmcompress device serve' there"
                )
            if code != SUCCESS:
                raise BoardError(f"device {self.name}: not an RPC server of TVM's")
            self.receive(sized(self.number(), MOST_KEY))
            self.status: dict = self.request("status")
            if self.status.get("protocol") == PROTOCOL and (lacks := lacking(self.status, STATUS)):
                raise BoardError(f"device {self.name}: not a board of ours: its answer has no {lacks}")
            if not isinstance(self.status.get("protocol"), int):
                raise BoardError(f"device {self.name}: not a board of ours: it names no protocol")
        except (ValueError, BoardError) as error:
            self.close()
            raise error if isinstance(error, BoardError) else BoardError(f"device {self.name}: {error}") from error

    def request(self, what: str, **facts: Any) -> dict:
        answer = self.ask({"do": what, **facts})
        if not isinstance(answer, dict) or "error" in answer:
            said = answer.get("error") if isinstance(answer, dict) else str(answer)[:80]
            raise BoardError(f"device {self.name}: {said}")
        return answer


class Tracker(Peer):
    """A connection to a tracker: ours or TVM's."""

    def __init__(self, host: str, port: int, seconds: float, name: str = "", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(host, port, seconds, name or f"{host}:{port}", tls)
        try:
            self.send(struct.pack("<i", TRACKER_MAGIC))
            if self.number() != TRACKER_MAGIC:
                raise BoardError(f"device {self.name}: not a tracker")
        except BoardError:
            self.close()
            raise

    def boards(self) -> list[tuple[str, str, int]]:
        """(key, host, port) of all that have registered."""
        answer = self.ask([Code.SUMMARY])
        try:
            rows = [(row["key"].removeprefix("server:"), *row["addr"]) for row in answer[1]["server_info"]]
            return sorted((str(key), str(host), int(port)) for key, host, port in rows)
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise BoardError(f"device {self.name}: not an answer of a tracker") from error


class Code:
    """What is asked of a tracker: TVM's numbers."""

    FAIL, SUCCESS, PING, STOP, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING = -1, 0, 1, 2, 3, 4, 5, 6, 7


def greeting(key: str) -> bytes:
    data = key.encode()
    return struct.pack("<ii", MAGIC, len(data)) + data


def frame(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<i", len(data)) + data


def unframed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BoardError(f"an answer that is no JSON: {data[:40]!r}") from error


def lacking(found: Any, wanted: Any, path: str = "") -> str:
    """Where an answer is not of the kinds that `wanted` has; empty where it is."""
    if not isinstance(wanted, dict):
        return "" if isinstance(found, wanted) else path
    if not isinstance(found, dict):
        return path
    return next(
        filter(None, (lacking(found.get(key), kind, f"{path}.{key}".strip(".")) for key, kind in wanted.items())), ""
    )


def sized(size: int, most: int) -> int:
    """Raises BoardError for what cannot be a length."""
    if not 0 <= size <= most:
        raise BoardError(f"a message of {size} bytes, where {most} are the most")
    return size


def keep_alive(connection: socket.socket) -> None:
    """A peer that lost its power or its network is noticed within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 30000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
