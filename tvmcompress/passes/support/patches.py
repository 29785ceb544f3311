"""What the outputs of a layer are products with: rows of inputs, in the order of `ir.sparsity.matrix_of`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tvmcompress.ir import graph
from tvmcompress.passes.support.layers import Layer


@dataclass(frozen=True)
class Patches:
    """How rows are cut from the tensor that a layer reads. Layers with equal Patches see equal rows.

    tensor: its name; channel: its axis of input channels; kernel: empty for a matrix product, whose rows are all
    vectors along that axis.
    """

    tensor: str
    channel: int
    inputs: int  # in a row
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def rows(self, array: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
        """(groups, rows, inputs), at most `most` rows drawn at random."""
        if not self.kernel:
            rows = np.moveaxis(array, self.channel, -1).reshape(-1, array.shape[self.channel])
            return rows[drawn(len(rows), most, random)][None]
        windows = self.windows(np.moveaxis(array, self.channel, 1))
        places = (windows.shape[0], *windows.shape[2 : 2 + len(self.kernel)])
        sample, *position = np.unravel_index(drawn(int(np.prod(places)), most, random), places)
        patches = np.moveaxis(windows, 1, -1)[(sample, *position)]  # (rows, *kernel, channels)
        grouped = patches.reshape(len(patches), int(np.prod(self.kernel)), self.groups, -1)
        return grouped.transpose(2, 0, 1, 3).reshape(self.groups, len(patches), -1)

    def windows(self, array: np.ndarray) -> np.ndarray:
        """(N, C, *spatial) as a view (N, C, *positions, *kernel)."""
        dims = range(len(self.kernel))
        before, after = self.padding[: len(dims)], self.padding[len(dims) :]
        padded = np.pad(array, [(0, 0), (0, 0), *zip(before, after)])
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation))
        windows = sliding_window_view(padded, reach, axis=tuple(2 + i for i in dims))
        steps = tuple(slice(None, None, s) for s in (*self.strides, *self.dilation))
        return windows[(slice(None), slice(None), *steps)]


def drawn(count: int, most: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(random.choice(count, most, replace=False))


def patches_of(layer: Layer) -> Patches | None:
    """None for layers that are no plain product with a matrix: transposed convolutions, stacks of matrices."""
    weight = graph.shape(layer.call.args[layer.weight])
    if layer.kind == "matmul":
        if len(weight) != 2:
            return None
        return Patches(layer.live[0].name, -1 if layer.weight else -2, weight[layer.inner])
    if layer.kind != "conv":
        return None
    attrs, layout = layer.call.attrs, str(layer.call.attrs.kernel_layout)
    kernel = tuple(dim for dim, axis in zip(weight, layout) if axis not in "OI")
    numbers = [tuple(int(i) for i in getattr(attrs, name)) for name in ("strides", "padding", "dilation")]
    inputs = weight[layer.inner] * int(np.prod(kernel))
    return Patches(layer.live[0].name, layer.input_axis, inputs, int(attrs.groups), kernel, *numbers)


@dataclass
class Moments:
    """Mean and second moment of a layer's rows, gathered sample by sample; an observer of `calibration.observe`.

    Sums are taken of what differs from the first sample's mean, so that a great mean does not drown the spread.
    """

    patches: Patches
    most: int  # rows of a sample
    count: int = 0
    origin: np.ndarray = field(init=False)  # (groups, inputs)
    total: np.ndarray = field(init=False)
    products: np.ndarray = field(init=False)  # (groups, inputs, inputs)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def bytes(self) -> int:
        """Of memory when all is gathered."""
        return 4 * self.patches.groups * self.patches.inputs**2

    def add(self, array: np.ndarray, low: float, high: float) -> None:
        rows = self.patches.rows(array, self.most, self.random)
        if not self.count:
            self.origin = rows.mean(axis=1, dtype=np.float64)
            self.total = np.zeros(self.origin.shape)
            self.products = np.zeros((*self.origin.shape, self.patches.inputs), np.float32)
        rows = rows - self.origin[:, None].astype(np.float32)
        self.total += rows.sum(axis=1, dtype=np.float64)
        self.products += rows.transpose(0, 2, 1) @ rows
        self.count += rows.shape[1]

    def mean(self) -> np.ndarray:
        """(groups, inputs)"""
        return self.origin + self.total / self.count

    def covariance(self, group: int) -> np.ndarray:
        """(inputs, inputs) in float64"""
        shift = self.total[group] / self.count
        return self.products[group].astype(np.float64) / self.count - np.outer(shift, shift)

    def second(self, group: int) -> np.ndarray:
        """E[x x^T], (inputs, inputs) in float64"""
        mean = self.mean()[group]
        return self.covariance(group) + np.outer(mean, mean)
