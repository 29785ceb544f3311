"""Ways to a board that is not on this machine: through SSH, or TLS with certificates on both sides.

A tunnel ends at a port of this machine, to which TVM's client, which knows neither, connects.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tvmcompress import process
from tvmcompress.errors import MissingDependencyError, UsageError
from tvmcompress.serving import front
from tvmcompress.wire import BoardError

REFUSAL_S = 0.3


@dataclass(frozen=True)
class Route:
    """How boards are reached: directly, through `ssh` (user@host), or by `tls` (a folder of certificates)."""

    ssh: str = ""
    tls: str = ""

    def __post_init__(self) -> None:
        if self.ssh and self.tls:
            raise UsageError("one of --ssh and --tls: a tunnel through SSH needs no TLS")

    def context(self) -> ssl.SSLContext | None:
        """For a tracker."""
        return front.context(self.tls, "host", server=False) if self.tls else None


class Tunnels:
    """Open tunnels of one route; `to` gives where to connect in place of a board's address. Close, or use `with`."""

    def __init__(self, route: Route, seconds: float = 10.0) -> None:
        self.route, self.seconds = route, seconds
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.connection: Any = None
        self.ends: dict[tuple[str, int], int] = {}
        self.tasks: list[asyncio.Task] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Tunnels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def to(self, host: str, port: int) -> tuple[str, int]:
        """Raises BoardError when the other end cannot be reached."""
        if not self.route.ssh and not self.route.tls:
            return host, port
        with self.lock:
            if self.route.ssh:
                return self.through_ssh(host, port)
            if (host, port) not in self.ends:
                self.ends[host, port] = self.work(self.begin_tls(host, port), f"{host}:{port}")
            return "127.0.0.1", self.ends[host, port]

    def close(self) -> None:
        loop, self.loop = self.loop, None
        if loop is None or self.thread is None:
            return
        with contextlib.suppress(TimeoutError, concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(end_others(), loop).result(2.0)
        loop.call_soon_threadsafe(loop.stop)
        self.thread.join(2.0)

    def through_ssh(self, host: str, port: int) -> tuple[str, int]:
        if self.connection is None or self.connection.is_closed():
            self.ends.clear()
            self.connection = self.work(self.connect_ssh(), f"ssh {self.route.ssh}")
        if (host, port) not in self.ends:
            self.ends[host, port] = self.work(self.begin_ssh(host, port), f"ssh {self.route.ssh}")
        return "127.0.0.1", self.ends[host, port]

    async def connect_ssh(self) -> Any:
        try:
            import asyncssh
        except ModuleNotFoundError as error:
            raise MissingDependencyError("--ssh wants asyncssh: pip install 'tvmcompress[boards]'") from error
        user, _, host = self.route.ssh.rpartition("@")
        name, _, port = host.partition(":")
        options: dict[str, Any] = {"username": user} if user else {}
        options |= {"port": int(port)} if port.isdigit() else {}
        try:
            return await asyncssh.connect(name, **options, login_timeout=self.seconds, keepalive_interval=10)
        except asyncssh.HostKeyNotVerifiable as error:
            raise BoardError(f"ssh {self.route.ssh}: its host key is not known; connect once with 'ssh'") from error
        except asyncssh.PermissionDenied as error:
            raise BoardError(
                f"ssh {self.route.ssh}: not let in; a key that 'ssh' uses without asking is wanted"
            ) from error
        except asyncssh.Error as error:
            raise BoardError(f"ssh {self.route.ssh}: {error.reason}") from error

    async def begin_ssh(self, host: str, port: int) -> int:
        import asyncssh

        async def through() -> Any:
            try:
                return await self.connection.open_connection(host, port)
            except asyncssh.Error as error:
                raise ConnectionError(f"{host}:{port} from there: {error.reason}") from error

        (await through())[1].close()  # to say now what is wrong
        return self.listen(through)

    async def begin_tls(self, host: str, port: int) -> int:
        context = self.route.context()
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        with contextlib.suppress(TimeoutError):  # a certificate is refused after the handshake
            await asyncio.wait_for(reader.read(1), REFUSAL_S)
        writer.close()
        return self.listen(lambda: asyncio.open_connection(host, port, ssl=context))

    def listen(self, connect: Callable[[], Awaitable]) -> int:
        """The port of this machine from which is passed on."""
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        self.tasks.append(asyncio.ensure_future(front.forward(listening, connect)))
        return int(listening.getsockname()[1])

    def work(self, task: Awaitable, name: str) -> Any:
        """In the loop's thread, within the time."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="tunnels")
            with process.interrupts_wait():
                self.thread.start()
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(task, self.seconds), self.loop)
        try:
            return future.result()
        except (TimeoutError, concurrent.futures.TimeoutError) as error:
            raise BoardError(f"{name}: no answer within {self.seconds:g} s") from error
        except ssl.SSLError as error:
            raise BoardError(f"{name}: TLS: {error.reason or error}") from error
        except OSError as error:
            raise BoardError(f"{name}: {error.strerror or error}") from error


async def end_others() -> None:
    """Every other task of this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)  # what they have closed is closed now
