"""A board's registration with a tracker, renewed for ever: a tracker may be away for as long as it likes."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from tvmcompress import wire
from tvmcompress.wire import Code

if TYPE_CHECKING:
    from tvmcompress.serving.listener import Listener

STEP_S = 5.0
PERIOD_S = 2.0  # between looks at what the tracker knows
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0)


async def register(listener: Listener, tracker: tuple[str, int]) -> None:
    failures = 0
    while True:
        begun = time.monotonic()
        try:
            await stay(listener, tracker)
        except (OSError, ValueError, TypeError, TimeoutError, EOFError, wire.BoardError, RecursionError) as error:
            if failures == 0:
                said = getattr(error, "strerror", None) or str(error) or "it does not answer"
                where = f"{tracker[0]}:{tracker[1]}"
                print(f"tracker {where}: {said}; it is tried again, and boards serve without it", file=sys.stderr)
        failures = 0 if time.monotonic() - begun > STEP_S else failures + 1
        await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])


async def stay(listener: Listener, tracker: tuple[str, int]) -> None:
    from tvmcompress.serving.listener import fresh_key

    async with asyncio.timeout(STEP_S):
        reader, writer = await asyncio.open_connection(*tracker, ssl=listener.tls)
        writer.write(struct.pack("<i", wire.TRACKER_MAGIC))
        (magic,) = struct.unpack("<i", await reader.readexactly(4))
        if magic != wire.TRACKER_MAGIC:
            raise ValueError("not a tracker")

    async def ask(*request: Any) -> Any:
        async with asyncio.timeout(STEP_S):
            writer.write(wire.frame(list(request)))
            (size,) = struct.unpack("<i", await reader.readexactly(4))
            return json.loads(await reader.readexactly(wire.sized(size, wire.MOST_FRAME)))

    try:
        host, port = listener.listening.getsockname()[:2]
        port = listener.port or port
        own = None if host in ("0.0.0.0", "::") else host  # else the tracker knows where we call from
        await ask(Code.UPDATE_INFO, {"key": f"server:{listener.name}", "addr": [own, port]})
        while True:
            if listener.match_key == listener.name or listener.match_key not in await ask(Code.PENDING):
                # Taken by one of TVM's clients, who has some seconds to come; then another may.
                if listener.match_key != listener.name:
                    await asyncio.sleep(2 * PERIOD_S)
                if listener.match_key == listener.name or not listener.sessions:
                    listener.match_key = fresh_key(listener.name)
                    await ask(Code.PUT, listener.name, [port, listener.match_key], own)
            await asyncio.sleep(PERIOD_S)
    finally:
        writer.close()
