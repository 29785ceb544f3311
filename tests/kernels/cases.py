"""Random cases of every kernel family: inputs, the operators, and what NumPy makes of them in float64 or int64.

Sizes are odd, prime, or one; batches 1 to 8. Integers are wanted bit by bit. A quantized result of real functions is
wanted as a number in steps, of which the nearest step is half a step away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from tvm import relax

from tests import reference
from tests.lower.tools import random_bytes
from tvmcompress.ir import graph, ops
from tvmcompress.kernels.conv2d import Conv2d

Rng = np.random.Generator
HALF = 0.5 + 1e-3  # of a step: what rounds to it, and what rounding errors before that may add


@dataclass
class Case:
    """`build(rw, *inputs)` is the expression whose value differs from `wanted` by no more than `within`."""

    text: str
    inputs: list[np.ndarray]
    build: Callable
    wanted: np.ndarray
    within: float = 0.0


def pick(rng: Rng, *values):
    return values[int(rng.integers(len(values)))]


def size(rng: Rng, most: int = 24) -> int:
    """One, small numbers, primes, powers of two and their neighbours."""
    return pick(rng, *(n for n in (1, 2, 3, 5, 7, 8, 11, 13, 16, 17, 23, 31, 32, 33, 37, 48, 61, 64, 65) if n <= most))


def batch(rng: Rng) -> int:
    return pick(rng, 1, 1, 1, 1, 2, 3, 5, 8)


def normal(rng: Rng, shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


# What stands behind a product: operators, and the same in float64.
def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


ERF = np.vectorize(math.erf, otypes=[np.float64])
EPILOGUES: dict[str, tuple[Callable, Callable]] = {
    "": (lambda rw, y: y, lambda y: y),
    "relu": (lambda rw, y: rw.emit(relax.op.nn.relu(y)), lambda y: np.maximum(y, 0)),
    "relu6": (lambda rw, y: rw.emit(relax.op.clip(y, 0.0, 6.0)), lambda y: np.clip(y, 0, 6)),
    "leaky": (lambda rw, y: rw.emit(relax.op.nn.leakyrelu(y, 0.1)), lambda y: np.where(y > 0, y, 0.1 * y)),
    "silu": (lambda rw, y: rw.emit(relax.op.nn.silu(y)), lambda y: y * sigmoid(y)),
    "sigmoid": (lambda rw, y: rw.emit(relax.op.sigmoid(y)), sigmoid),
    "gelu": (lambda rw, y: rw.emit(relax.op.nn.gelu(y)), lambda y: y / 2 * (1 + ERF(y / math.sqrt(2)))),
    "tanh": (lambda rw, y: rw.emit(relax.op.tanh(y)), np.tanh),
    "hard swish": (
        lambda rw, y: rw.emit(relax.op.multiply(y, rw.emit(relax.op.clip(
            rw.emit(relax.op.add(rw.emit(relax.op.multiply(y, number(1 / 6))), number(0.5))), 0.0, 1.0)))),
        lambda y: y * np.clip(y / 6 + 0.5, 0, 1),
    ),
}  # fmt: skip


def number(value: float):
    return graph.const(np.float32(value))


def convolution(rng: Rng, kind: str) -> Conv2d:
    """`kind`: plain, pointwise, first, grouped, depthwise, winograd; few (channels), few depthwise."""
    kernel = (1, 1) if kind == "pointwise" else tuple(pick(rng, 1, 2, 3, 3, 5, 7) for _ in "hw")
    dilation, strides = (tuple(pick(rng, 1, 1, 1, 2) for _ in "hw") for _ in "ds")
    padding = tuple(int(p) for p in rng.integers(0, 3, 4)) if rng.random() < 0.7 else (0, 0, 0, 0)
    c, oc, groups, low, high = size(rng, 65), size(rng, 65), 1, 1, 20
    if kind == "first":
        c, kernel, dilation = pick(rng, 1, 3, 4), pick(rng, (3, 3), (7, 7), (5, 5)), (1, 1)
    if kind == "grouped":
        groups = pick(rng, 2, 3, 4, 7)
        c, oc = groups * size(rng, 17), groups * size(rng, 33)
    if kind.startswith("few"):
        c, oc = (int(n) for n in rng.integers(1, 16, 2))
    if kind == "few":
        groups = pick(rng, 1, 1, 3)
        c, oc = groups * c, groups * oc
    if kind.endswith("depthwise"):
        groups, oc = c, c * pick(rng, 1, 1, 1, 2, 3)
    if kind == "winograd":
        kernel, dilation, strides, c, oc, low, high = (3, 3), (1, 1), (1, 1), 16 * size(rng, 3), size(rng, 65), 8, 34
    least = [max(low, (k - 1) * d + 1 - padding[i] - padding[i + 2]) for i, (k, d) in enumerate(zip(kernel, dilation))]
    h, w = (int(rng.integers(side, side + high)) for side in least)
    return Conv2d(batch(rng) if h * w < 200 else 1, h, w, c, oc, kernel, strides, padding, dilation, groups)


def conv_operator(x, weight, conv: Conv2d):
    return relax.op.nn.conv2d(x, weight, list(conv.strides), list(conv.padding), list(conv.dilation), conv.groups)


def emptied(rng: Rng, weight: np.ndarray) -> np.ndarray:
    """(O, I, …) with zeros: anywhere, N of M, or in blocks of outputs by inputs, at times whole kernels; now and then
    all, or hardly any."""
    if rng.random() < 0.3:
        n, m = pick(rng, (2, 4), (1, 4), (4, 8), (1, 8), (4, 16))
        scores = rng.random((weight.shape[0], -(-weight.shape[1] // m), m, *weight.shape[2:]))
        mask = (scores.argsort(2) < n).reshape(weight.shape[0], -1, *weight.shape[2:])
        return weight * mask[:, : weight.shape[1]].astype(weight.dtype)
    outputs, inputs = pick(rng, (1, 1), (1, 1), (16, 1), (16, 4), (4, 1), (weight.shape[0], weight.shape[1]))
    taps = (1,) * (weight.ndim - 2) if rng.random() < 0.4 else weight.shape[2:]  # whole kernels, or not
    coarse = tuple(-(-d // b) for d, b in zip(weight.shape, (outputs, inputs))) + taps
    mask = rng.random(coarse) < pick(rng, 0.0, 0.05, 0.1, 0.3, 0.6, 0.95)
    mask = np.repeat(np.repeat(mask, outputs, 0), inputs, 1)[: weight.shape[0], : weight.shape[1]]
    return weight * mask.astype(weight.dtype)


def float_convolution(rng: Rng, kind: str, narrow: bool = False, sparse: bool = False) -> Case:
    """With a bias, work behind it, and at times a sum with another input. `narrow`: operands in bfloat16."""
    conv = convolution(rng, kind)
    depth = conv.c // conv.groups * conv.kernel[0] * conv.kernel[1]
    x, bias = normal(rng, (conv.n, conv.h, conv.w, conv.c)), normal(rng, (1, conv.oc, 1, 1))
    weight = normal(rng, (conv.oc, conv.c // conv.groups, *conv.kernel)) / np.float32(math.sqrt(depth))
    if narrow:
        x, weight = bfloat16(x), bfloat16(weight)
    weight = emptied(rng, weight) if sparse else weight
    name = pick(rng, *EPILOGUES)
    operator, function = EPILOGUES[name]
    rest = [normal(rng, (conv.n, conv.oc, *conv.out))] if rng.random() < 0.4 else []

    def build(rw, data, *rest):
        taps = graph.const(weight)
        if narrow:
            data, taps = (rw.emit(relax.op.astype(v, "bfloat16")) for v in (data, taps))
            y = relax.op.nn.conv2d(
                data, taps, list(conv.strides), list(conv.padding), list(conv.dilation), conv.groups,
                out_dtype="float32",
            )  # fmt: skip
        else:
            y = conv_operator(data, taps, conv)
        y = rw.emit(relax.op.add(rw.emit(y), graph.const(bias)))
        if rest:
            y = rw.emit(relax.op.add(y, rest[0]))
        return operator(rw, y)

    wanted = first(reference.conv2d(x, weight, conv)) + bias + (rest[0] if rest else 0)
    return Case(f"{conv} {name}", [first(x), *rest], build, function(wanted), 3e-5)


def integer_convolution(rng: Rng, kind: str, sparse: bool = False) -> Case:
    """Quantized on both sides, a scale for each channel."""
    conv, dtype = convolution(rng, kind), pick(rng, "uint8", "int8")
    info = np.iinfo(dtype)
    x = random_bytes((conv.n, conv.h, conv.w, conv.c), dtype, int(rng.integers(1 << 30)))
    weight = random_bytes((conv.oc, conv.c // conv.groups, *conv.kernel), "int8", int(rng.integers(1 << 30)))
    weight = emptied(rng, weight) if sparse else weight
    zero, out_zero = (int(v) for v in rng.integers(info.min, info.max + 1, 2))
    scale, scales = np.float32(0.05), rng.uniform(0.001, 0.02, conv.oc).astype(np.float32)
    out_scale = np.float32(math.sqrt(weight[0].size) * 0.6)
    relu = rng.random() < 0.5

    def build(rw, q):
        data = rw.emit(ops.dequantize(q, scale, zero))
        taps = rw.emit(ops.dequantize(graph.const(weight), scales, np.zeros(conv.oc), axis=0))
        y = rw.emit(conv_operator(data, taps, conv))
        return rw.emit(ops.quantize(rw.emit(relax.op.nn.relu(y)) if relu else y, out_scale, out_zero, dtype))

    sums = reference.conv2d(x, weight, conv, zero) - zero * weight.astype(np.int64).sum((1, 2, 3))
    combined = (np.float64(scale) * scales.astype(np.float64)).astype(np.float32)
    factor = (combined.astype(np.float64) / np.float64(out_scale)).astype(np.float32)
    wanted = first(reference.requantize(sums, factor, out_zero, dtype, relu=relu))
    return Case(f"{conv} {dtype}", [first(x)], build, wanted)


def transposed(rng: Rng) -> Case:
    groups, n = pick(rng, 1, 1, 2), batch(rng)
    ic, og = groups * size(rng, 17), size(rng, 17)
    kernel, strides = ([int(v) for v in rng.integers(1, high, 2)] for high in (6, 4))
    padding = [int(rng.integers(0, (k + 1) // 2)) for k in kernel] * 2
    extra = [int(rng.integers(0, s)) for s in strides]
    h, w = size(rng, 8), size(rng, 8)
    x, integer = normal(rng, (n, ic, h, w)), bool(rng.random() < 0.4)
    weight = random_bytes((ic, og, *kernel), "int8", int(rng.integers(1 << 30)))
    zero, scale = (9, 1.0) if integer else (0, 2.0**-7)
    if integer:
        x = random_bytes(x.shape, "uint8", int(rng.integers(1 << 30)))

    def build(rw, data):
        if integer:
            data, taps = rw.emit(ops.dequantize(data, 1.0, zero)), rw.emit(ops.dequantize(graph.const(weight), 1.0, 0))
        else:
            taps = graph.const((weight * scale).astype(np.float32))
        y = rw.emit(relax.op.nn.conv2d_transpose(data, taps, strides, padding, extra, 1, groups))
        return rw.emit(relax.op.astype(y, "int32")) if integer else y

    full = np.zeros(
        (n, og * groups, *((side - 1) * s + k + e for side, s, k, e in zip((h, w), strides, kernel, extra)))
    )
    for g in range(groups):
        part = slice(g * ic // groups, (g + 1) * ic // groups)
        data, taps = x[:, part].astype(np.float64) - zero, weight[part].astype(np.float64) * scale
        for i in range(h):
            for j in range(w):
                rows = slice(i * strides[0], i * strides[0] + kernel[0])
                cols = slice(j * strides[1], j * strides[1] + kernel[1])
                full[:, g * og : (g + 1) * og, rows, cols] += np.einsum("nc,cokl->nokl", data[:, :, i, j], taps)
    wanted = full[:, :, padding[0] : full.shape[2] - padding[0], padding[1] : full.shape[3] - padding[1]]
    return Case(f"{x.shape} {weight.shape} {strides} {padding} {extra} {groups} {x.dtype}", [x], build, wanted,
                0.0 if integer else 1e-4)  # fmt: skip


def product(rng: Rng, dtype: str, sparse: bool = False) -> Case:
    """By constant weights; `dtype`: float32, bfloat16, uint8 or int8. One row is a matrix-vector product."""
    rows = pick(rng, (1,), (1,), (size(rng, 64),), (batch(rng), size(rng, 33)), (batch(rng), 2, size(rng, 13)))
    k, n = size(rng, 65) * pick(rng, 1, 1, 3), size(rng, 65) * pick(rng, 1, 1, 2)
    if dtype in ("uint8", "int8"):
        x, weight = random_bytes((*rows, k), dtype, int(rng.integers(1 << 30))), random_bytes((k, n), "int8", k * n)
        weight = emptied(rng, weight.T).T if sparse else weight
        zero = int(rng.integers(-100, 100)) if dtype == "int8" else int(rng.integers(0, 200))

        def integers(rw, q):
            data = rw.emit(ops.dequantize(q, 1.0, zero))
            taps = rw.emit(ops.dequantize(graph.const(weight), 1.0, 0))
            return rw.emit(relax.op.astype(rw.emit(relax.op.matmul(data, taps)), "int32"))

        return Case(f"{rows} {k} {n} {dtype} {zero}", [x], integers,
                    (x.astype(np.int64) - zero) @ weight.astype(np.int64))  # fmt: skip
    x, weight, bias = normal(rng, (*rows, k)), normal(rng, (k, n)) / np.float32(math.sqrt(k)), normal(rng, n)
    if dtype == "bfloat16":
        x, weight = bfloat16(x), bfloat16(weight)
    weight = np.ascontiguousarray(emptied(rng, weight.T).T) if sparse else weight
    name = pick(rng, *EPILOGUES)
    operator, function = EPILOGUES[name]

    def floats(rw, data):
        taps = graph.const(weight)
        if dtype == "bfloat16":
            data, taps = (rw.emit(relax.op.astype(v, "bfloat16")) for v in (data, taps))
        y = rw.emit(relax.op.matmul(data, taps, "float32"))
        return operator(rw, rw.emit(relax.op.add(y, graph.const(bias))))

    return Case(f"{rows} {k} {n} {dtype} {name}", [x], floats, function(x.astype(np.float64) @ weight + bias), 3e-5)


def batched(rng: Rng) -> Case:
    """Of two inputs, whose batches may be broadcast."""
    n, heads, m, k, o = batch(rng), pick(rng, 1, 3, 4), size(rng, 33), size(rng, 65), size(rng, 65)
    a, b = normal(rng, (n, heads, m, k)), normal(rng, (pick(rng, 1, n), heads, k, o)) / np.float32(math.sqrt(k))
    narrow = rng.random() < 0.4
    if narrow:
        a, b = bfloat16(a), bfloat16(b)

    def build(rw, x, y):
        if narrow:
            x, y = (rw.emit(relax.op.astype(v, "bfloat16")) for v in (x, y))
        return rw.emit(relax.op.matmul(x, y, "float32"))

    return Case(f"{a.shape} {b.shape} {narrow}", [a, b], build, a.astype(np.float64) @ b, 3e-5)


def pooling(rng: Rng) -> Case:
    n, c, kernel = batch(rng), size(rng, 65), [pick(rng, 1, 2, 3, 5) for _ in "hw"]
    strides = [pick(rng, 1, 2, 3) for _ in "hw"]
    padding = [int(rng.integers(0, (k + 1) // 2)) for k in kernel] * 2
    h, w = (k + int(rng.integers(0, 17)) for k in kernel)
    ceil, most, counted = bool(rng.random() < 0.3), bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    integer = most and rng.random() < 0.5
    x = random_bytes((n, c, h, w), "uint8", h) if integer else normal(rng, (n, c, h, w))

    def build(rw, data):
        if most:
            return rw.emit(relax.op.nn.max_pool2d(data, kernel, strides, padding, [1, 1], ceil))
        return rw.emit(relax.op.nn.avg_pool2d(data, kernel, strides, padding, [1, 1], ceil, counted))

    outs = []
    for side, k, s, p in zip((h, w), kernel, strides, padding):
        out = (side + 2 * p - k + (s - 1 if ceil else 0)) // s + 1
        outs.append(out - ((out - 1) * s >= side + p))  # no window begins behind the data
    wanted = np.zeros((n, c, *outs))
    for i in range(outs[0]):
        for j in range(outs[1]):
            top, left = i * strides[0] - padding[0], j * strides[1] - padding[1]
            window = x[:, :, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1]].astype(np.float64)
            if most:
                wanted[:, :, i, j] = window.max((2, 3), initial=np.iinfo(np.uint8).min if integer else -np.inf)
            else:
                bottom, right = min(top + kernel[0], h + padding[0]), min(left + kernel[1], w + padding[1])
                count = (bottom - top) * (right - left) if counted else window.shape[2] * window.shape[3]
                wanted[:, :, i, j] = window.sum((2, 3)) / max(count, 1)
    return Case(f"{x.shape} {x.dtype} {kernel} {strides} {padding} {ceil} {most} {counted}", [x], build, wanted,
                0.0 if most else 1e-5)  # fmt: skip


def tensor(rng: Rng, most: int = 4) -> tuple[int, ...]:
    """A shape of a rank from 2 to `most`, of some ten thousand elements at the most."""
    while True:
        shape = tuple(size(rng, 65) for _ in range(int(rng.integers(2, most + 1))))
        if math.prod(shape) <= 40_000:
            return shape


def soft(rng: Rng) -> Case:
    shape = tensor(rng)
    axis, log = int(rng.integers(len(shape))) if rng.random() < 0.4 else -1, bool(rng.random() < 0.2)
    x = normal(rng, shape) * np.float32(pick(rng, 1, 10, 80))
    wide = x.astype(np.float64) - x.max(axis, keepdims=True)
    total = np.exp(wide).sum(axis, keepdims=True)
    operator = relax.op.nn.log_softmax if log else relax.op.nn.softmax
    wanted = wide - np.log(total) if log else np.exp(wide) / total
    return Case(f"{shape} {axis} {log}", [x], lambda rw, data: rw.emit(operator(data, axis)), wanted,
                1e-5 * (80 if log else 1))  # fmt: skip


def norm(rng: Rng) -> Case:
    if rng.random() < 0.5:
        shape = tensor(rng)
        x, gain, shift = normal(rng, shape) + 3, normal(rng, shape[-1]), normal(rng, shape[-1])
        center = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
        wanted = center / np.sqrt((center**2).mean(-1, keepdims=True) + 1e-5) * gain + shift

        def layer(rw, data):
            return rw.emit(relax.op.nn.layer_norm(data, graph.const(gain), graph.const(shift), [-1], 1e-5))

        return Case(f"layer {shape}", [x], layer, wanted, 1e-4)
    groups = pick(rng, 1, 2, 3, 4)
    n, c, h, w = batch(rng), groups * size(rng, 13), size(rng, 13), 1 + size(rng, 13)
    x, gain, shift = normal(rng, (n, c, h, w)), normal(rng, c), normal(rng, c)
    parts = x.astype(np.float64).reshape(n, groups, -1)
    center = parts - parts.mean(-1, keepdims=True)
    unit = (center / np.sqrt((center**2).mean(-1, keepdims=True) + 1e-5)).reshape(x.shape)

    def group(rw, data):
        return rw.emit(
            relax.op.nn.group_norm(data, graph.const(gain), graph.const(shift), groups, 1, [2, 3], epsilon=1e-5)
        )

    wanted = unit * gain[:, None, None] + shift[:, None, None]
    return Case(f"group {x.shape} {groups}", [x], group, wanted, 1e-4)


def local(rng: Rng) -> Case:
    shape = (batch(rng), size(rng, 65), size(rng, 13), size(rng, 13))
    length, alpha, beta, bias = pick(rng, 1, 3, 5, 4), 0.1, pick(rng, 0.5, 0.75, 1.0, 0.6), pick(rng, 1.0, 2.0)
    x = normal(rng, shape)
    total = np.zeros(shape)
    for c in range(shape[1]):
        near = x[:, max(0, c - (length - 1) // 2) : c + length // 2 + 1].astype(np.float64)
        total[:, c] = (near**2).sum(1)

    def build(rw, data):
        last = rw.emit(relax.op.permute_dims(data, (0, 2, 3, 1)))
        y = rw.emit(ops.local_response_norm(last, length, alpha, beta, bias))
        return rw.emit(relax.op.permute_dims(y, (0, 3, 1, 2)))

    return Case(f"{shape} {length} {beta} {bias}", [x], build, x / (bias + alpha / length * total) ** beta, 1e-5)


def reduction(rng: Rng) -> Case:
    shape = tensor(rng)
    axes = sorted(int(a) for a in rng.choice(len(shape), int(rng.integers(1, len(shape) + 1)), replace=False))
    keep, name = bool(rng.random() < 0.5), pick(rng, "sum", "mean", "max", "min", "variance")
    x = normal(rng, shape)
    function = {"variance": np.var}.get(name) or getattr(np, name)
    wanted = function(x.astype(np.float64), axis=tuple(axes), keepdims=keep)
    operator = getattr(relax.op, name)
    exact = name in ("max", "min")
    within = 0.0 if exact else 1e-5 * max(1.0, math.sqrt(x.size))
    return Case(f"{name} {shape} {axes} {keep}", [x], lambda rw, data: rw.emit(operator(data, axes, keep)), wanted,
                within)  # fmt: skip


def resize(rng: Rng) -> Case:
    """To whole multiples: nearest, or linear between the centres of pixels."""
    n, c, h, w = batch(rng), size(rng, 33), size(rng, 13), size(rng, 13)
    up = [pick(rng, 1, 2, 3) for _ in "hw"]
    linear = bool(rng.random() < 0.5)
    x = normal(rng, (n, c, h, w))

    def matrix(side: int, times: int) -> np.ndarray:
        rows = np.zeros((side * times, side))
        for i in range(side * times):
            at = (i + 0.5) / times - 0.5 if linear else i // times
            low = math.floor(at)
            for j, share in ((low, 1 - (at - low)), (low + 1, at - low)):
                rows[i, min(max(j, 0), side - 1)] += share
        return rows

    def build(rw, data):
        return rw.emit(
            relax.op.image.resize2d(
                data, (h * up[0], w * up[1]), layout="NCHW", method="linear" if linear else "nearest_neighbor",
                coordinate_transformation_mode="half_pixel" if linear else "asymmetric",
                rounding_method="" if linear else "floor",
            )
        )  # fmt: skip

    wanted = np.einsum("ih,nchw,jw->ncij", matrix(h, up[0]), x.astype(np.float64), matrix(w, up[1]))
    return Case(f"{x.shape} {up} {linear}", [x], build, wanted, 1e-5)


def movement(rng: Rng) -> Case:
    """Concatenation, shuffled channels, padding, slices, transposition: nothing is computed."""
    kind = pick(rng, "concat", "concat", "shuffle", "channels", "pad", "slice", "transpose")
    dtype = pick(rng, "float32", "float32", "uint8")
    make = lambda s: normal(rng, s) if dtype == "float32" else random_bytes(tuple(s), dtype, sum(s))  # noqa: E731
    if kind == "shuffle":
        groups = pick(rng, 2, 3, 4)
        n, c, h, w = batch(rng), groups * size(rng, 17), size(rng, 13), size(rng, 13)
        x = make((n, c, h, w))

        def shuffle(rw, data):
            y = rw.emit(relax.op.reshape(data, (n, groups, c // groups, h, w)))
            return rw.emit(relax.op.reshape(rw.emit(relax.op.permute_dims(y, (0, 2, 1, 3, 4))), (n, c, h, w)))

        wanted = x.reshape(n, groups, c // groups, h, w).swapaxes(1, 2).reshape(x.shape)
        return Case(f"shuffle {x.shape} {groups} {dtype}", [x], shuffle, wanted)
    if kind == "channels":  # the last axis shuffled: a kernel of its own
        groups, each = pick(rng, 2, 3, 4, 8, 9), size(rng)
        shape = (*(size(rng, 13) for _ in range(int(rng.integers(1, 4)))), groups, each)
        x = make((*shape[:-2], groups * each))

        def channels(rw, data):
            y = rw.emit(relax.op.reshape(data, shape))
            axes = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            return rw.emit(relax.op.reshape(rw.emit(relax.op.permute_dims(y, axes)), x.shape))

        return Case(f"channels {shape} {dtype}", [x], channels, x.reshape(shape).swapaxes(-1, -2).reshape(x.shape))
    shape = tensor(rng)
    axis = int(rng.integers(len(shape)))
    x = make(shape)
    if kind == "concat":
        others = [make((*shape[:axis], size(rng, 17), *shape[axis + 1 :])) for _ in range(int(rng.integers(1, 4)))]

        def concat(rw, *data):
            return rw.emit(relax.op.concat(list(data), axis))

        return Case(f"concat {shape} {axis} {[o.shape for o in others]} {dtype}", [x, *others], concat,
                    np.concatenate([x, *others], axis))  # fmt: skip
    if kind == "pad":
        width = [int(v) for v in rng.integers(0, 4, 2 * len(shape))]
        pairs = list(zip(width[::2], width[1::2]))

        def pad(rw, data):
            return rw.emit(relax.op.nn.pad(data, width, "constant", 3.0))

        return Case(f"pad {shape} {width}", [x], pad, np.pad(x, pairs, constant_values=3))
    if kind == "slice":
        begin = int(rng.integers(0, shape[axis]))
        end, step = int(rng.integers(begin + 1, shape[axis] + 1)), pick(rng, 1, 2, 3)
        part = tuple(slice(begin, end, step) if i == axis else slice(None) for i in range(len(shape)))
        return Case(f"slice {shape} {axis} {begin}:{end}:{step}", [x],
                    lambda rw, data: rw.emit(relax.op.strided_slice(data, [axis], [begin], [end], [step])),
                    x[part])  # fmt: skip
    order = [int(a) for a in rng.permutation(len(shape))]
    return Case(f"transpose {shape} {order}", [x], lambda rw, data: rw.emit(relax.op.permute_dims(data, order)),
                x.transpose(order))  # fmt: skip


def parts(rng: Rng) -> Case:
    """Channels cut in two, one part convolved, both put together and shuffled, in groups that are those or not."""
    groups, each, integer = pick(rng, 2, 2, 3), size(rng, 33), bool(rng.random() < 0.3)
    c, n, h, w, k = groups * each, batch(rng), size(rng, 13), size(rng, 13), pick(rng, 1, 3)
    cut = each if each < c and rng.random() < 0.6 else int(rng.integers(1, c))
    first_one, second = Conv2d(n, h, w, c, c, (1, 1), (1, 1), (0,) * 4, (1, 1)), c - cut
    second_one = Conv2d(n, h, w, second, second, (k, k), (1, 1), (k // 2,) * 4, (1, 1))
    weights = [rng.integers(-3, 4, (o.oc, o.c, *o.kernel)).astype(np.float32) for o in (first_one, second_one)]
    x = rng.integers(0, 8, (n, h, w, c)).astype(np.uint8 if integer else np.float32)

    def build(rw, data):
        if integer:
            data = rw.emit(ops.dequantize(data, 1.0, 0))
        y = rw.emit(conv_operator(data, graph.const(weights[0]), first_one))
        if integer:
            y = rw.emit(ops.dequantize(rw.emit(ops.quantize(y, 8.0, 100, "uint8")), 8.0, 100))
        both = rw.emit(relax.op.split(y, [cut], 1))
        left, right = (rw.emit(relax.TupleGetItem(both, i)) for i in range(2))
        y = rw.emit(conv_operator(right, graph.const(weights[1]), second_one))
        y = rw.emit(relax.op.concat([left, y], 1))
        y = rw.emit(relax.op.reshape(y, (n, groups, each, h, w)))
        return rw.emit(relax.op.reshape(rw.emit(relax.op.permute_dims(y, (0, 2, 1, 3, 4))), (n, c, h, w)))

    y = reference.conv2d(x, weights[0], first_one)
    if integer:
        y = (np.clip(np.rint(y / 8) + 100, 0, 255) - 100) * 8
    y = np.concatenate([y[..., :cut], reference.conv2d(y[..., cut:], weights[1], second_one)], -1)
    wanted = first(y).reshape(n, groups, each, h, w).swapaxes(1, 2).reshape(n, c, h, w)
    within = 1e-5 * np.abs(wanted).max()  # by Winograd
    return Case(f"{first_one} {second_one} {groups} {cut} {integer}", [first(x)], build, wanted, within)


def elementwise(rng: Rng) -> Case:
    """Two to five functions in a row, sums and products with broadcast operands between."""
    shape = tensor(rng)
    x = normal(rng, shape)
    wanted, steps, inputs = x.astype(np.float64), [], [x]
    for _ in range(int(rng.integers(2, 6))):
        if rng.random() < 0.5:
            name = pick(rng, *(n for n in EPILOGUES if n))
            wanted = EPILOGUES[name][1](wanted)
            steps.append((name, None))
        else:
            other = normal(rng, [d if rng.random() < 0.6 else 1 for d in shape])
            name = pick(rng, "add", "multiply", "subtract", "maximum", "minimum")
            wanted = getattr(np, name)(wanted, other.astype(np.float64))
            steps.append((name, len(inputs)))
            inputs.append(other)

    def build(rw, *data):
        y = data[0]
        for name, at in steps:
            y = EPILOGUES[name][0](rw, y) if at is None else rw.emit(getattr(relax.op, name)(y, data[at]))
        return y

    return Case(f"{shape} {steps}", inputs, build, wanted, 1e-5 * max(1.0, float(np.abs(wanted).max())))


def quantized(rng: Rng) -> Case:
    """A function of one tensor of bytes, or a sum of two, in steps of the result."""
    shape, (data, out) = tensor(rng), (pick(rng, "uint8", "int8") for _ in "io")
    info = np.iinfo(out)
    zeros = [int(v) for v in rng.integers(0, 100, 3)]
    scales = [float(np.float32(v)) for v in rng.uniform(0.01, 0.05, 3)]
    inputs = [random_bytes(shape, data, zeros[0])]
    name = pick(rng, "sum", *(n for n in EPILOGUES if n))
    reals = [(inputs[0].astype(np.float64) - zeros[0]) * scales[0]]
    if name == "sum":
        inputs.append(random_bytes(shape, data, zeros[1]))
        reals.append((inputs[1].astype(np.float64) - zeros[1]) * scales[1])

    def build(rw, *qs):
        x = [rw.emit(ops.dequantize(q, s, z)) for q, s, z in zip(qs, scales, zeros)]
        y = rw.emit(relax.op.add(*x)) if name == "sum" else EPILOGUES[name][0](rw, x[0])
        return rw.emit(ops.quantize(y, scales[2], zeros[2], out))

    real = sum(reals) if name == "sum" else EPILOGUES[name][1](reals[0])
    wanted = np.clip(real / scales[2] + zeros[2], info.min, info.max)
    return Case(f"{shape} {data} {out} {name} {scales} {zeros}", inputs, build, wanted, HALF)


FAMILIES: dict[str, Callable[[Rng], Case]] = {
    **{
        f"float32 {kind}": lambda rng, kind=kind: float_convolution(rng, kind)
        for kind in ("plain", "pointwise", "first", "grouped", "depthwise", "winograd", "few", "few depthwise")
    },
    **{
        f"bfloat16 {kind}": lambda rng, kind=kind: float_convolution(rng, kind, narrow=True)
        for kind in ("plain", "pointwise", "first", "depthwise")
    },
    **{
        f"integer {kind}": lambda rng, kind=kind: integer_convolution(rng, kind)
        for kind in ("plain", "pointwise", "first", "grouped", "depthwise", "few depthwise")
    },
    **{
        f"sparse float32 {kind}": lambda rng, kind=kind: float_convolution(rng, kind, sparse=True)
        for kind in ("plain", "pointwise", "winograd")
    },
    "sparse bfloat16 plain": lambda rng: float_convolution(rng, "plain", narrow=True, sparse=True),
    **{
        f"sparse integer {kind}": lambda rng, kind=kind: integer_convolution(rng, kind, sparse=True)
        for kind in ("plain", "pointwise")
    },
    **{
        f"sparse {dtype} product": lambda rng, dtype=dtype: product(rng, dtype, sparse=True)
        for dtype in ("float32", "bfloat16", "uint8", "int8")
    },
    "transposed": transposed,
    **{
        f"{dtype} product": lambda rng, dtype=dtype: product(rng, dtype)
        for dtype in ("float32", "bfloat16", "uint8", "int8")
    },
    "batched product": batched,
    "pooling": pooling,
    "softmax": soft,
    "norm": norm,
    "local response norm": local,
    "reduction": reduction,
    "resize": resize,
    "movement": movement,
    "parts": parts,
    "elementwise": elementwise,
    "quantized": quantized,
}
