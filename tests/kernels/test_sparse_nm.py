"""N:M kernels of every x86-64 target that runs here against NumPy, and the instructions that they are made of."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from tests import reference
from tests.kernels.test_sparse_streams import isa_named
from tests.lower.tools import assembly, basic_blocks, need
from tvmcompress import linking
from tvmcompress.breakeven import GROUPS, of_groups, only
from tvmcompress.ir import graph, ops
from tvmcompress.kernels import sparse_nm
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse import product
from tvmcompress.lower.pipeline import Lowered, lower, machine
from tvmcompress.lower.sparse import Keep
from tvmcompress.target import Target

# Channels and outputs that are no multiples of groups, windows and lanes; strides, padding, dilation; N:M of each.
CASES = [
    (Conv2d(1, 9, 11, 64, 37, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), 2, 4),
    (Conv2d(2, 8, 7, 90, 20, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), 1, 4),
    (Conv2d(1, 9, 30, 21, 16, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2)), 4, 8),
    (Conv2d(1, 5, 40, 130, 33, (1, 1), (1, 2), (0, 0, 0, 0), (1, 1)), 2, 16),
    (Conv2d(1, 6, 6, 3, 5, (2, 2), (1, 1), (0, 1, 0, 1), (1, 1)), 3, 4),
    (Conv2d(3, 1, 1, 96, 48, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), 1, 16),
]
SPILLED = r"mm\d+, -?\d*\(%rsp\)|\(%rsp\), %[xyz]mm|\t(ldr|str)\tq\d+, \[sp"
ADDED = r"\t(vfmadd\d+ps|addps|vpdpbusd|v?pmaddwd|fmla|sdot)\t"
KINDS = ("float32", "uint8", "int8", "bfloat16")
# target, what picks elements of 32 bits and of those that make words of integers
PICKS = [
    ("znver4", "vperm(ps|d)", "vpermb"),
    ("icelake-server", "vperm(ps|d)", "vpermb"),
    ("skylake-avx512", "vperm(ps|d)", "vpshufb"),
    ("x86-64-v4", "vperm(ps|d)", "vpshufb"),
    ("x86-64-v3", "vperm(ps|d)", "vpshufb"),
    ("x86-64-v2", "pshufb", "pshufb"),
    ("alderlake", "vperm(ps|d)", "vpshufb"),
    ("rpi5", "tbl", "tbl"),
    ("neoverse-v1", "tbl", "tbl"),
]


def weights_of(number: int, kind: str) -> np.ndarray:
    """(O, C, KH, KW): whole numbers, so that sums are exact; a tap and an output are all zeros, another output full."""
    conv, n, m = CASES[number]
    weight = np.rint(of_groups(conv, n / m, m) * (40 if kind == "int8" else 4)).clip(-128, 127)
    weight[1 % conv.oc] = 0
    weight[:, :, -1, 0] *= number % 2
    if number % 3 == 0:
        weight[2] = 7
    return weight


def built(name: str, kind: str) -> tuple[Lowered, list[np.ndarray], list[np.ndarray]]:
    """All cases in one program, its inputs, and what NumPy makes of them."""
    target, rng = Target.load(name), np.random.default_rng(0)
    integer, zero = kind in ("uint8", "int8"), 9
    inputs, weights, wanted = [], [], []
    for number, (conv, _, _) in enumerate(CASES):
        low, high = (np.iinfo(kind).min, np.iinfo(kind).max + 1) if integer else (-8, 9)
        x = rng.integers(low, high, (conv.n, conv.h, conv.w, conv.c)).astype(kind if integer else "float32")
        weight = weights_of(number, "int8" if integer else kind).astype("int8" if integer else "float32")
        sums = reference.conv2d(x, weight, conv, zero if integer else 0)
        wanted.append(sums - zero * weight.astype(np.int64).sum((1, 2, 3)) if integer else sums)
        inputs.append(x)
        weights.append(weight)

    def layer(rw, x, weight, conv):
        if integer:
            x, taps = rw.emit(ops.dequantize(x, 1.0, zero)), rw.emit(ops.dequantize(graph.const(weight), 1.0, 0))
        elif kind == "bfloat16":
            x, taps = rw.emit(relax.op.astype(x, kind)), graph.const(weight.astype(ml_dtypes.bfloat16))
        else:
            taps = graph.const(weight)
        strides, padding, dilation = list(conv.strides), list(conv.padding), list(conv.dilation)
        y = rw.emit(
            relax.op.nn.conv2d(x, taps, strides, padding, dilation, 1, "NHWC", "OIHW", "NHWC", out_dtype="float32")
        )
        return rw.emit(relax.op.astype(y, "int32")) if integer else y

    def body(rw, *data):
        return [layer(rw, x, weight, conv) for x, weight, (conv, _, _) in zip(data, weights, CASES)]

    mod = graph.program([(f"x{i}", x.shape, str(x.dtype)) for i, x in enumerate(inputs)], body)
    lowered = lower(mod, target.to_tvm(), isa_named(name), choices=only(GROUPS), keep=Keep("always"))
    assert not lowered.fallbacks
    return lowered, inputs, wanted


def formats(lowered: Lowered) -> list[str]:
    return [row["sparse"]["format"] for row in lowered.layers if row.get("sparse", {}).get("kept")]


@pytest.fixture
def any_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats whose lanes are not all full are not left to other kernels."""
    monkeypatch.setattr(sparse_nm, "FULL", 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["native", "znver4", "skylake-avx512", "x86-64-v3", "x86-64-v2"])
