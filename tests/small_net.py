"""A small network for the tests of targets: a convolution, an activation and a matrix product, seeded."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.ir import graph


def small_net():
    """The program, and its inputs: float32 (1, 3, 8, 8) to (1, 10)."""
    random = np.random.default_rng(7)
    weight = random.standard_normal((8, 3, 3, 3), np.float32) * 0.2
    dense = random.standard_normal((8 * 8 * 8, 10), np.float32) * 0.05

    def body(rewriter, x):
        y = rewriter.emit(relax.op.nn.conv2d(x, graph.const(weight), padding=1))
        y = rewriter.emit(relax.op.nn.relu(y))
        y = rewriter.emit(relax.op.reshape(y, (1, 512)))
        return [rewriter.emit(relax.op.matmul(y, graph.const(dense)))]

    return graph.program([("x", (1, 3, 8, 8), "float32")], body), random.standard_normal((1, 3, 8, 8), np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    module, _ = small_net()
    weight, dense = (
        graph.value(c) for b in graph.bindings(module) for c in graph.constants_of(b.value) if c.ty.ndim > 1
    )
    padded = np.pad(x[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    convolved = np.einsum("chwij,ocij->ohw", windows, weight)
    return np.maximum(convolved, 0).reshape(1, -1) @ dense
