"""Steps that make bit patterns easier to pack, each with its way back.

    mask     the elements that are zero, as a mask of bits, and the others; -0.0 is not zero, for its sign is a bit
    palette  up to 256 distinct values, and for each element its place among them in 1, 2, 4 or 8 bits
    delta    each element less the one before, modulo its width: small where integers ascend
    shuffle  the first byte of every element, then the second …: signs and exponents come together (HDF5, Blosc)

A step takes values to streams of bytes and to values, which the next step takes; what is left after the last is a
stream too. Values are unsigned integers of 1, 2, 4 or 8 bytes in one dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WIDTHS = (1, 2, 4, 8)  # bytes of an element
MOST = 256  # entries of a palette
SOME = 1 << 16  # elements looked at in one go

Values = np.ndarray
Streams = Iterator[np.ndarray]
Rest = Callable[[int, int], Values]  # (elements, bytes of each) -> what the later steps took


class Step(NamedTuple):
    """`split` gives None where the step is of no use; `join` raises ValueError for streams that `split` never makes."""

    split: Callable[[Values], tuple[list[np.ndarray], Values] | None]
    join: Callable[[Streams, int, int, Rest], Values]


def split(values: Values, steps: Sequence[str]) -> list[np.ndarray] | None:
    """The streams of bytes that `steps` make of values; None when one of them is of no use."""
    streams: list[np.ndarray] = []
    for name in steps:
        taken = STEPS[name].split(values)
        if taken is None:
            return None
        streams += taken[0]
        values = taken[1]
    return [*streams, values.view(np.uint8)]


def join(streams: Sequence[np.ndarray], steps: Sequence[str], count: int, width: int) -> Values:
    """The `count` values of `width` bytes that `split` made these streams of. Raises ValueError."""
    given = iter(streams)
    values = _join(given, steps, count, width)
    if next(given, None) is not None:
        raise ValueError("it has parts too many")
    return values


def _join(streams: Streams, steps: Sequence[str], count: int, width: int) -> Values:
    if not steps:
        return _next(streams, count * width).view(f"u{width}")
    return STEPS[steps[0]].join(streams, count, width, lambda c, w: _join(streams, steps[1:], c, w))


def _next(streams: Streams, size: int | None = None) -> np.ndarray:
    found = next(streams, None)
    if found is None:
        raise ValueError("it has parts too few")
    if size is not None and found.size != size:
        raise ValueError(f"a part of it has {found.size:,} bytes, wanted {size:,}")
    return found


# mask -----------------------------------------------------------------------------------------------------------------


def _split_mask(values: Values) -> tuple[list[np.ndarray], Values]:
    there = values != 0
    return [np.packbits(there)], values[there]


def _join_mask(streams: Streams, count: int, width: int, rest: Rest) -> Values:
    there = np.unpackbits(_next(streams, -(-count // 8)), count=count).view(bool)
    values = np.zeros(count, f"u{width}")
    some = rest(int(np.count_nonzero(there)), width)
    if some.size:
        np.place(values, there, some)  # in a third of the time of an assignment
    return values


# palette --------------------------------------------------------------------------------------------------------------


def _split_palette(values: Values) -> tuple[list[np.ndarray], Values] | None:
    palette, where = indexed(values)
    if not palette.size or bits_of(palette.size) >= 8 * values.itemsize:
        return None
    return [palette.view(np.uint8)], pack(where, bits_of(palette.size))


def _join_palette(streams: Streams, count: int, width: int, rest: Rest) -> Values:
    stored = _next(streams)
    if not 0 < stored.size <= MOST * width or stored.size % width:
        raise ValueError(f"its palette has {stored.size:,} bytes")
    palette = stored.view(f"u{width}")
    bits = bits_of(palette.size)
    where = unpack(rest(-(-count * bits // 8), 1), bits, count)
    if count and where.max() >= palette.size:
        raise ValueError("it takes values that are not in its palette")
    return palette[where]


def indexed(values: Values) -> tuple[Values, np.ndarray]:
    """The distinct values, ascending, and where each value is among them; nothing when they are more than MOST."""
    known, missing = values[:0], values
    where = np.empty(0, np.uint8)
    while missing.size:
        known = np.union1d(known, missing[:: max(1, missing.size // SOME)])
        if known.size > MOST:
            return known[:0], where[:0]
        where = places(values, known)
        missing = values[known[where] != values]
    return known, where


def places(values: Values, palette: Values) -> np.ndarray:
    """Where each value is in a palette, or would be."""
    found = np.empty(values.size, np.uint8)
    for start in range(0, values.size, SOME):
        some = np.searchsorted(palette, values[start : start + SOME])
        found[start : start + SOME] = np.minimum(some, palette.size - 1)
    return found


def bits_of(count: int) -> int:
    """Bits for one of so many places; they never lie across bytes."""
    return next(bits for bits in (1, 2, 4, 8) if count <= 1 << bits)


def pack(small: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below 2**bits, the first in the lowest bits of the first byte."""
    per = 8 // bits
    rows = np.zeros((-(-small.size // per), per), np.uint8)
    rows.reshape(-1)[: small.size] = small
    packed = np.zeros(len(rows), np.uint8)
    for i in range(per):
        packed |= rows[:, i] << (bits * i)
    return packed


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` of the numbers that `pack` packed."""
    per = 8 // bits
    rows = np.empty((packed.size, per), np.uint8)
    for i in range(per):
        rows[:, i] = (packed >> (bits * i)) & (2**bits - 1)
    return rows.reshape(-1)[:count]


# delta ----------------------------------------------------------------------------------------------------------------


def _split_delta(values: Values) -> tuple[list[np.ndarray], Values]:
    return [], np.diff(values, prepend=values.dtype.type(0))


def _join_delta(streams: Streams, count: int, width: int, rest: Rest) -> Values:
    return np.cumsum(rest(count, width), dtype=f"u{width}")


# shuffle --------------------------------------------------------------------------------------------------------------


def _split_shuffle(values: Values) -> tuple[list[np.ndarray], Values] | None:
    if values.itemsize == 1:
        return None
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)
    return list(planes[:-1]), planes[-1]


def _join_shuffle(streams: Streams, count: int, width: int, rest: Rest) -> Values:
    rows = np.empty((count, width), np.uint8)
    for i in range(width - 1):
        rows[:, i] = _next(streams, count)
    rows[:, width - 1] = rest(count, 1)
    return rows.reshape(-1).view(f"u{width}")


STEPS = {
    "mask": Step(_split_mask, _join_mask),
    "palette": Step(_split_palette, _join_palette),
    "delta": Step(_split_delta, _join_delta),
    "shuffle": Step(_split_shuffle, _join_shuffle),
}
