"""Small networks for the tests of targets: a convolution, an activation and a matrix product, seeded."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.ir import graph, ops
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec


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


def small_int8_model() -> tuple[Model, np.ndarray]:
    """The same kind of network in the quantized form, as a Model, and its input: float32 (1, 8, 8, 8) to (1, 10)."""
    random = np.random.default_rng(3)
    weight = random.integers(-127, 128, (16, 8, 3, 3), np.int8)
    dense = random.integers(-127, 128, (1024, 10), np.int8)

    def rounded(r, x, scale, zero):
        return r.emit(ops.dequantize(r.emit(ops.quantize(x, scale, zero, "uint8")), scale, zero))

    def weights(r, values, axis):
        n = values.shape[axis]
        scales, zeros = np.full(n, 0.01, np.float32), np.zeros(n, np.int8)
        return r.emit(ops.dequantize(graph.const(values), scales, zeros, axis=axis))

    def body(r, x):
        y = r.emit(relax.op.nn.conv2d(rounded(r, x, 0.02, 128), weights(r, weight, 0), padding=1))
        y = rounded(r, r.emit(relax.op.nn.relu(y)), 0.03, 0)
        y = r.emit(relax.op.matmul(r.emit(relax.op.reshape(y, (1, 1024))), weights(r, dense, 1)))
        return [rounded(r, y, 1.0, 128)]

    module = graph.program([("x", (1, 8, 8, 8), "float32")], body)
    specs = (TensorSpec("x", (1, 8, 8, 8), "float32"),), (TensorSpec("y", (1, 10), "float32"),)
    model = Model(module, *specs, Source("small", "test", 0, ""))
    return model, random.standard_normal((1, 8, 8, 8), np.float32)
