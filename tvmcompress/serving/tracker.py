"""A tracker: boards tell it where they are, clients ask. It speaks as TVM's does, and sheds whoever does not.

Boards that TVM's own server runs may register here, and TVM's clients may request them; ours only ask for the list.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import socket
import struct
from typing import Any

from tvmcompress import wire
from tvmcompress.serving.listener import HANDSHAKE_S
from tvmcompress.wire import Code

SILENT_S = 60.0  # a board says something every few seconds; a client waits for as long as it likes


class Tracker:
    """Boards that wait for clients, and clients that wait for boards, by key."""

    def __init__(self) -> None:
        self.boards: dict[Any, dict] = {}  # connection: what it said of itself
        self.free: dict[str, list[tuple[Any, list]]] = {}
        self.waiting: dict[str, list[tuple[int, int, Any]]] = {}
        self.order = itertools.count()
        self.busy: set[asyncio.Task] = set()

    async def run(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self.meet, sock=listening, backlog=512)
        async with server:
            await server.serve_forever()

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                (magic,) = struct.unpack("<i", await reader.readexactly(4))
            if magic != wire.TRACKER_MAGIC:
                return
            wire.keep_alive(writer.get_extra_info("socket"))
            writer.write(struct.pack("<i", wire.TRACKER_MAGIC))
            while True:
                async with asyncio.timeout(SILENT_S if writer in self.boards else None):
                    (size,) = struct.unpack("<i", await reader.readexactly(4))
                    if size <= 0:
                        return
                    async with asyncio.timeout(HANDSHAKE_S):
                        asked = json.loads(await reader.readexactly(wire.sized(size, wire.MOST_FRAME)))
                answer = self.handle(asked, writer)
                if answer is not None:
                    self.tell(writer, answer)
                    await writer.drain()
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, TimeoutError):
            pass
        except (wire.BoardError, RecursionError):
            pass
        finally:
            self.forget(writer)
            writer.close()

    def handle(self, asked: list, writer: Any) -> Any:
        address = writer.get_extra_info("peername")[0]
        match asked[0]:
            case Code.PING:
                return Code.SUCCESS
            case Code.UPDATE_INFO:
                info = dict(asked[1])
                info["addr"] = [info["addr"][0] or address, int(info["addr"][1])]
                self.boards.setdefault(writer, {}).update(info)
                return Code.SUCCESS
            case Code.PUT:
                port, match_key = asked[2]
                host = asked[3] if len(asked) > 3 and asked[3] else address
                self.free.setdefault(str(asked[1]), []).append((writer, [host, int(port), str(match_key)]))
                self.match(str(asked[1]))
                return Code.SUCCESS
            case Code.PENDING:
                return [place[2] for rows in self.free.values() for owner, place in rows if owner is writer]
            case Code.REQUEST:
                row = (-int(asked[3]), next(self.order), writer)
                heapq.heappush(self.waiting.setdefault(str(asked[1]), []), row)
                self.match(str(asked[1]))
                return None
            case Code.SUMMARY:
                return [Code.SUCCESS, self.summary()]
        raise ValueError(asked[0])

    def match(self, key: str) -> None:
        free, waiting = self.free.get(key, []), self.waiting.get(key, [])
        while free and waiting:
            *_, client = heapq.heappop(waiting)
            if not client.is_closing():
                self.tell(client, [Code.SUCCESS, free.pop(0)[1]])

    def summary(self) -> dict:
        keys = {*self.free, *self.waiting}
        queues = {k: {"free": len(self.free.get(k, [])), "pending": len(self.waiting.get(k, []))} for k in keys}
        boards = [info for info in self.boards.values() if str(info.get("key", "")).startswith("server")]
        return {"queue_info": queues, "server_info": boards}

    def forget(self, writer: Any) -> None:
        self.boards.pop(writer, None)
        for key, rows in self.free.items():
            self.free[key] = [row for row in rows if row[0] is not writer]
        for key, waiting in self.waiting.items():
            self.waiting[key] = [row for row in waiting if row[2] is not writer]
            heapq.heapify(self.waiting[key])

    @staticmethod
    def tell(writer: Any, answer: Any) -> None:
        writer.write(wire.frame(answer))


def run(listening: socket.socket) -> None:
    """Tracks until this process ends."""
    asyncio.run(Tracker().run(listening))


def answering(host: str, port: int) -> bool:
    """Whether a tracker answers there."""
    from tvmcompress.serving.watchdog import DEADLINE_S

    try:
        tracker = wire.Tracker("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host, port, DEADLINE_S)
        tracker.boards()
        tracker.close()
    except wire.BoardError:
        return False
    return True
