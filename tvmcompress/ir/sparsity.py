"""How sparse a weight is, and in which pattern its zeros come.

A weight is looked at as a matrix (outputs, inputs), the inputs of a convolution in the order (kh, kw, ic). Blocks and
groups along the inputs never cross from one tap (a place of the kernel, ic inputs) to the next.

A pattern must explain the zeros: what it allows to be other than zero holds all of the other weights, nearly all zeros
lie outside, and it is nearly full. So zeros at random are no pattern, and zeros that rounding to integers adds inside a
block do not hide one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# (outputs, inputs), the largest first.
BLOCKS = ((16, 16), (16, 4), (8, 8), (8, 4), (16, 1), (1, 16), (4, 4), (8, 1), (1, 8), (4, 1), (1, 4))
GROUPS = (4, 8, 16)  # the M of N:M
EXPLAINED = 0.9  # of all zeros, those that a pattern must account for
FULL = 0.85  # density of what a pattern leaves
FEWEST = 16  # groups; in fewer, N:M may be chance
FEW_ZEROS = 0.95  # density above which zeros are chance, and nothing is to be gained by them
LEAST_SIDE = 4  # of a matrix with a pattern; in one row every zero is a column of zeros


@dataclass(frozen=True)
class Sparsity:
    """density: share of weights that are not zero. pattern: "dense", "unstructured", "channels" (rows or columns that
    are all zeros), "2:4" or another N:M (of M inputs in a row at most N), "blocks" of `block` (outputs, inputs), or
    "kernels", blocks that go through all taps.
    """

    density: float
    pattern: str = "dense"
    block: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.pattern} {self.block[0]}x{self.block[1]}" if self.block else self.pattern


def matrix_of(weight: np.ndarray, channel: int, inner: int) -> np.ndarray:
    """A weight as (outputs, inputs): `channel` is its axis of outputs, `inner` that of inputs, taps come before these.

    (O, I, kh, kw) -> (O, kh * kw * I); (K, N) -> (N, K). A view where that is possible.
    """
    return np.moveaxis(weight, (channel, inner), (0, -1)).reshape(weight.shape[channel], -1)


def weight_of(matrix: np.ndarray, shape: tuple[int, ...], channel: int, inner: int) -> np.ndarray:
    """The inverse of `matrix_of`, for a weight of `shape`."""
    moved = np.moveaxis(np.empty(shape, np.bool_), (channel, inner), (0, -1)).shape
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), (0, -1), (channel, inner)))


def sparsity(matrix: np.ndarray, tap: int = 0) -> Sparsity:
    """What is to be said of a matrix (outputs, inputs); `tap`: inputs of one tap, 0 for all of them."""
    alive = matrix != 0
    kept, size = int(np.count_nonzero(alive)), alive.size
    if kept == size:
        return Sparsity(1.0)
    density = kept / size
    if kept == 0:
        return Sparsity(0.0, "channels")
    if min(alive.shape) < LEAST_SIDE:
        return Sparsity(density, "unstructured")
    taps = alive.reshape(len(alive), -1, tap or alive.shape[1])  # (outputs, taps, inputs of one)
    if explains(kept, size, of_channels(taps)):
        return Sparsity(density, "channels")
    for block in BLOCKS:
        if block[0] <= taps.shape[0] and block[1] <= taps.shape[2] and explains(kept, size, of_blocks(taps, block)):
            through = taps.shape[1] > 1 and explains(kept, size, of_blocks(taps, block, through=True))
            return Sparsity(density, "kernels" if through else "blocks", block)
    return Sparsity(density, n_of_m(taps, kept) or "unstructured")


def explains(kept: int, size: int, left: int) -> bool:
    """Whether a pattern that leaves `left` of `size` weights fits a matrix with `kept` that are not zero."""
    return size - left >= EXPLAINED * (size - kept) and kept >= FULL * left


def of_channels(taps: np.ndarray) -> int:
    """How many weights lie in rows and in channels of inputs that are not all zeros."""
    rows, columns = taps.any(axis=(1, 2)), taps.any(axis=0).any(axis=0)
    return int(rows.sum()) * int(columns.sum()) * taps.shape[1]


def of_blocks(taps: np.ndarray, block: tuple[int, int], through: bool = False) -> int:
    """How many weights lie in blocks that are not all zeros; `through`: in blocks of all taps."""
    kept = np.asarray(taps.any(axis=1, keepdims=True)) if through else taps
    alive = joined(joined(kept, 0, block[0]), 2, block[1])
    rows, columns = sizes(taps.shape[0], block[0]), sizes(taps.shape[2], block[1])
    return int(rows @ alive.sum(axis=1) @ columns) * (taps.shape[1] if through else 1)


def n_of_m(taps: np.ndarray, kept: int) -> str:
    """The tightest N:M that holds, or an empty string."""
    found = []
    for m in GROUPS:
        counts = joined(taps.view(np.uint8), 2, m)
        n = int(counts.max())
        left = int(np.minimum(sizes(taps.shape[2], m), n).sum()) * taps.shape[0] * taps.shape[1]
        if n < m <= taps.shape[2] and counts.size >= FEWEST and explains(kept, taps.size, left):
            found.append((n / m, m, n))
    return "{2}:{1}".format(*min(found)) if found else ""


def joined(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Sums of `size` neighbours along an axis, the last of fewer; of booleans, whether one of them is true.

    By slices: reductions over an axis as short as this take NumPy ten times as long.
    """
    array = np.moveaxis(array, axis, 0)
    total = array[::size].copy()
    for i in range(1, size):
        part = array[i::size]
        total[: len(part)] += part
    return np.moveaxis(total, 0, axis)


def sizes(length: int, size: int) -> np.ndarray:
    """Of the pieces that `joined` makes of an axis."""
    return np.diff(np.append(np.arange(0, length, size), length))
