"""Which steps suit an array: those after which a sample of it has the least entropy, byte by byte.

Weights hardly ever repeat, so that this comes within a few percent of what a coder makes of them, in a hundredth of its
time. Of several that are as good as equal the one that leaves the coder the fewest bytes is taken: it unpacks fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tvmcompress.coding.steps import SOME, Values, split

RUN, RUNS = 1 << 12, 8  # elements in a row that are looked at, and how often
MANY = 0.1  # the share of zeros from which a mask is worth trying
AS_GOOD = 1.1  # times the least bytes
PAYS = 0.1  # the least share that a coder must take off a stream


class Choice(NamedTuple):
    """Steps, and the share of an array's bytes that is expected to remain."""

    steps: tuple[str, ...]
    share: float


def ranked(values: Values, integers: bool) -> list[Choice]:
    """The choices, the best first. `integers`: whether values are numbers that may ascend, and not bits of floats."""
    some = sample(values)
    found = []
    for steps in candidates(some, integers):
        streams = split(some, steps)
        if streams is not None:
            found.append(Choice(steps, sum(map(packed_bytes, streams)) / max(some.nbytes, 1)))
    least = min(choice.share for choice in found)
    as_good = [choice for choice in found if choice.share <= AS_GOOD * least]
    return as_good + sorted((c for c in found if c not in as_good), key=lambda c: c.share)


def candidates(some: Values, integers: bool) -> Iterator[tuple[str, ...]]:
    """Sequences of steps; those that leave a coder the fewest bytes first."""
    planes = ("shuffle",) if some.itemsize > 1 else ()
    if np.count_nonzero(some) <= (1 - MANY) * some.size:
        yield "mask", "palette"
        yield "mask", *planes
    yield ("palette",)
    if integers and planes:
        yield "delta", *planes
    if planes:
        yield planes
    yield ()


def sample(values: Values) -> Values:
    """Runs of elements from all over an array; all of a small one."""
    if values.size <= RUN * RUNS:
        return values
    starts = np.linspace(0, values.size - RUN, RUNS).astype(np.int64)
    return np.concatenate([values[start : start + RUN] for start in starts])


def packed_bytes(stream: np.ndarray) -> float:
    """What a coder is expected to make of a stream; all of it where that does not pay."""
    counts = np.zeros(256, np.int64)
    for start in range(0, stream.size, SOME):
        counts += np.bincount(stream[start : start + SOME], minlength=256)
    there = counts[counts > 0]
    least = float(there @ np.log2(stream.size / there)) / 8 if there.size else 0.0
    return least if least <= (1 - PAYS) * stream.size else float(stream.size)