def test_numbers(name: str, kind: str, any_zeros: None) -> None:
    need(name)
    if kind == "bfloat16" and isa_named(name).bf16 is None:
        pytest.skip("no dot product of bfloat16")
    lowered, inputs, wanted = built(name, kind)
    assert len(formats(lowered)) == len(CASES) and all(text.endswith(" groups") for text in formats(lowered))
    for got, expected in zip(machine(lowered, linking.linker(Target.load(name)))(inputs), wanted):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("name", "floats", "integers"), PICKS)
def test_instructions(name: str, floats: str, integers: str, any_zeros: None) -> None:
    for kind, mnemonic in (("float32", floats), ("uint8", integers)):
        lowered, _, _ = built(name, kind)
        assert len(formats(lowered)) == len(CASES)
        bodies = [re.split(r"\n\t(?:j\w+|b\.\w+)\t", block)[0] for block in basic_blocks(assembly(lowered))]
        loops = [body for body in bodies if min(len(re.findall(one, body)) for one in (rf"\t{mnemonic}\t", ADDED)) >= 4]
        assert len(loops) >= 3
        assert all(len(re.findall(SPILLED, loop)) <= 2 for loop in loops)  # all sums stay in registers, but one at most


@pytest.mark.parametrize("name", ["generic-armv7", "riscv64-v"])
def test_where_nothing_picks(name: str) -> None:
    how = product(CASES[0][0], isa_named(name), "float32", "float32")
    assert how is not None and sparse_nm.picked(CASES[0][0], isa_named(name), how) is None


@pytest.mark.parametrize(
    "left, m, most, text",
    [(2, 4, 64, "2:4"), (4, 8, 16, "4:8"), (1, 4, 4, "1:4"), (3, 16, 16, "3:16"), (3, 16, 8, "3:8"), (8, 8, 32, "4:4")],
)
def test_patterns(left: int, m: int, most: int, text: str) -> None:
    """Of two that hold alike the smaller M is told; what M is beyond reach is not seen."""
    scores = np.random.default_rng(0).random((32, 8, m, 2, 2)).argsort(2)
    assert sparse_nm.pattern((scores < left).reshape(32, 8 * m, 2, 2).astype(np.int8), most) == text
    assert sparse_nm.pattern(np.zeros((4, 70, 1, 1)), 64) == "1:64"


def test_patterns_with_a_group_that_ends_early() -> None:
    weight = np.zeros((3, 10, 1, 1))
    weight[:, [0, 1, 4, 7, 8, 9]] = 1
    assert sparse_nm.pattern(weight, 8) == "2:4"


def test_floats_with_zeros_anywhere_are_left_to_rows() -> None:
    conv, isa = CASES[0][0], isa_named("znver4")
    rng = np.random.default_rng(0)
    anywhere = (rng.random((conv.oc, conv.c, 1, 1)) < 0.2).astype(np.float32)
    for weight, kinds, wanted in (
        (anywhere, ("float32", "float32"), False),
        (anywhere, ("uint8", "int8"), True),
        (of_groups(conv, 0.25, 4), ("float32", "float32"), True),
    ):
        how = product(conv, isa, *kinds)
        picked = sparse_nm.picked(conv, isa, how)
        assert sparse_nm.suits(weight, how, sparse_nm.density(weight, conv, how, picked.words)) == wanted
