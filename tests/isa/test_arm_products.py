"""What the products of Armv8 give, to the last bit: integers and 16-bit floats, on the emulated board.

The references do what the Arm Architecture Reference Manual says of each instruction, in NumPy. All values are chosen
so that float64 holds every sum before it is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

import tvmcompress as tc
from tests import reference
from tests.arm_board import ArmBoard, arm_board  # noqa: F401  a fixture
from tests.kernels.cases import convolution, pick
from tests.kernels.test_products import first, relax_conv
from tests.lower.tools import dequantized, random_bytes, weights
from tests.test_arm_board import cross_compile
from tvmcompress.ir import graph
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target

RUN = """
import sys
import numpy as np
import tvmcompress as tc
inputs = dict(np.load(sys.argv[1]))
for path in sys.argv[2:]:
    np.savez(path + ".npz", **tc.deploy(tc.Package.load(path))(inputs))
"""
ONE, NO_PADDING = (1, 1), (0, 0, 0, 0)
# n, h, w, c, oc, kernel, strides, padding, dilation, groups: strides that two pixels at a time must step over, one
# pixel, one column, one channel in and out, primes, an odd row, groups.
CONVOLUTIONS = [
    Conv2d(1, 9, 13, 17, 31, (3, 3), (2, 2), (1, 1, 1, 1), ONE),
    Conv2d(2, 5, 11, 40, 5, (1, 2), (1, 3), (0, 2, 0, 1), (1, 2)),
    Conv2d(1, 6, 8, 16, 24, ONE, ONE, NO_PADDING, ONE),
    Conv2d(1, 1, 1, 24, 7, ONE, ONE, NO_PADDING, ONE),
    Conv2d(1, 7, 1, 13, 1, (3, 1), ONE, NO_PADDING, ONE),
    Conv2d(1, 4, 7, 1, 3, (2, 3), ONE, (1, 0, 0, 1), ONE),
    Conv2d(1, 5, 6, 24, 22, (3, 3), ONE, (1, 1, 1, 1), ONE, 2),
]
PRODUCTS = [(1, 77, 19), (2, 7, 1), (3, 40, 37), (11, 1, 5), (7, 64, 16), (2, 3, 33, 12)]  # rows…, K, channels
FLOAT_CONVOLUTIONS = [CONVOLUTIONS[i] for i in (0, 1, 4, 5)]
FLOAT_PRODUCTS = PRODUCTS[:4]

Case = tuple[np.ndarray, Callable, np.ndarray]  # input, what builds the program, result


def integer_convolution(conv: Conv2d, seed: int) -> Case:
    x = random_bytes((conv.n, conv.h, conv.w, conv.c), "int8", seed)
    w = random_bytes((conv.oc, conv.c // conv.groups, *conv.kernel), "int8", seed + 1)

    def body(rw, q):
        y = rw.emit(relax_conv(dequantized(rw, q, 1.0, -9), weights(rw, w, 0, 1.0), conv))
        return rw.emit(relax.op.astype(y, "int32"))

    sums = reference.conv2d(x, w, conv, -9) + 9 * w.astype(np.int64).sum((1, 2, 3))
    return first(x), body, first(sums)


def integer_product(x: np.ndarray, w: np.ndarray) -> Case:
    def body(rw, q):
        y = rw.emit(relax.op.matmul(dequantized(rw, q, 1.0, 0), weights(rw, w, 1, 1.0)))
        return rw.emit(relax.op.astype(y, "int32"))

    return x, body, x.astype(np.int64) @ w.astype(np.int64)


def extremes(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """At a length where sums narrower than 32 bits would overflow."""
    ends = np.array([-128, 127, -127, 1], np.int8)[:rows]
    columns = np.array([-128, 127, -127, 0, 1], np.int8)
    return np.repeat(ends[:, None], 1030, 1), np.repeat(columns[None], 1030, 0)


def integers() -> list[Case]:
    cases = [integer_convolution(conv, i) for i, conv in enumerate(CONVOLUTIONS)]
    for *rows, k, n in PRODUCTS:
        cases.append(integer_product(random_bytes((*rows, k), "int8", k), random_bytes((k, n), "int8", n)))
    return cases + [integer_product(*extremes(rows)) for rows in (1, 4)]


def scaled(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Numbers over so many powers of two that float32 does not hold their sums, and float64 does."""
    rng = np.random.default_rng(seed)
    most = 127 if dtype == "bfloat16" else 1023
    return rng.integers(-most, most + 1, shape) * 2.0 ** -rng.integers(0, 11, shape)


