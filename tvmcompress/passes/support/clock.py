"""What layers take on a target. A pass knows no targets: who does provides it (`compression`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvmcompress.passes.support.low_rank import Part, Place


@dataclass(frozen=True)
class Shape:
    """A layer of float32: rows or images, pixels along each axis that enter and leave, channels, taps and groups."""

    rows: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    inputs: int
    outputs: int
    taps: tuple[int, ...]
    groups: int


Clock = Callable[[Sequence[Shape]], float]
_makers: list[Callable[[str], Clock]] = []


def provide(maker: Callable[[str], Clock]) -> None:
    """`maker`: from a target's name to what estimates the time of layers there, in any unit."""
    _makers[:] = [maker]


def clock(target: str) -> Callable[[Place, Sequence[Part]], float]:
    """The time of a chain of layers."""
    told = _makers[0](target)
    return lambda place, parts: told(shapes(place, parts))


def shapes(place: Place, parts: Sequence[Part]) -> list[Shape]:
    found, dims = [], list(place.before)
    for part in parts:
        outputs, inputs, *taps = part.shape
        before = tuple(dims)
        for axis in part.axes:
            dims[axis] = place.after[axis]
        found.append(Shape(place.rows, before, tuple(dims), inputs * part.groups, outputs, tuple(taps), part.groups))
    return found
