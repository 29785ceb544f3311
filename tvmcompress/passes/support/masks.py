"""Which weights of a matrix (outputs, inputs) are kept: the greatest, whole blocks, or N of M neighbours.

A score is the magnitude of a weight, or the error that its removal causes; 0 for a weight that is zero already, which
is never kept. A pattern makes a mask of scores, and can be asked for the part of itself that lies in some rows and
columns, where other scores may decide anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NORMS = ("l1", "l2", "max")
SPAN = 128  # columns decided upon together, where the pattern leaves that open


class Pattern(Protocol):
    def mask(self, scores: np.ndarray) -> np.ndarray:
        """True where a weight is kept."""

    def spans(self) -> list[int]:
        """The first column of each range of columns that may be decided upon alone."""

    def part(self, kept: np.ndarray, rows: slice, first: int, last: int) -> Pattern:
        """The pattern of some rows and the columns first … last of a matrix of which `kept` is a mask."""


def greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """True for the `count` greatest of `scores`, of equal ones the first; never for a score of 0."""
    flat = scores.reshape(-1)
    if count >= np.count_nonzero(flat):
        return scores > 0
    if count <= 0:
        return np.zeros(scores.shape, np.bool_)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    mask = flat > least
    mask[np.flatnonzero(flat == least)[: count - np.count_nonzero(mask)]] = True
    return mask.reshape(scores.shape)


def counts(scores: Sequence[np.ndarray], density: float, scope: str) -> list[int]:
    """How many of each layer's scores are kept: the same share of all, or those above one threshold for all layers."""
    if scope == "layer":
        return [max(1, round(density * layer.size)) for layer in scores]
    together = np.concatenate([layer.reshape(-1) for layer in scores])
    kept = greatest(together, max(1, round(density * together.size)))
    ends = np.cumsum([layer.size for layer in scores])[:-1]
    return [int(np.count_nonzero(part)) for part in np.split(kept, ends)]


@dataclass(frozen=True, eq=False)
class Tiling:
    """A matrix of `shape` cut into blocks: the first row and column of each.

    `taps`: of so many parts of the columns, one behind the other, a block takes the same columns.
    """

    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    taps: int = 1

    @classmethod
    def of(cls, shape: tuple[int, int], block: tuple[int, int], height: int, tap: int, through: bool = False) -> Tiling:
        """Blocks that do not cross from `height` rows to the next (the outputs of a group), and either lie within
        `tap` columns (the inputs of a tap) or go `through` all taps. Where they do not divide these, the last ones are
        smaller.
        """
        taps = shape[1] // tap if through else 1
        return cls(shape, starts(shape[0], height, block[0]), starts(shape[1] // taps, tap, block[1]), taps)

    def scores(self, scores: np.ndarray, norm: str = "l1") -> np.ndarray:
        """Of each block: the sum, the sum of squares (as good as its root for what is greater), or the greatest."""
        reduce = np.maximum.reduceat if norm == "max" else np.add.reduceat
        scores = np.square(scores) if norm == "l2" else scores
        if self.taps > 1:
            scores = reduce(scores.reshape(len(scores), self.taps, -1), [0], axis=1)[:, 0]
        if scores.size == self.rows.size * self.columns.size:  # blocks of one
            return scores
        return reduce(reduce(scores, self.rows, axis=0), self.columns, axis=1)

    def spread(self, chosen: np.ndarray) -> np.ndarray:
        """From one value a block to one an element."""
        sides = self.shape[0], self.shape[1] // self.taps
        heights, widths = (np.diff(np.append(s, n)) for s, n in zip((self.rows, self.columns), sides))
        return np.tile(np.repeat(np.repeat(chosen, heights, axis=0), widths, axis=1), (1, self.taps))

    def part(self, rows: slice, first: int, last: int) -> Tiling:
        row_starts = self.rows[(self.rows >= rows.start) & (self.rows < rows.stop)] - rows.start
        if self.taps > 1:
            return Tiling((rows.stop - rows.start, last - first), row_starts, self.columns, self.taps)
        column_starts = self.columns[(self.columns >= first) & (self.columns < last)] - first
        return Tiling((rows.stop - rows.start, last - first), row_starts, column_starts)


@dataclass(frozen=True, eq=False)
class GreatestBlocks:
    """The `count` blocks of the greatest norm."""

    tiling: Tiling
    count: int
    norm: str = "l1"

    def mask(self, scores: np.ndarray) -> np.ndarray:
        return self.tiling.spread(greatest(self.tiling.scores(scores, self.norm), self.count)) & (scores > 0)

    def spans(self) -> list[int]:
        found: list[int] = []
        if self.tiling.taps > 1:
            return [0]
        for start in self.tiling.columns.tolist():
            if not found or start >= found[-1] + SPAN:
                found.append(start)
        return found

    def part(self, kept: np.ndarray, rows: slice, first: int, last: int) -> GreatestBlocks:
        """As many blocks as are kept there."""
        tiling = self.tiling.part(rows, first, last)
        count = np.count_nonzero(tiling.scores(kept[rows, first:last].astype(np.float32), "max"))
        return GreatestBlocks(tiling, int(count))


@dataclass(frozen=True)
class NOfM:
    """Of each `m` neighbours in a row the `n` greatest; a group that the end of a tap cuts short keeps as many."""

    n: int
    m: int
    tap: int
    inputs: int

    def mask(self, scores: np.ndarray) -> np.ndarray:
        taps = scores.reshape(-1, self.tap)
        short = -self.tap % self.m
        groups = np.pad(taps, ((0, 0), (0, short)), constant_values=-1).reshape(-1, self.m)
        first = np.argsort(-groups, axis=1, kind="stable")[:, : self.n]
        kept = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(kept, first, True, axis=1)
        return kept.reshape(len(taps), -1)[:, : self.tap].reshape(scores.shape) & (scores > 0)

    def spans(self) -> list[int]:
        return starts(self.inputs, self.tap, self.m).tolist()

    def part(self, kept: np.ndarray, rows: slice, first: int, last: int) -> NOfM:
        return NOfM(self.n, self.m, last - first, last - first)


def starts(length: int, part: int, size: int) -> np.ndarray:
    """Where pieces of `size` begin in each `part` of `length`; the last of a part may be shorter."""
    return (np.arange(0, length, part)[:, None] + np.arange(0, part, size)).reshape(-1)
