"""A layer's weight as a product of smaller ones: SVD by NumPy, Tucker-2 and CP by tensorly.

A weight is (outputs, inputs, taps of each axis …), a matrix has no taps. The classes have the same methods: `search`
finds ranks, `parts` says what layers of such ranks would look like, `weights` makes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tvmcompress.errors import MissingDependencyError

Ranks = tuple[int, ...]
Fits = Callable[[Ranks], bool]
TINY = 1e-12
ROUNDS = 50  # of alternating least squares
SWEEPS = 3  # over the modes of a Tucker decomposition, which starts from that of each mode by itself


@dataclass(frozen=True)
class Part:
    """One layer of a chain: the shape of its weight, the axes of the kernel that it is responsible for (their taps,
    strides, padding and dilation), and its groups."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    groups: int = 1


class Factors(Protocol):
    name: str

    def search(self, energy: float, fits: Fits, step: int, lower: bool) -> Ranks | str:
        """The least ranks that keep a share `energy` of the squared weights, rounded up to multiples of `step`.

        Where these do not fit: with `lower` the greatest that do, else, or when none do, the reason.
        """
        ...

    def parts(self, ranks: Ranks) -> list[Part]: ...

    def weights(self, ranks: Ranks) -> tuple[list[np.ndarray], float]:
        """float32, in order of execution, in the shapes of `parts`; and the share of the squared weight kept."""
        ...


