"""Device: where code runs. This machine, or a board whose RPC server (`serving`) is reached over the network.

    with Device.open("rpc://192.168.1.20:9090") as device:
        device.describe()["cpu"]["features"]
        module = device.load_module(device.upload("net.so"))

TVM's RPC has no authentication and no encryption: use it in a network that you trust.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import tvm

from tvmcompress import cpu
from tvmcompress.errors import TvmcompressError, UsageError, did_you_mean

CONNECT_SECONDS = 10.0
DESCRIBE = "tvmcompress.describe_device"
T = TypeVar("T")


@dataclass
class Device:
    """This machine (`session` is None) or a board behind an RPC session. Use with `with`."""

    address: str
    session: Any = None

    @classmethod
    def local(cls) -> Device:
        return cls("local")

    @classmethod
    def open(cls, text: str, timeout: float = CONNECT_SECONDS, session_timeout: float = 0) -> Device:
        """`local`, `rpc://host:port`, `host:port`, or `name@tracker:port`, connected within `timeout` seconds.

        With `session_timeout` a server ends the session after so many seconds, whatever it is doing. Raises UsageError
        for an address that cannot be one, TvmcompressError when nothing answers.
        """
        text = text.strip()
        if text == "local":
            return cls.local()
        match = re.fullmatch(r"(?:rpc://)?(?:([\w.-]+)@)?(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", text)
        if not match or not 0 < int(match[3]) < 65536:
            near = did_you_mean(text, ["local"])
            raise UsageError(f"device '{text[:80]}': wanted local, rpc://host:port or name@tracker:port{near}")
        name, host, port = match[1], match[2].strip("[]"), int(match[3])
        _reach(text, host, port, timeout)

        def connect() -> Any:
            if not name:
                return tvm.rpc.connect(host, port, session_timeout=session_timeout)
            return tvm.rpc.connect_tracker(host, port).request(name, session_timeout=session_timeout, max_retry=1)

        return cls(text, _within(timeout, connect, text))

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session: the board forgets what was uploaded."""
        self.session = None  # TVM closes a connection with the last reference to it

    @property
    def is_local(self) -> bool:
        return self.address == "local"

    def describe(self) -> dict:
        """`address`, and `cpu` as `cpu.describe()` says it there: architecture, model, cores, caches, features."""
        if self.is_local:
            return {"address": self.address, "cpu": cpu.describe()}
        session = self._open_session()
        try:
            described = json.loads(session.get_function(DESCRIBE)())
        except AttributeError as error:
            raise TvmcompressError(
                f"{self.address}: a plain TVM server; start 'python -m tvmcompress.serving' on the board"
            ) from error
        return {"address": self.address, "cpu": described}

    def upload(self, path: str | os.PathLike) -> str:
        """Puts a file into the board's own temporary folder and returns its name there; local files stay in place."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"upload: no file {path}")
        if self.is_local:
            return str(path)
        self._open_session().upload(str(path), target=path.name)
        return path.name

    def load_module(self, name: str) -> Any:
        """A module of TVM's from a linked library that `upload` returned the name of. It runs code: know its origin."""
        return tvm.runtime.load_module(name) if self.is_local else self._open_session().load_module(name)

    def tvm_device(self) -> Any:
        """TVM's handle on the processor, for tensors and the virtual machine."""
        return tvm.cpu() if self.is_local else self._open_session().cpu()

    def _open_session(self) -> Any:
        if self.session is None:
            raise UsageError(f"device {self.address} is closed")
        return self.session


def _reach(text: str, host: str, port: int, timeout: float) -> None:
    """Fails early and clearly where nobody listens; TVM itself retries for a minute."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TvmcompressError(f"device {text}: cannot connect: {reason}; is its server running?") from error


def _within(seconds: float, call: Callable[[], T], text: str) -> T:
    """The result of `call`, which may hang: TVM has no time limit of its own on a handshake."""
    result: list[T] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            result.append(call())
        except Exception as error:  # whatever it is, it belongs to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        said = str(failure[0]).strip().splitlines() or [type(failure[0]).__name__]
        raise TvmcompressError(f"device {text}: {said[-1][:200]}") from failure[0]
    if not result:
        raise TvmcompressError(f"device {text}: no answer within {seconds:g} s; is it a TVM RPC server?")
    return result[0]
