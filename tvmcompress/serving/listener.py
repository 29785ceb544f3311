"""The listener: hands shaken within seconds, requests answered, leases kept, a process for each session.

Nobody can stop it by sending nonsense or nothing: every peer is a task of its own with a deadline.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import secrets
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tvmcompress import bindings, conditions, cpu, wire
from tvmcompress.serving import session
from tvmcompress.serving.session import Session

HANDSHAKE_S = 3.0
IDLE_S = 900.0  # of a connection for requests, on which nothing is asked
LONGEST_S = 3600.0  # of a lease
SESSIONS = 16  # at once, without a lease
MEMORY = 256  # sessions of which is known how they ended
TICK_S = 0.5


@dataclass
class Lease:
    """Who has the board: nobody else gets a session. It ends with the connection that asked for it, or at `until`."""

    holder: str  # a random name, told by the client: the same client may ask again
    owner: str  # in words
    key: str  # what its sessions must say
    until: float  # by time.monotonic
    connection: int


class Listener:
    """On a socket that listens already. `before` is called in every session before it serves."""

    def __init__(
        self, listening: socket.socket, name: str = "", tracker: tuple[str, int] | None = None,
        before: Callable[[], None] | None = None, tls: ssl.SSLContext | None = None, port: int = 0,
    ) -> None:  # fmt: skip
        self.listening, self.name, self.tracker, self.before = listening, name, tracker, before
        self.tls, self.port = tls, port  # for the tracker, and the port that it is told when another stands in front
        self.lease: Lease | None = None
        self.sessions: dict[int, Session] = {}
        self.past: dict[str, Session] = {}
        self.connections = 0
        self.match_key = name  # what a client says whom a tracker sent
        self.instance, self.started = secrets.token_hex(8), time.time()
        self.described = cpu.describe()
        self.emulated = conditions.emulated()
        self.tasks: set[asyncio.Task] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.listening.setblocking(False)
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.spawn(self.tick())
        if self.tracker is not None:
            from tvmcompress.serving.registration import register

            self.spawn(register(self, self.tracker))
        while True:
            try:
                connection, address = await loop.sock_accept(self.listening)
            except OSError:  # too many open files, or a peer that has gone
                await asyncio.sleep(0.1)
                continue
            self.spawn(self.meet(connection, address[0]))

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- peers --------------------------------------------------------------------------------------------------------

    async def meet(self, connection: socket.socket, address: str) -> None:
        """A peer from its first byte on. Whatever it does wrong costs it the connection."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.keep_alive(connection)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                (magic,) = struct.unpack("<i", await received(connection, 4))
                if magic != wire.MAGIC:
                    return
                (length,) = struct.unpack("<i", await received(connection, 4))
                key = (await received(connection, wire.sized(length, wire.MOST_KEY))).decode()
            words = key.split()
            if not words or not words[0].startswith("client:"):
                return
            said, options = words[0].removeprefix("client:"), parsed(words[1:])
            if said == wire.CONTROL:
                await self.greet(connection)
                await self.answer(connection)
            elif self.admits(said):
                await self.greet(connection)
                self.begin(connection, options, said, address)
            else:
                await self.send(connection, struct.pack("<i", wire.MISMATCH))
        except (OSError, ValueError, TimeoutError, wire.BoardError, EOFError, RecursionError):
            pass
        finally:
            connection.close()

    async def greet(self, connection: socket.socket) -> None:
        name = f"server:{self.name}".encode()
        await self.send(connection, struct.pack("<ii", wire.SUCCESS, len(name)) + name)

    @staticmethod
    async def send(connection: socket.socket, data: bytes) -> None:
        async with asyncio.timeout(HANDSHAKE_S):
            await asyncio.get_running_loop().sock_sendall(connection, data)

    def admits(self, key: str) -> bool:
        """Whose key it is: the lease's, or where there is none, this board's own."""
        if self.leased():
            return secrets.compare_digest(key, self.lease.key)  # type: ignore[union-attr]
        return key in (self.name, self.match_key) and len(self.sessions) < SESSIONS

    def begin(self, connection: socket.socket, options: dict[str, str], key: str, address: str) -> None:
        lease = self.lease if self.leased() else None
        name = options.get("name", secrets.token_hex(4))
        seconds = float(options.get("timeout", 0) or 0)
        begun = Session.begin(connection, name, lease.owner if lease else address, seconds, self.before)
        self.sessions[begun.pid] = begun
        if key == self.match_key != self.name:
            self.match_key = fresh_key(self.name)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def answer(self, connection: socket.socket) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    (size,) = struct.unpack("<i", await received(connection, 4))
                    asked = json.loads(await received(connection, wire.sized(size, wire.MOST_FRAME)))
                try:
                    found = self.handle(asked, number)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    found = {"error": f"cannot be asked so: {error!r}"[:200]}
                await self.send(connection, wire.frame(found))
        finally:
            if self.lease is not None and self.lease.connection == number:
                self.release()

    def handle(self, asked: dict, number: int) -> dict:
        match asked["do"]:
            case "status":
                return self.status()
            case "lease":
                return self.grant(str(asked["holder"]), str(asked["owner"])[:120], float(asked["seconds"]), number)
            case "release":
                if self.lease is not None and self.lease.connection == number:
                    self.release()
                return {}
            case "session":
                known = {s.name: s for s in self.sessions.values()} | self.past
                one = known.get(str(asked["name"]))
                return one.told() if one else {"name": asked["name"], "state": "unknown"}
            case "end":
                for one in list(self.sessions.values()):
                    if one.name == asked["name"]:
                        one.end("ended")
                return {}
        return {"error": f"no such request: {str(asked['do'])[:40]}"}

    def status(self) -> dict:
        held = {"owner": self.lease.owner, "for_s": self.left()} if self.leased() else None  # type: ignore[union-attr]
        return {
            "protocol": wire.PROTOCOL,
            "name": self.name,
            "versions": {"tvmcompress": version("tvmcompress"), "tvm": version("apache-tvm")},
            "instance": self.instance,
            "started": self.started,
            "time": time.time(),
            "cpu": self.described,
            "emulated": self.emulated,
            "conditions": conditions.conditions(),
            "disk_free": conditions.disk_free(),
            "sessions": len(self.sessions),
            "lease": held,
        }

    # -- leases -------------------------------------------------------------------------------------------------------

    def leased(self) -> bool:
        if self.lease is not None and time.monotonic() > self.lease.until:
            self.release()
        return self.lease is not None

    def left(self) -> float:
        return round(self.lease.until - time.monotonic(), 1) if self.lease else 0.0

    def grant(self, holder: str, owner: str, seconds: float, number: int) -> dict:
        until = time.monotonic() + min(max(seconds, 1.0), LONGEST_S)
        if self.leased() and self.lease.holder != holder:  # type: ignore[union-attr]
            return {"held_by": self.lease.owner, "for_s": self.left()}  # type: ignore[union-attr]
        if self.lease is None:
            self.lease = Lease(holder, owner, secrets.token_hex(16), until, number)
        self.lease.until, self.lease.connection = until, number
        return {"key": self.lease.key}

    def release(self) -> None:
        """Its sessions end with it."""
        lease, self.lease = self.lease, None
        for one in list(self.sessions.values()):
            if lease is not None and one.owner == lease.owner:
                one.end("its lease ended")

    # -- sessions -----------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        for pid in list(self.sessions):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done, status = pid, 0
            if done:
                ended = self.sessions.pop(pid)
                ended.ended(status)
                self.past[ended.name] = ended
                while len(self.past) > MEMORY:
                    del self.past[next(iter(self.past))]

    async def tick(self) -> None:
        """Ends what is over time."""
        while True:
            await asyncio.sleep(TICK_S)
            self.leased()
            for one in list(self.sessions.values()):
                if time.monotonic() > one.deadline:
                    one.end("timeout")
            self.reap()


async def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(connection, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def parsed(options: list[str]) -> dict[str, str]:
    """`-timeout=20` to {"timeout": "20"}."""
    return {name.lstrip("-"): value for name, _, value in (o.partition("=") for o in options)}


def fresh_key(name: str) -> str:
    return f"{name}:{secrets.token_hex(8)}"


@functools.cache
def version(distribution: str) -> str:
    """Looked up once: it means reading files, and every answer tells it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def run(
    listening: socket.socket, name: str = "", tracker: tuple[str, int] | None = None,
    before: Callable[[], None] | None = None, tls: ssl.SSLContext | None = None, port: int = 0,
) -> None:  # fmt: skip
    """Serves until this process ends."""
    bindings.ffi(bare=True)  # once, so that sessions begin at once
    session.clear_up()
    gc.freeze()  # what is here stays, and is not copied in sessions
    asyncio.run(Listener(listening, name, tracker, before, tls, port).run())