def to_odd(x: np.ndarray) -> np.ndarray:
    """float64 to float32: towards zero, and the last bit set where that was inexact."""
    near = x.astype(np.float32)
    cut = np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)
    return (cut.view(np.uint32) | (cut.astype(np.float64) != x)).view(np.float32)


def bfloat16_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """BFDotAdd: pairs of products are summed, then added to the sum so far; both rounded to odd."""
    sums = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(0, a.shape[1], 2):
        pair = to_odd(a[:, k, None] * b[k] + a[:, k + 1, None] * b[k + 1])
        sums = to_odd(sums.astype(np.float64) + pair)
    return sums


def float16_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """FMLAL, and FMLA on what was made float32: each product is added exactly, each sum rounded once."""
    sums = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        sums = (sums.astype(np.float64) + a[:, k, None] * b[k]).astype(np.float32)
    return sums


SUMS = {"bfloat16": bfloat16_sums, "float16": float16_sums}
NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def columns(x: np.ndarray, conv: Conv2d) -> np.ndarray:
    """(n oh ow, kh kw c): the pixels under the kernel, in the order in which they are summed."""
    top, left, bottom, right = conv.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    (sh, sw), (dh, dw), (oh, ow) = conv.strides, conv.dilation, conv.out
    taps = [
        padded[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
        for i in range(conv.kernel[0])
        for j in range(conv.kernel[1])
    ]
    return np.stack(taps, 3).reshape(conv.n * oh * ow, -1)


def float_convolution(conv: Conv2d, dtype: str, seed: int) -> Case:
    x = scaled((conv.n, conv.h, conv.w, conv.c), dtype, seed)
    w = scaled((conv.oc, conv.c, *conv.kernel), dtype, seed + 1)

    def body(rw, data):
        options = list(conv.strides), list(conv.padding), list(conv.dilation)
        narrow = rw.emit(relax.op.astype(data, dtype))
        return rw.emit(relax.op.nn.conv2d(narrow, graph.const(w.astype(NUMPY[dtype])), *options, out_dtype="float32"))

    odd = conv.c % 2  # pairs never reach from one pixel into the next
    a = columns(np.pad(x, ((0, 0), (0, 0), (0, 0), (0, odd))), conv)
    b = np.pad(w, ((0, 0), (0, odd), (0, 0), (0, 0))).transpose(2, 3, 1, 0).reshape(-1, conv.oc)
    return first(x).astype(np.float32), body, first(SUMS[dtype](a, b).reshape(conv.n, *conv.out, conv.oc))


def float_product(shape: tuple[int, ...], dtype: str) -> Case:
    *rows, k, n = shape
    x, w = scaled((*rows, k), dtype, k), scaled((k, n), dtype, n)

    def body(rw, data):
        narrow = rw.emit(relax.op.astype(data, dtype))
        return rw.emit(relax.op.matmul(narrow, graph.const(w.astype(NUMPY[dtype])), out_dtype="float32"))

    wanted = SUMS[dtype](np.pad(x, ((0, 0), (0, k % 2))), np.pad(w, ((0, k % 2), (0, 0))))
    return x.astype(np.float32), body, wanted


def live_product(rows: int, k: int, n: int, dtype: str) -> Case:
    """Both operands depend on the input."""
    x = scaled((rows + n, k), dtype, k)

    def body(rw, data):
        left, right = (
            rw.emit(relax.op.strided_slice(data, [0], [start], [end])) for start, end in ((0, rows), (rows, rows + n))
        )
        right = rw.emit(relax.op.permute_dims(right))
        left, right = (rw.emit(relax.op.astype(v, dtype)) for v in (left, right))
        return rw.emit(relax.op.matmul(left, right, out_dtype="float32"))

    return x.astype(np.float32), body, SUMS[dtype](x[:rows], x[rows:].T)


def floats(dtype: str) -> list[Case]:
    cases = [float_convolution(conv, dtype, i) for i, conv in enumerate(FLOAT_CONVOLUTIONS)]
    live = [live_product(rows, k, n, dtype) for rows, k, n in ((5, 12, 7), (1, 6, 9))]
    return cases + [float_product(shape, dtype) for shape in FLOAT_PRODUCTS] + live


def model_of(cases: list[Case]) -> tuple[Model, dict[str, np.ndarray]]:
    inputs = {f"x{i}": x for i, (x, _, _) in enumerate(cases)}
    specs = tuple(TensorSpec(name, x.shape, str(x.dtype)) for name, x in inputs.items())
    module = graph.program(
        [(s.name, s.shape, s.dtype) for s in specs],
        lambda rw, *data: [body(rw, x) for x, (_, body, _) in zip(data, cases)],
    )
    outputs = tuple(TensorSpec(f"y{i}", graph.shape(r), graph.dtype(r)) for i, r in enumerate(graph.results(module)))
    return Model(module, specs, outputs, Source("products", "test", 0, "")), inputs


def check(board: ArmBoard, folder: Path, cases: dict[str, list[Case]], targets: list[str]) -> None:
    """All cases on all targets, in one process of the board; without bf16 its products are rounded otherwise."""
    cross_compile(targets[0], folder)  # skips where no cross compiler is installed
    model, inputs = model_of([case for some in cases.values() for case in some])
    np.savez(folder / "inputs.npz", **inputs)
    for target in targets:
        package = tc.compile(model, Target.load(target))
        assert package.manifest["fallbacks"] == []
        package.save(folder / f"{target}.tar")
    packages = [folder / f"{target}.tar" for target in targets]
    board.python(["-c", RUN, folder / "inputs.npz", *packages], timeout=800)
    for target in targets:
        with np.load(folder / f"{target}.tar.npz") as results:
            outputs = iter([results[f"y{i}"] for i in range(len(results.files))])
        for kind, some in cases.items():
            exact = kind != "bfloat16" or Target.load(target).has("bf16")
            for x, _, wanted in some:
                near = 0 if exact else 1e-5 * np.abs(wanted).max()
                what = f"{target}, {kind}, input {x.shape}"
                np.testing.assert_allclose(next(outputs), wanted, 0, near, err_msg=what)


def test_to_the_last_bit(arm_board: ArmBoard, tmp_path: Path) -> None:  # noqa: F811
    """sdot, smmla, bfdot, bfmmla and fmlal; and without all but the first."""
    cases = {"int8": integers(), "bfloat16": floats("bfloat16"), "float16": floats("float16")}
    check(arm_board, tmp_path, cases, ["neoverse-v1", "rpi5"])


def test_the_references_tell_roundings_apart() -> None:
    """Else the test above would say nothing of them."""
    a, b = scaled((4, 40), "bfloat16", 0), scaled((40, 37), "bfloat16", 1)
    odd, nearest, exact = bfloat16_sums(a, b), float16_sums(a, b), a @ b
    for one, other in ((odd, nearest), (nearest, exact), (odd, exact)):
        assert (one != other).mean() > 0.3


@pytest.mark.long
def test_random_convolutions(arm_board: ArmBoard, tmp_path: Path) -> None:  # noqa: F811
    rng = np.random.default_rng(0)
    shapes = [convolution(rng, pick(rng, "plain", "pointwise", "first", "grouped", "depthwise")) for _ in range(60)]
    cases = [integer_convolution(shape, seed) for seed, shape in enumerate(shapes)]
    check(arm_board, tmp_path, {"int8": cases}, ["neoverse-v1", "rpi5", "rpi4"])
