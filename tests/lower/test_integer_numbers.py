"""Quantized operators on random shapes, bit by bit against NumPy's version of the integer form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import dequantized, quantized, random_bytes
from tvmcompress.ir import graph, ops
from tvmcompress.isa import isa_of
from tvmcompress.lower import host
from tvmcompress.lower.integer import integer
from tvmcompress.target import Target

F = np.float32
# (dtype, scale, zero point): the ends of both types, and scales from 1e-6 to 1e3
EDGES = [
    ("uint8", 0.05, 0),
    ("uint8", 0.05, 255),
    ("int8", 0.05, -128),
    ("int8", 0.05, 127),
    ("uint8", 1e-6, 128),
    ("int8", 1e3, 5),
]


def real(q: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return (q.astype(np.int32) - zero).astype(F) * F(scale)


def rounded(x: np.ndarray, scale: float, zero: int, dtype: str) -> np.ndarray:
    """quantize: divide in float32, round half to even, clip."""
    info = np.iinfo(dtype)
    return np.clip(np.rint(x.astype(F) / F(scale)) + zero, info.min, info.max).astype(dtype)


def requantized(sums: np.ndarray, scale, zero: int, dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.clip(np.rint(sums.astype(F) * F(scale)) + zero, info.min, info.max).astype(dtype)


def run(cases) -> None:
    """One program for all cases (input, build, wanted): compiling is what takes the time."""

    def body(rw, *inputs):
        return [rw.emit(build(rw, q)) for q, (_, build, _) in zip(inputs, cases)]

    inputs = [(f"x{i}", x.shape, str(x.dtype)) for i, (x, _, _) in enumerate(cases)]
    results = host.executor(graph.program(inputs, body))([x for x, _, _ in cases])
    for i, (got, (_, _, wanted)) in enumerate(zip(results, cases)):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=f"case {i}")


def image(rng, dtype: str) -> np.ndarray:
    n, c = int(rng.integers(1, 3)), int(rng.choice([1, 3, 8, 17]))
    h, w = (int(v) for v in rng.integers(4, 20, 2))
    return random_bytes((n, c, h, w), dtype, int(rng.integers(1 << 30)))


def test_requantization_between_all_edges() -> None:
    cases = []
    for dtype, scale, zero in EDGES:
        x = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype).reshape(2, 128)
        for out, s, z in EDGES:

            def build(rw, q, scale=scale, zero=zero, s=s, z=z, out=out):
                return quantized(rw, dequantized(rw, q, scale, zero), s, z, out)

            cases.append((x, build, rounded(real(x, scale, zero), s, z, out)))
    run(cases)


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "maximum"])
def test_elementwise_of_two(name: str) -> None:
    rng = np.random.default_rng(0)
    for dtype, scale, zero in EDGES[:4]:
        a = image(rng, dtype)
        b = random_bytes(a.shape, dtype, 7)
        s2, z2, s3, z3 = 0.031, 100, 0.08, 77

        def body(rw, p, q, dtype=dtype, scale=scale, zero=zero, s2=s2, z2=z2, s3=s3, z3=z3):
            x, y = dequantized(rw, p, scale, zero), dequantized(rw, q, s2, z2)
            return [quantized(rw, rw.emit(getattr(relax.op, name)(x, y)), s3, z3, dtype)]

        mod = graph.program([("a", a.shape, dtype), ("b", b.shape, dtype)], body)
        (got,) = host.executor(mod)([a, b])
        if name in ("add", "subtract"):
            exact = getattr(np, name)(real(a, scale, zero).astype(np.float64), real(b, s2, z2)) / np.float64(F(s3)) + z3
            assert np.abs(got - np.clip(exact, np.iinfo(dtype).min, np.iinfo(dtype).max)).max() <= 0.5 + 1e-4
        else:
            wanted = rounded(getattr(np, name)(real(a, scale, zero), real(b, s2, z2)), s3, z3, dtype)
            np.testing.assert_array_equal(got, wanted)


def multiply_add(x: np.ndarray, y: np.float32, z) -> np.ndarray:
    """x * y + z in float32, rounded once: the product of a byte and a float32 is exact in float64."""
    return (x.astype(np.float64) * np.float64(y) + np.asarray(z, np.float64)).astype(F)


@pytest.mark.parametrize("name", ["add", "subtract"])
@pytest.mark.parametrize("seed", range(3))
def test_sums_of_all_pairs_bit_by_bit(name: str, seed: int) -> None:
    """Every pair of bytes, with scales that make ties likely and others: the formula that the kernel documents."""
    if not isa_of(Target.load("native").to_tvm()).fused:
        pytest.skip("this CPU has no fused multiply-add")
    rng = np.random.default_rng(seed)
    a, b = (
        np.ascontiguousarray(v, np.uint8).reshape(1, 16, 64, 64) for v in np.meshgrid(np.arange(256), np.arange(256))
    )
    sa, sb, sc = (F(v) for v in (rng.uniform(0.005, 0.1, 3) if seed else (0.5, 0.25, 1.0)))
    za, zb, zc = (int(v) for v in rng.integers(0, 256, 3))

    def body(rw, p, q):
        total = getattr(relax.op, name)(dequantized(rw, p, float(sa), za), dequantized(rw, q, float(sb), zb))
        return [quantized(rw, rw.emit(total), float(sc), zc)]

    (got,) = host.executor(graph.program([("a", a.shape, "uint8"), ("b", b.shape, "uint8")], body))([a, b])
    ra, rb = sa / sc, (sb if name == "add" else -sb) / sc
    start = F(zc) - multiply_add(np.array(za), ra, rb * F(zb))
    wanted = np.clip(np.rint(multiply_add(a, ra, multiply_add(b, rb, start))), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_batch_norm_between_quantized_tensors_bit_by_bit(seed: int) -> None:
    """A batch norm behind a quantized tensor, its own parameters quantized or not, each step rounded to float32."""
    rng = np.random.default_rng(seed)
    channels = 37
    q = np.ascontiguousarray(
        np.broadcast_to(np.arange(256, dtype=np.uint8), (1, channels, 256)).reshape(1, channels, 16, 16)
    )
    s, z, sy, zy = F(rng.uniform(0.01, 0.1)), int(rng.integers(256)), F(rng.uniform(0.01, 0.1)), int(rng.integers(256))
    gamma8 = random_bytes((channels,), "int8", seed)
    gamma = gamma8.astype(F) * F(0.01)
    beta, mean = (rng.standard_normal(channels).astype(F) for _ in range(2))
    variance, epsilon = rng.uniform(0.5, 2, channels).astype(F), 1e-5

    def body(rw, x):
        scale = rw.emit(ops.dequantize(graph.const(gamma8), 0.01, 0)) if seed else graph.const(gamma)
        others = [graph.const(v) for v in (beta, mean, variance)]
        y = rw.emit(relax.op.nn.batch_norm(dequantized(rw, x, float(s), z), scale, *others, axis=1, epsilon=epsilon))
        y = rw.emit(relax.TupleGetItem(y, 0))
        return [quantized(rw, rw.emit(relax.op.nn.relu(y)), float(sy), zy)]

    (got,) = host.executor(graph.program([("q", q.shape, "uint8")], body))([q])
    factor = gamma * (F(1) / np.sqrt(variance + F(epsilon)))
    form = (1, channels, 1, 1)
    y = (q.astype(F) - F(z)) * s * factor.reshape(form) + (beta - mean * factor).reshape(form)
    wanted = np.clip(np.rint(np.maximum(y, 0) / sy) + F(zy), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concat_of_different_scales(axis: int) -> None:
    rng = np.random.default_rng(axis)
    shapes = [[1, 3, 5, 7], [1, 3, 5, 7], [1, 3, 5, 7]]
    for i, length in enumerate((2, 5, 9)):
        shapes[i][axis] = length
    kinds = [("uint8", 0.05, 0), ("uint8", 0.05, 0), ("int8", 0.031, 127)]
    arrays = [random_bytes(tuple(s), k, int(rng.integers(99))) for s, (k, _, _) in zip(shapes, kinds)]

    def body(rw, *inputs):
        parts = [dequantized(rw, q, s, z) for q, (_, s, z) in zip(inputs, kinds)]
        return [quantized(rw, rw.emit(relax.op.concat(parts, axis)), 0.04, 10)]

    mod = graph.program([(f"x{i}", a.shape, str(a.dtype)) for i, a in enumerate(arrays)], body)
    (got,) = host.executor(mod)(arrays)
    wanted = np.concatenate([real(a, s, z) for a, (_, s, z) in zip(arrays, kinds)], axis)
    np.testing.assert_array_equal(got, rounded(wanted, 0.04, 10, "uint8"))


def windows(x: np.ndarray, size, strides, padding, fill) -> np.ndarray:
    top, left, bottom, right = padding
    wide = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(wide, size, axis=(2, 3))
    return view[:, :, :: strides[0], :: strides[1]]


POOLS = [((2, 2), (2, 2), (0, 0, 0, 0)), ((3, 3), (2, 1), (1, 1, 1, 1)), ((3, 2), (1, 2), (1, 0, 2, 1))]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_max_pooling(dtype: str) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for size, strides, padding in POOLS:
        x, lowest = image(rng, dtype), np.iinfo(dtype).min

        def build(rw, q, size=size, strides=strides, padding=padding):
            return quantized(
                rw, rw.emit(relax.op.nn.max_pool2d(dequantized(rw, q), size, strides, padding)), 0.1, 3, dtype
            )

        cases.append((x, build, windows(x, size, strides, padding, lowest).max((-2, -1))))
    run(cases)


@pytest.mark.parametrize(("dtype", "scale", "zero"), EDGES[:4])
def test_average_pooling(dtype: str, scale: float, zero: int) -> None:
    """Sums of integers, one multiplication; padding counts as zeros."""
    rng = np.random.default_rng(2)
    cases = []
    for size, strides, padding in POOLS:
        x = image(rng, dtype)

        def build(rw, q, size=size, strides=strides, padding=padding):
            y = relax.op.nn.avg_pool2d(dequantized(rw, q, scale, zero), size, strides, padding, count_include_pad=True)
            return quantized(rw, rw.emit(y), 0.03, 9, dtype)

        sums = windows(x.astype(np.int32) - zero, size, strides, padding, 0).sum((-2, -1))
        factor = F(np.float64(F(np.float64(F(scale)) / math.prod(size))) / np.float64(F(0.03)))
        cases.append((x, build, requantized(sums, factor, 9, dtype)))
    x = image(rng, dtype)

    def build_global(rw, q):
        return quantized(rw, rw.emit(relax.op.mean(dequantized(rw, q, scale, zero), [2, 3], True)), 0.03, 9, dtype)

    sums = (x.astype(np.int64) - zero).sum((2, 3), keepdims=True)
    factor = F(np.float64(F(np.float64(F(scale)) / (x.shape[2] * x.shape[3]))) / np.float64(F(0.03)))
    cases.append((x, build_global, requantized(sums, factor, 9, dtype)))
    run(cases)


def test_average_pooling_that_divides_by_what_is_inside() -> None:
    """In float: within one step of the exact average."""
    x = random_bytes((1, 5, 9, 8), "uint8")

    def body(rw, q):
        y = relax.op.nn.avg_pool2d(dequantized(rw, q, 0.05, 30), (3, 3), (2, 2), 1, count_include_pad=False)
        return [quantized(rw, rw.emit(y), 0.05, 30)]

    (got,) = host.executor(graph.program([("x", x.shape, "uint8")], body))([x])
    sums = windows(x.astype(np.float64) - 30, (3, 3), (2, 2), (1, 1, 1, 1), 0).sum((-2, -1))
    count = windows(np.ones(x.shape), (3, 3), (2, 2), (1, 1, 1, 1), 0).sum((-2, -1))
    assert np.abs(got - np.clip(sums / count + 30, 0, 255)).max() <= 0.5 + 1e-4


def test_resize_nearest_moves_bytes() -> None:
    x = random_bytes((2, 3, 5, 7), "uint8")

    def build(rw, q):
        y = relax.op.image.resize2d(
            dequantized(rw, q),
            (10, 21),
            layout="NCHW",
            method="nearest_neighbor",
            coordinate_transformation_mode="asymmetric",
            rounding_method="floor",
        )
        return quantized(rw, rw.emit(y))

    run([(x, build, x.repeat(2, 2).repeat(3, 3))])


def test_resize_linear_is_within_one_step() -> None:
    """Align corners, one axis: linear interpolation between 4 rows, 7 made of them."""
    x = random_bytes((1, 3, 4, 5), "int8")

    def body(rw, q):
        y = relax.op.image.resize2d(
            dequantized(rw, q, 0.1, -3),
            (7, 5),
            layout="NCHW",
            method="linear",
            coordinate_transformation_mode="align_corners",
        )
        return [quantized(rw, rw.emit(y), 0.1, -3, "int8")]

    (got,) = host.executor(graph.program([("x", x.shape, "int8")], body))([x])
    np.testing.assert_array_equal(got[:, :, ::2], x)
    middle = (x[:, :, 1:].astype(int) + x[:, :, :-1]) / 2
    assert np.abs(got[:, :, 1::2] - middle).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("dtype", "scale", "zero"), EDGES[:4])
def test_padding_and_bounds(dtype: str, scale: float, zero: int) -> None:
    x = random_bytes((1, 3, 5, 7), dtype)
    values = real(x, scale, zero)

    def pad(rw, q):
        y = relax.op.nn.pad(dequantized(rw, q, scale, zero), [0, 0, 0, 0, 1, 2, 3, 0])
        return quantized(rw, rw.emit(y), scale, zero, dtype)

    def mirror(rw, q):
        y = relax.op.nn.pad(dequantized(rw, q, scale, zero), [0, 0, 0, 0, 1, 2, 3, 0], "reflect")
        return quantized(rw, rw.emit(y), scale, zero, dtype)

    def relu(rw, q):
        return quantized(rw, rw.emit(relax.op.nn.relu(dequantized(rw, q, scale, zero))), scale, zero, dtype)

    def relu6(rw, q):
        return quantized(rw, rw.emit(relax.op.clip(dequantized(rw, q, scale, zero), 0.0, 6.0)), scale, zero, dtype)

    edges = ((0, 0), (0, 0), (1, 2), (3, 0))
    run(
        [
            (x, pad, np.pad(x, edges, constant_values=np.array(zero, dtype))),
            (x, mirror, np.pad(x, edges, "reflect")),
            (x, relu, rounded(np.maximum(values, 0), scale, zero, dtype)),
            (x, relu6, rounded(np.clip(values, 0, 6), scale, zero, dtype)),
        ]
    )


def constant(value: float):
    return graph.const(F(value))


def hardswish(rw, x):
    gate = rw.emit(relax.op.add(rw.emit(relax.op.multiply(x, constant(1 / 6))), constant(0.5)))
    return relax.op.multiply(x, rw.emit(relax.op.clip(gate, 0.0, 1.0)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


erf = np.vectorize(math.erf)
FUNCTIONS = {
    "sigmoid": (lambda rw, x: relax.op.sigmoid(x), sigmoid),
    "tanh": (lambda rw, x: relax.op.tanh(x), np.tanh),
    "hardswish": (hardswish, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "silu": (lambda rw, x: relax.op.nn.silu(x), lambda x: x * sigmoid(x)),
    "silu of two": (lambda rw, x: relax.op.multiply(x, rw.emit(relax.op.sigmoid(x))), lambda x: x * sigmoid(x)),
    "gelu": (lambda rw, x: relax.op.nn.gelu(x), lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2)))),
    "leaky relu": (lambda rw, x: relax.op.nn.leakyrelu(x, 0.1), lambda x: np.where(x > 0, x, F(0.1) * x)),
    "exp": (lambda rw, x: relax.op.exp(x), np.exp),
    "one by x": (lambda rw, x: relax.op.divide(constant(1), x), lambda x: 1 / x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_by_table(name: str) -> None:
    """All 256 values; a step off is allowed only where the exact value lies between two steps within float's error.

    No NaN or infinity survives: 1 / 0 and exp(large) saturate.
    """
    build, exact = FUNCTIONS[name]
    cases, wanted = [], []
    for dtype, scale, zero in [("uint8", 0.05, 120), ("int8", 0.04, -7), ("int8", 1.5, 0), ("uint8", 0.05, 255)]:
        x = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype).reshape(4, 64)

        def make(rw, q, scale=scale, zero=zero, dtype=dtype):
            return quantized(rw, rw.emit(build(rw, dequantized(rw, q, scale, zero))), 0.03, 4, dtype)

        with np.errstate(all="ignore"):
            steps = exact(real(x, scale, zero).astype(np.float64)) / np.float64(F(0.03)) + 4
        cases.append((x, make))
        wanted.append(np.clip(steps, np.iinfo(dtype).min, np.iinfo(dtype).max))

    def body(rw, *inputs):
        return [rw.emit(make(rw, q)) for q, (_, make) in zip(inputs, cases)]

    inputs = [(f"x{i}", x.shape, str(x.dtype)) for i, (x, _) in enumerate(cases)]
    results = host.executor(graph.program(inputs, body))([x for x, _ in cases])
    for got, steps in zip(results, wanted):
        assert np.abs(got - steps).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_softmax(dtype: str) -> None:
    for shape, scale in [((3, 10), 0.1), ((2, 5, 33), 1e-3), ((1, 1000), 4.0), ((2, 1), 0.5)]:
        x = random_bytes(shape, dtype)

        def body(rw, q, scale=scale):
            return [relax.op.nn.softmax(dequantized(rw, q, scale, 9), -1)]

        (got,) = host.executor(graph.program([("x", shape, dtype)], body))([x])
        power = np.exp((x.astype(np.float64) - x.max(-1, keepdims=True)) * np.float64(F(scale)))
        np.testing.assert_allclose(got, power / power.sum(-1, keepdims=True), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("dtype", "scale", "zero"), EDGES)
def test_products_at_the_edges_of_scales_and_zero_points(dtype: str, scale: float, zero: int) -> None:
    """Bias, ReLU and requantization behind a product; output zero points at both ends."""
    x, w = random_bytes((5, 40), dtype, 1), random_bytes((40, 21), "int8", 2)
    scales = np.geomspace(1e-6, 1e-1, 21).astype(F)
    bias = (np.linspace(-900, 900, 21) * scale * scales).astype(F)
    out_scale = float(scale * 2)

    def body(rw, q):
        taps = rw.emit(ops.dequantize(graph.const(w), scales, np.zeros(21), axis=1))
        y = rw.emit(relax.op.add(rw.emit(relax.op.matmul(dequantized(rw, q, scale, zero), taps)), graph.const(bias)))
        results = [quantized(rw, y, out_scale, z, kind) for kind, z in (("uint8", 0), ("uint8", 255), ("int8", -128))]
        return [*results, quantized(rw, rw.emit(relax.op.nn.relu(y)), out_scale, 127, "int8")]

    results = host.executor(graph.program([("x", x.shape, dtype)], body))([x])
    combined = (np.float64(F(scale)) * scales.astype(np.float64)).astype(F)
    steps = np.rint(bias.astype(np.float64) / combined).astype(np.int64)
    sums = (x.astype(np.int64) - zero) @ w.astype(np.int64) + steps
    factor = (combined.astype(np.float64) / np.float64(F(out_scale))).astype(F)
    for got, (kind, z) in zip(results, (("uint8", 0), ("uint8", 255), ("int8", -128))):
        np.testing.assert_array_equal(got, requantized(sums, factor, z, kind))
    np.testing.assert_array_equal(results[3], np.maximum(requantized(sums, factor, 127, "int8"), 127))


@pytest.mark.parametrize("most", [1e-2, 1.0, 1e2, 1e9])
@pytest.mark.parametrize("seed", range(2))
def test_requantization_of_small_and_of_far_sums(most: float, seed: int) -> None:
    """Rounded by an addition, or clipped as floats where that would not hold; factors that make ties among them."""
    rng = np.random.default_rng(seed)
    x, w = random_bytes((23, 17), "uint8", seed), random_bytes((17, 40), "int8", seed + 9)
    scales = (np.geomspace(1e-6, most, 40) if seed else np.exp2(rng.integers(-12, np.log2(most) + 1, 40))).astype(F)

    def body(rw, q):
        taps = rw.emit(ops.dequantize(graph.const(w), scales, np.zeros(40), axis=1))
        y = rw.emit(relax.op.matmul(dequantized(rw, q, 1.0, 100), taps))
        return [quantized(rw, y, 1.0, z, kind) for kind, z in (("uint8", 1), ("int8", -3))]

    mod = graph.program([("x", x.shape, "uint8")], body)
    text = integer(mod).script()
    assert ("T.round" in text) == (most > 1) and ("12582912" in text) == (most <= 1)
    results = host.executor(mod)([x])
    sums = (x.astype(np.int64) - 100) @ w.astype(np.int64)
    for got, (kind, z) in zip(results, (("uint8", 1), ("int8", -3))):
        np.testing.assert_array_equal(got, requantized(sums, scales, z, kind))


@pytest.mark.parametrize("name", ["add", "subtract"])
@pytest.mark.parametrize("seed", range(3))
def test_a_residual_beside_a_products_sums(name: str, seed: int) -> None:
    """sums * fa + (bytes * fb + start), rounded once each, no division: the formula that the kernel documents."""
    if not isa_of(Target.load("native").to_tvm()).fused:
        pytest.skip("this CPU has no fused multiply-add")
    rng = np.random.default_rng(seed)
    x, r, w = random_bytes((31, 12), "uint8", 1), random_bytes((31, 24), "uint8", 2), random_bytes((12, 24), "int8", 3)
    scales = rng.uniform(1e-4, 1e-2, 24).astype(F)
    (sx, sr, sy), (zx, zr, zy) = rng.uniform(0.01, 0.1, 3).astype(F), (int(z) for z in rng.integers(0, 256, 3))

    def body(rw, q, p):
        taps = rw.emit(ops.dequantize(graph.const(w), scales, np.zeros(24), axis=1))
        y = rw.emit(relax.op.matmul(dequantized(rw, q, float(sx), zx), taps))
        return [quantized(rw, rw.emit(getattr(relax.op, name)(y, dequantized(rw, p, float(sr), zr))), float(sy), zy)]

    mod = graph.program([("x", x.shape, "uint8"), ("r", r.shape, "uint8")], body)
    assert "quantized_add" in integer(mod).script() and "relax.quantize" not in integer(mod).script()
    (got,) = host.executor(mod)([x, r])
    fa, fb = ((np.float64(sx) * scales).astype(F) / sy).astype(F), (sr if name == "add" else -sr) / sy
    sums = (x.astype(np.int64) - zx) @ w.astype(np.int64)
    start = F(-np.float64(fb) * zr)
    total = multiply_add(sums.astype(F), fa, multiply_add(r, fb, start))
    np.testing.assert_array_equal(got, np.clip(np.rint(total) + zy, 0, 255).astype(np.uint8))


def test_dynamic_quantization() -> None:
    """The numbers of ONNX's DynamicQuantizeLinear and MatMulInteger, worked out in NumPy."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((6, 32)).astype(F), random_bytes((32, 10), "int8")

    def body(rw, data):
        zero = graph.const(F(0))
        low = rw.emit(relax.op.minimum(rw.emit(relax.op.min(data)), zero))
        high = rw.emit(relax.op.maximum(rw.emit(relax.op.max(data)), zero))
        scale = rw.emit(relax.op.divide(rw.emit(relax.op.subtract(high, low)), graph.const(F(255))))
        point = rw.emit(relax.op.round(rw.emit(relax.op.negative(rw.emit(relax.op.divide(low, scale))))))
        point = rw.emit(relax.op.astype(rw.emit(relax.op.clip(point, 0, 255)), "uint8"))
        q = rw.emit(relax.op.quantize(data, scale, point, -1, "uint8"))
        back = rw.emit(relax.op.dequantize(q, scale, point, -1, "float32"))
        taps = rw.emit(ops.dequantize(graph.const(w), np.full(10, 0.01), np.zeros(10), axis=1))
        return [relax.op.matmul(back, taps)]

    (got,) = host.executor(graph.program([("x", x.shape, "float32")], body))([x])
    scale = F((x.max() - x.min()) / F(255))
    zero = np.clip(np.rint(-x.min() / scale), 0, 255).astype(np.int64)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64)
    wanted = (q - zero) @ w.astype(np.int64) * (np.float64(scale) * np.float64(F(0.01)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
