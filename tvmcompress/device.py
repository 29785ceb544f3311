"""Device: where code runs. This machine, or a board on which `tvmcompress device serve` runs.

    with Device.open("192.168.1.20:9090", ssh="pi@192.168.1.20") as device:
        device.describe()["cpu"]["features"]
        module = device.load_module(device.upload("net.so"))

A board is leased while it is open: nobody else can use it. TVM's RPC has no authentication and no encryption, so a
board listens to its own machine alone, and is reached through SSH or TLS (`tunnels`).
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tvmcompress import conditions, cpu
from tvmcompress.errors import TvmcompressError, UsageError, did_you_mean
from tvmcompress.tunnels import Route, Tunnels
from tvmcompress.wire import BoardError, Control, Tracker, Unreachable

CONNECT_SECONDS = 10.0
LEASE_SECONDS = 3600.0
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Of a board: `name` is its key at the tracker, or empty; `text` is what errors call it."""

    host: str
    port: int
    name: str = ""

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.name}@{host}:{self.port}" if self.name else f"{host}:{self.port}"


@dataclass
class Device:
    """This machine (`session` is None) or a board behind an RPC session. Use with `with`."""

    address: str
    session: Any = None
    control: Control | None = None
    tunnels: Tunnels | None = field(default=None, repr=False)

    @classmethod
    def local(cls) -> Device:
        return cls("local")

    @classmethod
    def open(
        cls, text: str, timeout: float = CONNECT_SECONDS, session_timeout: float = 0, route: Route | None = None
    ) -> Device:
        """`local`, `[NAME@]HOST:PORT` of a board, or `NAME@HOST:PORT` of a tracker; leased within `timeout` seconds.

        With `session_timeout` a server ends the session after so many seconds, whatever it is doing. `route`: through
        SSH or TLS. Raises UsageError for an address that cannot be one, BoardError when nothing answers, when the
        board is in use, or when it has not the name.
        """
        if text.strip() == "local":
            return cls.local()
        import tvm

        tunnels = Tunnels(route or Route(), timeout)
        try:
            control, address, key = lease_one(find(text, tunnels, timeout), tunnels, timeout)
            try:
                host, port = tunnels.to(address.host, address.port)
                named = f"{key} -name={secrets.token_hex(4)}"
                session = within(
                    timeout, lambda: tvm.rpc.connect(host, port, named, session_timeout=session_timeout), address.text
                )
            except BaseException:
                control.close()
                raise
        except BaseException:
            tunnels.close()
            raise
        return cls(text.strip(), session, control, tunnels)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends session and lease: the board forgets what was uploaded."""
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.tunnels is not None:
            self.tunnels.close()
        # TVM closes a connection with the last reference to it, and holds Python's lock while it waits for the other
        # side, which a tunnel of this process is: so that is closed before.
        self.session = None

    @property
    def is_local(self) -> bool:
        return self.address == "local"

    def describe(self) -> dict:
        """`address`; `cpu` as `cpu.describe()` says it there: architecture, model, cores, caches, features; `emulated`:
        whether its times mean nothing."""
        if self.is_local:
            return {"address": self.address, "cpu": cpu.describe(), "emulated": conditions.emulated()}
        self._open_session()
        assert self.control is not None
        status = self.control.status
        return {"address": self.address, "cpu": status["cpu"], "emulated": bool(status["emulated"])}

    def upload(self, path: str | os.PathLike) -> str:
        """Puts a file into the session's own folder and returns its name there; local files stay in place."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"upload: no file {path}")
        if self.is_local:
            return str(path)
        self._open_session().upload(str(path), target=path.name)
        return path.name

    def load_module(self, name: str) -> Any:
        """A module of TVM's from a linked library that `upload` returned the name of. It runs code: know its origin."""
        import tvm

        return tvm.runtime.load_module(name) if self.is_local else self._open_session().load_module(name)

    def function(self, name: str) -> Any:
        """A function that the board's server offers; raises BoardError for one that it has not, an older server's."""
        try:
            return self._open_session().get_function(name)
        except AttributeError as error:
            raise BoardError(f"device {self.address}: its server is older than this client; update it") from error

    def tvm_device(self) -> Any:
        """TVM's handle on the processor, for tensors and the virtual machine."""
        import tvm

        return tvm.cpu() if self.is_local else self._open_session().cpu()

    def _open_session(self) -> Any:
        if self.session is None:
            raise UsageError(f"device {self.address} is closed")
        return self.session


def parse(text: str) -> Address:
    """`[rpc://][NAME@]HOST:PORT`; raises UsageError."""
    match = re.fullmatch(r"(?:rpc://)?(?:([\w.-]+)@)?(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", text.strip())
    if not match or not 0 < int(match[3]) < 65536:
        near = did_you_mean(text, ["local"])
        raise UsageError(f"device '{text[:80]}': wanted local, HOST:PORT of a board or NAME@HOST:PORT{near}")
    return Address(match[2].strip("[]"), int(match[3]), match[1] or "")


