"""Products of two inputs in bfloat16, zero points of weights, groups of any size; the rest is in test_properties."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from tests import reference
from tests.lower.tools import build, need
from tvmcompress import linking
from tvmcompress.ir import graph, ops
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.lower import host
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target


def first(array: np.ndarray) -> np.ndarray:
    """Channels last to channels first."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def relax_conv(x, weight, conv: Conv2d):
    return relax.op.nn.conv2d(
        x, weight, list(conv.strides), list(conv.padding), list(conv.dilation), conv.groups, "NCHW", "OIHW"
    )


@pytest.mark.parametrize("name", ["native", "x86-64-v3"])
@pytest.mark.parametrize("shapes", [((3, 5, 8), (3, 8, 9)), ((2, 33, 15), (2, 15, 40)), ((1, 8, 64), (6, 64, 196))])
def test_product_of_two_inputs_in_bfloat16(shapes, name: str) -> None:
    """Even and odd depths: only whole steps go to the dot product. The products of bfloat16 are exact in float32."""
    need(name)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(ml_dtypes.bfloat16).astype(np.float32) for s in shapes)

    def body(rw, x, y):
        x, y = (rw.emit(relax.op.astype(v, "bfloat16")) for v in (x, y))
        return [rw.emit(relax.op.astype(rw.emit(relax.op.matmul(x, y, "float32")), "float32"))]

    lowered = build(graph.program([("a", a.shape, "float32"), ("b", b.shape, "float32")], body), name)
    assert not lowered.fallbacks
    (got,) = machine(lowered, linking.linker(Target.load(name)))([a, b])
    np.testing.assert_allclose(got, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-4)


def test_weights_with_a_zero_point() -> None:
    """uint8 weights of any zero point, as QLinearConv may have them."""
    conv = Conv2d(1, 6, 6, 8, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (1, 6, 6, 8)).astype(np.uint8)
    weight = rng.integers(0, 256, (16, 8, 3, 3)).astype(np.uint8)

    def body(rw, q):
        data = rw.emit(ops.dequantize(q, 1.0, 7))
        taps = rw.emit(ops.dequantize(graph.const(weight), 1.0, 200))
        return [relax.op.astype(rw.emit(relax_conv(data, taps, conv)), "int32")]

    program = graph.program([("x", (1, 8, 6, 6), "uint8")], body)
    (got,) = host.executor(program)([first(x)])
    wanted = reference.conv2d(x.astype(np.int64) - 7, weight.astype(np.int64) - 200, conv)
    np.testing.assert_array_equal(got, first(wanted))


@pytest.mark.parametrize("name", ["native", "x86-64-v3"])
@pytest.mark.parametrize(("group_in", "group_out"), [(12, 136), (8, 200), (16, 331), (5, 96), (4, 17)])
def test_groups_of_any_size(name: str, group_in: int, group_out: int) -> None:
    """Where the blocks of a group hang over into the next one's channels, too: no schedule but the family's."""
    need(name)
    conv = Conv2d(1, 9, 10, 3 * group_in, 3 * group_out, (3, 1), (1, 1), (1, 0, 1, 0), (1, 1), 3)
    rng = np.random.default_rng(group_out)
    x = rng.standard_normal((conv.n, conv.h, conv.w, conv.c)).astype(np.float32)
    weight = rng.standard_normal((conv.oc, group_in, *conv.kernel)).astype(np.float32)
    bias = rng.standard_normal((1, conv.oc, 1, 1)).astype(np.float32)

    def body(rw, data):
        y = rw.emit(relax_conv(data, graph.const(weight), conv))
        return [relax.op.nn.relu(rw.emit(relax.op.add(y, graph.const(bias))))]

    lowered = build(graph.program([("x", first(x).shape, "float32")], body), name)
    assert not lowered.fallbacks
    (got,) = machine(lowered, linking.linker(Target.load(name)))([first(x)])
    wanted = np.maximum(first(reference.conv2d(x, weight, conv)) + bias, 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_gates_times_an_image() -> None:
    """What follows the product of one pixel is as large as the image: a pass of its own, with all its channels."""
    rng = np.random.default_rng(0)
    gate, image = rng.standard_normal((1, 24, 1, 1)), rng.standard_normal((1, 40, 9, 11))
    weight = rng.standard_normal((40, 24, 1, 1)) / 5
    gate, image, weight = (v.astype(np.float32) for v in (gate, image, weight))

    def body(rw, g, x):
        y = rw.emit(relax.op.sigmoid(rw.emit(relax.op.nn.conv2d(g, graph.const(weight)))))
        return [relax.op.multiply(x, y)]

    lowered = build(graph.program([("g", gate.shape, "float32"), ("x", image.shape, "float32")], body), "native")
    assert not lowered.fallbacks
    (got,) = machine(lowered, linking.linker(Target.load("native")))([gate, image])
    wanted = image / (1 + np.exp(-np.einsum("nchw,ocij->nohw", gate.astype(np.float64), weight)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
