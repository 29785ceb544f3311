"""Convolutions and matrix products on random shapes, against NumPy: integers bit by bit, floats within 1e-5."""

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


def random_conv(seed: int) -> Conv2d:
    """Odd sizes, one pixel, one channel, primes, strides, dilation, lopsided padding, groups and depthwise."""
    rng = np.random.default_rng(seed)
    kernel = tuple(int(k) for k in rng.choice([1, 1, 2, 3, 3, 5], 2))
    dilation = tuple(int(d) for d in rng.choice([1, 1, 2], 2))
    strides = tuple(int(s) for s in rng.choice([1, 1, 2, 3], 2))
    padding = tuple(int(p) for p in rng.integers(0, 3, 4)) if rng.random() < 0.7 else (0, 0, 0, 0)
    least = [max(1, (k - 1) * d + 1 - padding[i] - padding[i + 2]) for i, (k, d) in enumerate(zip(kernel, dilation))]
    h, w = (int(rng.integers(low, low + 19)) for low in least)
    kind = rng.choice(["plain", "plain", "grouped", "depthwise"])
    c = int(rng.choice([1, 2, 3, 4, 7, 8, 16, 17, 24, 32, 40]))
    oc = int(rng.choice([1, 3, 8, 10, 16, 24, 31, 48, 65]))
    groups = 1
    if kind == "grouped":
        groups = int(rng.choice([2, 3, 4]))
        c, oc = groups * max(1, c // groups), groups * max(1, oc // groups)
    if kind == "depthwise":
        groups, oc = c, c * int(rng.choice([1, 1, 2]))
    n = int(rng.choice([1, 1, 1, 2, 3]))
    return Conv2d(n, h, w, c, oc, kernel, strides, padding, dilation, groups)


def first(array: np.ndarray) -> np.ndarray:
    """Channels last to channels first."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def relax_conv(x, weight, conv: Conv2d):
    return relax.op.nn.conv2d(
        x, weight, list(conv.strides), list(conv.padding), list(conv.dilation), conv.groups, "NCHW", "OIHW"
    )


@pytest.mark.parametrize("seed", range(25))
def test_float_convolution(seed: int) -> None:
    conv = random_conv(seed)
    rng = np.random.default_rng(1000 + seed)
    x = rng.standard_normal((conv.n, conv.h, conv.w, conv.c)).astype(np.float32)
    weight = rng.standard_normal((conv.oc, conv.c // conv.groups, *conv.kernel)).astype(np.float32)
    bias = rng.standard_normal((1, conv.oc, 1, 1)).astype(np.float32)

    def body(rw, data):
        y = rw.emit(relax_conv(data, graph.const(weight), conv))
        return [relax.op.nn.relu(rw.emit(relax.op.add(y, graph.const(bias))))]

    program = graph.program([("x", first(x).shape, "float32")], body)
    (got,) = host.executor(program)([first(x)])
    wanted = np.maximum(first(reference.conv2d(x, weight, conv)) + bias, 0)
    scale = np.sqrt(conv.c // conv.groups * conv.kernel[0] * conv.kernel[1])
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-5 * max(scale, 1)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_integer_convolution(seed: int, kind: str) -> None:
    conv = random_conv(seed)
    rng = np.random.default_rng(2000 + seed)
    info = np.iinfo(kind)
    x = rng.integers(info.min, info.max + 1, (conv.n, conv.h, conv.w, conv.c)).astype(kind)
    weight = rng.integers(-128, 128, (conv.oc, conv.c // conv.groups, *conv.kernel)).astype(np.int8)
    scale, zero = np.float32(0.05), int(rng.integers(info.min, info.max + 1))
    scales = rng.uniform(0.001, 0.02, conv.oc).astype(np.float32)
    out_scale, out_zero = np.float32(0.5), int(rng.integers(info.min, info.max + 1))

    def body(rw, q):
        data = rw.emit(ops.dequantize(q, scale, zero))
        taps = rw.emit(ops.dequantize(graph.const(weight), scales, np.zeros(conv.oc), axis=0))
        y = rw.emit(relax_conv(data, taps, conv))
        return [ops.quantize(rw.emit(relax.op.nn.relu(y)), out_scale, out_zero, kind)]

    program = graph.program([("x", first(x).shape, kind)], body)
    (got,) = host.executor(program)([first(x)])
    acc = reference.conv2d(x, weight, conv, zero) - zero * weight.astype(np.int64).sum((1, 2, 3))
    combined = (np.float64(scale) * scales.astype(np.float64)).astype(np.float32)
    factor = (combined.astype(np.float64) / np.float64(out_scale)).astype(np.float32)
    wanted = first(reference.requantize(acc, factor, out_zero, kind, relu=True))
    np.testing.assert_array_equal(got, wanted)


SHAPES = [(1, 1, 1), (1, 7, 5), (3, 64, 10), (197, 48, 65), (128, 33, 96), (5, 256, 1000), (2, 3, 17, 20, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_product(shape: tuple[int, ...]) -> None:
    *rows, k, n = shape
    rng = np.random.default_rng(k)
    x = rng.standard_normal((*rows, k)).astype(np.float32)
    weight = rng.standard_normal((k, n)).astype(np.float32)
    program = graph.program([("x", x.shape, "float32")], lambda rw, data: [relax.op.matmul(data, graph.const(weight))])
    (got,) = host.executor(program)([x])
    assert np.abs(got - x.astype(np.float64) @ weight).max() <= 1e-5 * np.sqrt(k)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_integer_product(shape: tuple[int, ...], kind: str) -> None:
    """Sums alone: dequantized by one, cast to int32, as ConvInteger and MatMulInteger have it."""
    *rows, k, n = shape
    rng = np.random.default_rng(k)
    info = np.iinfo(kind)
    x = rng.integers(info.min, info.max + 1, (*rows, k)).astype(kind)
    weight = rng.integers(-128, 128, (k, n)).astype(np.int8)
    zero = 3

    def body(rw, q):
        data = rw.emit(ops.dequantize(q, 1.0, zero))
        taps = rw.emit(ops.dequantize(graph.const(weight), 1.0, 0))
        return [relax.op.astype(rw.emit(relax.op.matmul(data, taps)), "int32")]

    program = graph.program([("x", x.shape, kind)], body)
    (got,) = host.executor(program)([x])
    np.testing.assert_array_equal(got, (x.astype(np.int64) - zero) @ weight.astype(np.int64))


@pytest.mark.parametrize("shapes", [((4, 5, 7), (4, 7, 9)), ((2, 3, 33, 16), (2, 3, 16, 40)), ((1, 8, 20), (6, 20, 3))])
def test_product_of_two_inputs(shapes) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    program = graph.program(
        [("a", a.shape, "float32"), ("b", b.shape, "float32")], lambda rw, x, y: [relax.op.matmul(x, y)]
    )
    (got,) = host.executor(program)([a, b])
    assert np.abs(got - a.astype(np.float64) @ b).max() <= 1e-4


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


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_transposed_convolution(seed: int, kind: str) -> None:
    """Against torch's definition, in NumPy: each input pixel adds its weights to a window of the output."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 2]))
    ic, og = groups * int(rng.integers(1, 9)), int(rng.integers(1, 9))
    kernel = [int(k) for k in rng.integers(1, 5, 2)]
    strides = [int(s) for s in rng.integers(1, 4, 2)]
    padding = [int(rng.integers(0, k // 2 + 1)) for k in kernel] * 2
    extra = [int(rng.integers(0, s)) for s in strides]
    h, w = (int(v) for v in rng.integers(2, 8, 2))
    integer = kind == "uint8"
    x = (
        rng.integers(0, 256, (1, ic, h, w)).astype(np.uint8)
        if integer
        else rng.standard_normal((1, ic, h, w)).astype(np.float32)
    )
    weight = rng.integers(-128, 128, (ic, og, *kernel)).astype(np.int8)
    zero = 9 if integer else 0

    def body(rw, data):
        taps = rw.emit(ops.dequantize(graph.const(weight), 1.0, 0))
        data = rw.emit(ops.dequantize(data, 1.0, zero)) if integer else data
        y = relax.op.nn.conv2d_transpose(data, taps, strides, padding, extra, 1, groups)
        return [relax.op.astype(rw.emit(y), "int32") if integer else y]

    program = graph.program([("x", x.shape, kind)], body)
    (got,) = host.executor(program)([x])
    full = np.zeros(
        (1, og * groups, (h - 1) * strides[0] + kernel[0] + extra[0], (w - 1) * strides[1] + kernel[1] + extra[1])
    )
    for g in range(groups):
        data = x[:, g * ic // groups : (g + 1) * ic // groups].astype(np.float64) - zero
        taps = weight[g * ic // groups : (g + 1) * ic // groups].astype(np.float64)
        for i in range(h):
            for j in range(w):
                window = np.einsum("nc,cokl->nokl", data[:, :, i, j], taps)
                rows, cols = (
                    slice(i * strides[0], i * strides[0] + kernel[0]),
                    slice(j * strides[1], j * strides[1] + kernel[1]),
                )
                full[:, g * og : (g + 1) * og, rows, cols] += window
    wanted = full[:, :, padding[0] : full.shape[2] - padding[0], padding[1] : full.shape[3] - padding[1]]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-2 if not integer else 0)


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