def find(text: str, tunnels: Tunnels, seconds: float) -> list[Address]:
    """The boards that a text names: one, or with a name all that a tracker knows by it. Raises BoardError for none."""
    address = parse(text)
    if not address.name:
        return [address]
    known = registered(address, tunnels, seconds)
    if known is None:
        return [address]
    found = [board for board in known if board.name == address.name]
    if not found:
        names = sorted({board.name for board in known})
        near = did_you_mean(address.name, names) or (f"; it knows {', '.join(names[:8])}" if names else "")
        raise BoardError(
            f"tracker {address.host}:{address.port} knows no board '{address.name}'{near or '; nor another'}"
        )
    return found


def registered(address: Address, tunnels: Tunnels, seconds: float) -> list[Address] | None:
    """What a tracker at this address knows; None when it is no tracker but something else that listens."""
    if tunnels.route.ssh:
        host, port = tunnels.to(address.host, address.port)
    else:
        host, port = address.host, address.port
    try:
        tracker = Tracker(host, port, min(seconds, 5.0), address.text, tunnels.route.context())
    except Unreachable:
        raise
    except BoardError:
        return None
    try:
        # A board that registered from the tracker's own machine is seen there as this machine's.
        return [
            Address(address.host if at in ("127.0.0.1", "::1", "localhost") else at, number, key)
            for key, at, number in tracker.boards()
        ]
    finally:
        tracker.close()


def survey(addresses: Sequence[str], route: Route | None = None, seconds: float = 5.0) -> list[dict]:
    """What is known of the boards at addresses, each a board's or a tracker's: address, architecture, model, cores,
    tvm, emulated, owner (of its lease, or empty); and error, where one does not answer."""
    rows: list[dict] = []
    with Tunnels(route or Route(), seconds) as tunnels:
        for text in addresses:
            address = parse(text)
            try:
                known = registered(address, tunnels, seconds)
            except BoardError as error:
                rows.append({"address": address.text, "error": str(error)})
                continue
            named = [one for one in ([address] if known is None else known) if address.name in ("", one.name)]
            rows += [surveyed(one, tunnels, seconds) for one in named]
    return rows


def surveyed(address: Address, tunnels: Tunnels, seconds: float) -> dict:
    try:
        control = connect(address, tunnels, seconds)
    except BoardError as error:
        return {"address": address.text, "error": str(error)}
    control.close()
    status, described = control.status, control.status["cpu"]
    row = {name: described[name] for name in ("architecture", "model", "cores")}
    row |= {"tvm": status["versions"]["tvm"], "emulated": status["emulated"], "conditions": status["conditions"]}
    return {"address": address.text, **row, "owner": (status["lease"] or {}).get("owner", ""), "error": ""}


def connect(address: Address, tunnels: Tunnels, seconds: float) -> Control:
    """A board that answers, and that has the name."""
    control = Control(*tunnels.to(address.host, address.port), seconds, address.text)
    if address.name and control.status["name"] not in ("", address.name):
        control.close()
        raise BoardError(f"device {address.text}: the board there is '{control.status['name']}'")
    return control


def lease(control: Control, holder: str, seconds: float) -> str:
    """The key for sessions. Raises BoardError when somebody else has the board."""
    answer = control.request("lease", holder=holder, owner=owner(), seconds=seconds)
    if "key" not in answer:
        left = f" for up to {answer['for_s']:.0f} s more" if answer.get("for_s") else ""
        raise BoardError(f"device {control.name}: in use by {answer.get('held_by')}{left}")
    return str(answer["key"])


def lease_one(addresses: list[Address], tunnels: Tunnels, seconds: float) -> tuple[Control, Address, str]:
    """The first of several boards that is free, waiting for one as long as `seconds`; the first error when none is."""
    holder, deadline = secrets.token_hex(8), time.monotonic() + seconds
    while True:
        errors: list[TvmcompressError] = []
        for address in addresses:
            try:
                control = connect(address, tunnels, seconds)
                try:
                    return control, address, lease(control, holder, LEASE_SECONDS)
                except BaseException:
                    control.close()
                    raise
            except BoardError as error:
                errors.append(error)
        if time.monotonic() + 1 > deadline or not any("in use" in str(error) for error in errors):
            raise errors[0]
        time.sleep(0.5)


def owner() -> str:
    """Who holds a lease, in words."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def within(seconds: float, call: Callable[[], T], text: str) -> T:
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
        raise BoardError(f"device {text}: {said[-1][:200]}") from failure[0]
    if not result:
        raise BoardError(f"device {text}: no answer within {seconds:g} s")
    return result[0]
