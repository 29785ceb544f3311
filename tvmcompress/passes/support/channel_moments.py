"""Means, mean squares and covariances of channels over samples."""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import tvm

from tvmcompress.passes.support.calibration import Calibration, extremes, with_outputs

Place = tuple[str, int]  # a tensor's name, and an axis
MOST = 2048  # channels whose covariance is kept: 32 MB
ROWS = 1 << 14  # positions of a sample that a covariance is taken from


@dataclass
class Moments:
    """Of one tensor, along one axis, over all other axes and all samples."""

    axis: int
    joint: bool  # the covariance too
    count: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rows: int = 0
    products: np.ndarray | None = None
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, array: np.ndarray) -> None:
        flat = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis]).astype(np.float64)
        if not self.count:
            self.total, self.squares, self.sums = (np.zeros(flat.shape[1]) for _ in range(3))
        self.count += len(flat)
        self.total += flat.sum(0)
        self.squares += np.square(flat).sum(0)
        if self.joint and flat.shape[1] <= MOST:
            some = flat[:: -(-len(flat) // ROWS)]
            self.rows += len(some)
            self.sums += some.sum(0)
            self.products = some.T @ some + (0 if self.products is None else self.products)

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def square(self) -> np.ndarray:
        return self.squares / self.count

    @property
    def covariance(self) -> np.ndarray | None:
        if self.products is None:
            return None
        mean = self.sums / self.rows
        return self.products / self.rows - np.outer(mean, mean)


def observe(mod: tvm.IRModule, wanted: Collection[Place], samples: Calibration, joint: bool) -> dict[Place, Moments]:
    """The moments of tensors, each along an axis. Raises SampleError for NaN or infinity."""
    found = {(name, axis): Moments(axis, joint) for name, axis in wanted}
    if not found:
        return found
    names = sorted({name for name, _ in found})
    run = samples.executor(with_outputs(mod, names))
    for number, sample in enumerate(samples.stream("measuring channels")):
        arrays = dict(zip(names, run(sample)))
        for (name, _), moments in found.items():
            extremes(arrays[name], name, number)
            moments.add(arrays[name])
    del run
    gc.collect()  # a virtual machine refers to itself, and it holds all weights
    return found
