"""TLS in front of a port: whoever has no certificate of ours gets no further than the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from tvmcompress.errors import UsageError

HANDSHAKE_S = 5.0
CHUNK = 1 << 16

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def context(certificates: str | os.PathLike, own: str, server: bool) -> ssl.SSLContext:
    """Of a folder that `tvmcompress device keys` wrote: each side shows its certificate, and both are checked.

    `own`: `board` or `host`. A certificate stands for its authority, not for an address, which may change. Raises
    UsageError.
    """
    folder = Path(certificates)
    files = [folder / f"{own}.pem", folder / f"{own}.key", folder / "authority.pem"]
    for file in files:
        if not file.is_file():
            raise UsageError(
                f"no {file}; `tvmcompress device keys -o {folder}` makes certificates for boards and hosts"
            )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        made.load_cert_chain(files[0], files[1])
        made.load_verify_locations(files[2])
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"certificates in {folder}: {error}") from error
    return made


async def join(here: Streams, there: Streams) -> None:
    """Passes on what each says until either has gone."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.ensure_future(pump(here[0], there[1])), asyncio.ensure_future(pump(there[0], here[1]))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def forward(
    listening: socket.socket, connect: Callable[[], Awaitable[Streams]], tls: ssl.SSLContext | None = None
) -> None:
    """Passes every connection at `listening` on to one of `connect`'s, for ever."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, TimeoutError, EOFError, ssl.SSLError, asyncio.CancelledError):
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    there = await connect()
                other = there[1]
                await join((reader, writer), there)
            finally:
                for end in (writer, other):
                    if end is not None:
                        end.close()

    patience = HANDSHAKE_S if tls else None
    server = await asyncio.start_server(meet, sock=listening, backlog=512, ssl=tls, ssl_handshake_timeout=patience)
    async with server:
        await server.serve_forever()


def run(listening: socket.socket, port: int, tls: ssl.SSLContext) -> None:
    """Serves TLS at `listening`, and passes on to a port of this machine."""
    asyncio.run(forward(listening, lambda: asyncio.open_connection("127.0.0.1", port), tls))
