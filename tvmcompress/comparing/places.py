"""Where a model is compared: what `--on` names, and how it is reached."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tvmcompress import cpu
from tvmcompress.device import Device, find
from tvmcompress.errors import TvmcompressError, UsageError
from tvmcompress.target import Target
from tvmcompress.tunnels import Route, Tunnels

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})")
ASK_S = 5.0
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|\[?::1\]?")


@dataclass(frozen=True)
class Place:
    """A target, and where its code runs: `address` is `local` or HOST:PORT, reached by `route`. `name`: as given."""

    name: str
    target: Target
    address: str = "local"
    route: Route = field(default_factory=Route)

    @property
    def is_local(self) -> bool:
        return self.address == "local"

    @property
    def host(self) -> str:
        """The machine at its address, empty for this one: what runs on one at once would disturb each other."""
        if self.is_local:
            return ""
        host = self.address.rpartition(":")[0]
        if self.route.ssh:
            return f"{host} behind {self.route.ssh}"
        return "" if LOOPBACK.fullmatch(host) else host


def place(text: str, route: Route | None = None) -> Place:
    """`native`, `local` or a target that runs here; or TARGET@HOST:PORT. Raises UsageError, TargetError."""
    name = text.strip()
    target, at, address = name.rpartition("@")
    if at:
        found = ADDRESS.fullmatch(address)
        if not target or not found or not 0 < int(found[2]) < 65536:
            raise UsageError(f"--on {name[:80]}: wanted TARGET@HOST:PORT, such as rpi4@192.168.1.20:9090")
        return Place(name, Target.load(target), address, route or Route())
    if name.startswith("rpc://") or (ADDRESS.fullmatch(name) and "-" not in name.partition(":")[0]):
        raise UsageError(f"--on {name[:80]}: which target is it? say TARGET@{name.removeprefix('rpc://')}")
    found_target = Target.load("native" if name == "local" else name)
    for build in found_target.each:
        if build.arch == cpu.architecture() and not cpu.missing(build.features_needed()):
            return Place("native" if name == "local" else name, found_target)
    raise UsageError(f"--on {name[:80]}: does not run on this machine; say where: {name[:80]}@HOST:PORT")


def places(texts: Sequence[str], route: Route | None = None) -> tuple[Place, ...]:
    """All of them. Raises UsageError when there are none, or one comes twice."""
    if not texts:
        raise UsageError("nowhere to run: say --on native, or --on TARGET@HOST:PORT")
    found = tuple(place(text, route) for text in texts)
    for i, one in enumerate(found):
        for other in found[:i]:
            if (one.address, one.target) == (other.address, other.target) or one.name == other.name:
                raise UsageError(f"--on {texts[i]}: the same as --on {texts[found.index(other)]}; name each place once")
    return found


def machine(one: Place) -> str:
    """The machine that runs it, empty for this one. Of a board that a tracker knows it is the board's, not the
    tracker's; of one that cannot be asked its address says which."""
    if one.is_local:
        return ""
    try:
        with Tunnels(one.route, ASK_S) as tunnels:
            hosts = {board.host for board in find(device_text(one), tunnels, ASK_S)}
    except TvmcompressError:  # the visit will say so
        return one.host
    # Any of several boards may come: it is leased, so that no other visit gets the same one.
    return replace(one, address=f"{hosts.pop()}:0").host if len(hosts) == 1 else one.name


@contextmanager
def leased(one: Place) -> Iterator[tuple[Device, dict[str, Any]]]:
    """The device of a place, held until the end, and what it says of itself."""
    with Device.open(device_text(one), route=one.route) as device:
        yield device, device.describe()


def device_text(one: Place) -> str:
    """What `Device.open` takes: with the target's name, that of a board at a tracker, where it can be one."""
    target = one.name.rpartition("@")[0]
    return f"{target}@{one.address}" if re.fullmatch(r"[\w.-]+", target) else one.address
