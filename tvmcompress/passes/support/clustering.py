"""Few values for many weights: k-means in one dimension, and values shared by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmcompress.ir import ops

MOST_VALUES = 1 << 22  # of a larger layer so many, evenly spaced, decide where the centres lie
ROUNDS = 300
QUANTILES = 4096


@dataclass(frozen=True)
class Ordered:
    """Values in ascending order, float64; `mass` and `moment` are running sums of weights and of weight times value,
    one longer, so that those of a stretch are differences."""

    values: np.ndarray
    mass: np.ndarray
    moment: np.ndarray

    def between(self, sums: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """What lies in each cell that `bounds`, ascending, divide the line into; a bound belongs to the lower one."""
        return np.diff(sums[np.concatenate([[0], np.searchsorted(self.values, bounds, "right"), [len(self.values)]])])


def ordered(values: np.ndarray, weights: np.ndarray | None) -> Ordered:
    if weights is None:
        values = np.sort(values).astype(np.float64)
        return Ordered(values, np.arange(len(values) + 1.0), np.concatenate([[0.0], np.cumsum(values)]))
    order = np.argsort(values, kind="stable")
    values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)
    sums = (np.concatenate([[0.0], np.cumsum(terms)]) for terms in (weights, weights * values))
    return Ordered(values, *sums)


def kmeans(values: np.ndarray, clusters: int, weights: np.ndarray | None = None, zero: bool = False) -> np.ndarray:
    """At most `clusters` ascending centres, float64, of little weighted squared distance to finite `values`.

    With `zero` one of them is zero and stays so. Lloyd's rounds start from evenly spaced centres (the best start that
    Han et al. found), from quantiles, and from the cube root of the density, which is best where there are many centres
    (Panter and Dite, "Quantization distortion in pulse-count modulation", 1951); the best of the three is taken. As
    values are sorted once, a round takes no longer than a few searches for each centre.
    """
    values = values.reshape(-1)
    step = -(-values.size // MOST_VALUES)
    values, weights = values[::step], None if weights is None else np.broadcast_to(weights, values.shape)[::step]
    if zero:
        kept = values != 0
        values, weights, clusters = values[kept], None if weights is None else weights[kept], clusters - 1
    line = ordered(values, weights)
    few = line.values[np.diff(line.values, prepend=-np.inf) > 0]
    if len(few) <= clusters:
        return with_zero(few, zero)
    found = [lloyd(line, with_zero(start, zero), zero) for start in starts(line, clusters)]
    return max(found, key=lambda centres: gain(line, centres))


def with_zero(centres: np.ndarray, zero: bool) -> np.ndarray:
    return np.unique(np.append(centres, 0.0)) if zero else np.unique(centres)


def starts(line: Ordered, clusters: int) -> list[np.ndarray]:
    """Evenly spaced centres, quantiles, and centres as dense as the cube root of the values."""
    shares = (np.arange(clusters) + 0.5) / clusters
    levels = np.linspace(0, line.mass[-1], QUANTILES + 1)
    at = np.searchsorted(line.mass[1:], levels, side="left").clip(max=len(line.values) - 1)
    quantiles = line.values[at]
    spread = np.concatenate([[0.0], np.cumsum(np.diff(quantiles) ** (2 / 3))])
    even = np.linspace(line.values[0], line.values[-1], clusters)
    middle = np.interp(shares, np.linspace(0, 1, QUANTILES + 1), quantiles)
    return [even, middle, np.interp(shares * spread[-1], spread, quantiles)]


def lloyd(line: Ordered, centres: np.ndarray, zero: bool) -> np.ndarray:
    """Every centre to the mean of the values nearest to it, until none moves; zero stays."""
    for _ in range(ROUNDS):
        bounds = (centres[1:] + centres[:-1]) / 2
        mass, moment = line.between(line.mass, bounds), line.between(line.moment, bounds)
        moved = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), centres)
        if zero:
            moved[centres == 0] = 0
        moved = np.unique(moved)  # one that nothing is nearest to may be where another comes to lie
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def gain(line: Ordered, centres: np.ndarray) -> float:
    """By how much the squared distance to the nearest centre is less than that to zero, weighted and summed."""
    bounds = (centres[1:] + centres[:-1]) / 2
    mass, moment = line.between(line.mass, bounds), line.between(line.moment, bounds)
    return float((2 * centres * moment - centres * centres * mass).sum())


def nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """uint8 indices of the ascending `centres`; a zero gets a centre that is zero, if there is one."""
    indices = np.searchsorted((centres[1:] + centres[:-1]) / 2, values).astype(np.uint8)
    at = np.flatnonzero(centres == 0)
    if len(at):
        indices[values == 0] = at[0]
    return indices


@dataclass(frozen=True)
class Shared:
    """Weights as indices into a codebook: `indices` uint8 (books, n), `codebook` (books, 2^bits)."""

    indices: np.ndarray
    codebook: np.ndarray
    bits: int

    @property
    def values(self) -> np.ndarray:
        return np.take_along_axis(self.codebook, self.indices, 1)

    @property
    def nbytes(self) -> int:
        """As stored."""
        books, n = self.indices.shape
        return books * -(-n * self.bits // 8) + self.codebook.nbytes

    @property
    def used(self) -> int:
        """Values in use, of the book that uses most."""
        return max(len(np.unique(row)) for row in self.indices)


def share(rows: np.ndarray, clusters: int, weights: np.ndarray | None, zeros: bool) -> Shared:
    """Every row of `rows` (books, n) with a codebook of its own; float32 or, rounded, int8, as `rows` are.

    With `zeros` a row that holds zeros has zero in its codebook, and these stay exactly zero.
    """
    books = []
    for i, row in enumerate(rows):
        centres = kmeans(row, clusters, None if weights is None else weights[i], zeros and bool((row == 0).any()))
        books.append(np.unique((np.rint(centres) if rows.dtype == np.int8 else centres).astype(rows.dtype)))
    entries = next(n for n in ops.INDEX_BITS if n >= max(len(book) for book in books))
    indices = np.stack([nearest(row, book.astype(np.float32)) for row, book in zip(rows, books)])
    codebook = np.stack([np.pad(book, (0, entries - len(book))) for book in books])
    return Shared(indices, codebook, ops.INDEX_BITS[entries])


def hashed_means(weight: np.ndarray, buckets: int) -> np.ndarray:
    """float32 (buckets,): the mean of the weights that `ir.ops.bucket` puts together; zero where there are none."""
    at = ops.bucket(np.arange(weight.size, dtype=np.int64), buckets)
    sums = np.bincount(at, weights=weight.reshape(-1).astype(np.float64), minlength=buckets)
    return (sums / np.maximum(np.bincount(at, minlength=buckets), 1)).astype(np.float32)