def principal(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, greatest first and none negative, and eigenvectors in columns."""
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def rank_of(values: np.ndarray, energy: float) -> int:
    """How many of the descending `values` it takes for a share `energy` of their sum; 1 at least."""
    sums = np.cumsum(values)
    return min(len(values), 1 + int(np.count_nonzero(sums < energy * sums[-1] * (1 - TINY))))


def rounded(rank: int, step: int, most: int) -> int:
    return min(most, -(-rank // step) * step)


def greatest(most: int, fits: Callable[[int], bool]) -> int:
    """The greatest number up to `most` that fits, when all smaller ones do too; 0 when none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def too_large(ranks: Ranks) -> str:
    return f"rank {text(ranks)} would not save enough multiply-accumulates"


def text(ranks: Ranks) -> str:
    return " x ".join(map(str, ranks))


class Svd:
    """W (O, I k) -> V_r (V_r^T W): the r directions of the outputs that hold most, be it of the weights themselves or,
    with `moments` = E[y y^T] of the layer's outputs y (O, O), of what they are on samples.

    The first factor is scaled so that what lies between the two has one size in every channel: it may be quantized.
    """

    name = "svd"

    def __init__(self, weight: np.ndarray, moments: np.ndarray | None = None) -> None:
        self.weight = weight
        self.matrix = weight.reshape(len(weight), -1).astype(np.float64)
        self.values, self.vectors = principal(self.matrix @ self.matrix.T if moments is None else moments)
        self.most = min(self.matrix.shape)

    def search(self, energy: float, fits: Fits, step: int, lower: bool) -> Ranks | str:
        rank = rounded(rank_of(self.values, energy), step, self.most)
        if fits((rank,)):
            return (rank,)
        found = greatest(rank, lambda r: fits((r,))) if lower else 0
        found = found // step * step or found
        return (found,) if found else too_large((rank,))

    def parts(self, ranks: Ranks) -> list[Part]:
        outputs, inputs, *taps = self.weight.shape
        axes = tuple(range(len(taps)))
        return [Part((ranks[0], inputs, *taps), axes), Part((outputs, ranks[0], *(1 for _ in taps)))]

    def weights(self, ranks: Ranks) -> tuple[list[np.ndarray], float]:
        vectors = self.vectors[:, : ranks[0]]
        inside = vectors.T @ self.matrix
        scale = np.sqrt(self.values[: ranks[0]])
        scale = np.where(scale > TINY * max(scale[0], TINY), scale, 1.0)[:, None]
        kept = share(np.square(inside).sum(), np.square(self.matrix).sum())
        return shaped([inside / scale, vectors * scale.T], self.parts(ranks)), kept


class Tucker:
    """W (O, I, k) -> core (o, i, k) with a matrix before it (i, I) and behind it (O, o)."""

    name = "tucker"

    def __init__(self, weight: np.ndarray) -> None:
        self.library = tensorly()
        self.weight = weight.astype(np.float64)
        self.values, self.vectors = [], []
        for mode in (0, 1):
            rows = np.moveaxis(self.weight, mode, 0).reshape(weight.shape[mode], -1)
            values, vectors = principal(rows @ rows.T)
            self.values.append(values)
            self.vectors.append(vectors)

    def ranks(self, energy: float, step: int) -> Ranks:
        """Either mode may lose half of what may be lost: together they lose no more."""
        each = 1 - (1 - energy) / 2
        taps = math.prod(self.weight.shape[2:])
        behind, before = (rounded(rank_of(values, each), step, len(values)) for values in self.values)
        return min(behind, before * taps), min(before, behind * taps)

    def search(self, energy: float, fits: Fits, step: int, lower: bool) -> Ranks | str:
        ranks = self.ranks(energy, step)
        if fits(ranks):
            return ranks
        shares = 1000
        found = greatest(shares, lambda n: fits(self.ranks(energy * n / shares, step))) if lower else 0
        return self.ranks(energy * found / shares, step) if found else too_large(ranks)

    def parts(self, ranks: Ranks) -> list[Part]:
        outputs, inputs, *taps = self.weight.shape
        ones = [1] * len(taps)
        middle = Part((*ranks, *taps), tuple(range(len(taps))))
        return [Part((ranks[1], inputs, *ones)), middle, Part((outputs, ranks[0], *ones))]

    def weights(self, ranks: Ranks) -> tuple[list[np.ndarray], float]:
        library = self.library
        factors = [vectors[:, :rank] for vectors, rank in zip(self.vectors, ranks)]
        start = library.tenalg.multi_mode_dot(self.weight, factors, modes=[0, 1], transpose=True)
        (core, (behind, before)), _ = library.decomposition.partial_tucker(
            self.weight, rank=list(ranks), modes=[0, 1], n_iter_max=SWEEPS, init=(start, factors)
        )
        scale = norms(core.reshape(len(core), -1).T)
        kept = share(np.square(core).sum(), np.square(self.weight).sum())
        core = core / scale.reshape(-1, *(1 for _ in core.shape[1:]))
        return shaped([before.T, core, behind * scale], self.parts(ranks)), kept


class Cp:
    """W (O, I, k, …) -> a sum of `rank` products of vectors: (R, I), a depthwise convolution for each axis, (O, R)."""

    name = "cp"

    def __init__(self, weight: np.ndarray) -> None:
        self.library = tensorly()
        self.weight = weight.astype(np.float64)
        self.found: dict[int, tuple[list[np.ndarray], float]] = {}

    def search(self, energy: float, fits: Fits, step: int, lower: bool) -> Ranks | str:
        """Whether a rank keeps enough shows only when it was tried: halved between one step and what fits."""
        most = greatest(self.weight.size // max(self.weight.shape), lambda r: fits((r,))) // step
        if not most:
            return too_large((step,))
        if not lower and self.decompose(most * step)[1] < energy:
            kept = self.decompose(most * step)[1]
            return f"rank {most * step}, the greatest that saves enough, keeps only {kept:.0%} of the squared weights"
        fails = greatest(most - 1, lambda n: self.decompose(n * step)[1] < energy)
        return ((fails + 1) * step,)

    def parts(self, ranks: Ranks) -> list[Part]:
        outputs, inputs, *taps = self.weight.shape
        (rank,), ones = ranks, [1] * len(taps)
        along = []
        for axis, size in enumerate(taps):
            along.append(Part((rank, 1, *(size if i == axis else 1 for i in range(len(taps)))), (axis,), rank))
        return [Part((rank, inputs, *ones)), *along, Part((outputs, rank, *ones))]

    def weights(self, ranks: Ranks) -> tuple[list[np.ndarray], float]:
        (behind, before, *along), kept = self.decompose(ranks[0])
        scale = np.ones(ranks[0])
        inner = []
        for factor in (before, *along):
            size = norms(factor)
            inner.append((factor / size).T)
            scale = scale * size
        return shaped([*inner, behind * scale], self.parts(ranks)), kept

    def decompose(self, rank: int) -> tuple[list[np.ndarray], float]:
        """Factors (size of each axis, rank), and the share of the squared weight that they keep."""
        if rank not in self.found:
            size = float(np.linalg.norm(self.weight)) or 1.0
            unit = self.weight / size
            parafac = self.library.decomposition.parafac
            with warnings.catch_warnings():  # that more components are wanted than an axis is long
                warnings.simplefilter("ignore")
                # A trace of regularisation: components may become equal, and their matrix singular.
                found = parafac(unit, rank, n_iter_max=ROUNDS, tol=1e-5, random_state=0, l2_reg=1e-9)
            lost = np.square(unit - self.library.cp_to_tensor(found)).sum()
            self.found[rank] = [found.factors[0] * size, *found.factors[1:]], 1 - float(lost)
        return self.found[rank]


def norms(columns: np.ndarray) -> np.ndarray:
    """The length of each column, 1 for one of zeros."""
    found = np.linalg.norm(columns, axis=0)
    return np.where(found > 0, found, 1.0)


def share(kept: float, whole: float) -> float:
    return float(kept / whole) if whole > 0 else 1.0


def shaped(factors: Sequence[np.ndarray], parts: Sequence[Part]) -> list[np.ndarray]:
    return [np.ascontiguousarray(f, np.float32).reshape(part.shape) for f, part in zip(factors, parts)]


def tensorly() -> Any:
    try:
        import tensorly.decomposition
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "factorize wants tensorly for kernels larger than 1x1: pip install 'tvmcompress[lowrank]', or method 'svd'"
        ) from error
    return tensorly


@dataclass(frozen=True)
class Place:
    """Where a layer computes: how many rows or images, and along each axis the pixels that enter and leave."""

    rows: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def macs(self, parts: Sequence[Part]) -> int:
        """Multiply-accumulates of a chain of layers."""
        dims, total = list(self.before), 0
        for part in parts:
            for axis in part.axes:
                dims[axis] = self.after[axis]
            total += self.rows * math.prod(dims) * math.prod(part.shape)
        return total
