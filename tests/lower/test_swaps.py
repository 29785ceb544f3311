"""Axes that change places: by the kernel where it is one pass more for nobody, and to the last bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from tests.lower.test_sparse import built, normal, results
from tests.lower.tools import need
from tvmcompress.ir import evaluate, graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels.transpose import Swap, swap_of
from tvmcompress.lower.pipeline import lower
from tvmcompress.lower.swaps import apart
from tvmcompress.target import Target

op, nn = relax.op, relax.op.nn
CALLED = re.compile('"tvmcompress_(woven|parted|results)_')
X86 = ("native", "x86-64-v3", "x86-64-v2")


def kernels(mod: tvm.IRModule, name: str = "native") -> list[str]:
    """Tensor programs, once everything is fused, but for reshapes, which cost nothing; of ours what they call."""
    target, seen = Target.load(name), {}
    lower(mod, target.to_tvm(), isa_of(target.to_tvm()), seen.__setitem__)
    programs = [(var.name_hint, str(func)) for var, func in seen["fuse"].functions_items() if var.name_hint != "main"]
    programs = [(name, text) for name, text in programs if not name.startswith("reshape")]
    return [called[0] if (called := CALLED.findall(text)) else name for name, text in programs]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_what_a_permutation_comes_to(shape, random):
    axes = random.sample(range(len(shape)), len(shape))
    x = np.arange(np.prod(shape)).reshape(shape)
    if swap := swap_of(shape, axes):
        assert min(swap.rows, swap.columns) > 1
        again = x.reshape(swap.count, swap.rows, swap.columns).transpose(0, 2, 1)
        np.testing.assert_array_equal(again.reshape(-1), x.transpose(axes).reshape(-1))


def test_permutations_by_hand():
    assert swap_of((1, 64, 56, 56), (0, 2, 3, 1)) == Swap(1, 64, 3136)
    assert swap_of((2, 7, 5, 64), (0, 3, 1, 2)) == Swap(2, 35, 64)
    assert swap_of((1, 197, 12, 64), (0, 2, 3, 1)) == Swap(1, 197, 768)
    assert swap_of((2, 3, 4, 5), (0, 2, 1, 3)) is None  # what is innermost stays so
    assert swap_of((3, 1, 5), (1, 0, 2)) is None and swap_of((4, 3, 2), (2, 1, 0)) is None


SHAPES = [
    ((1, 3, 224, 40), (0, 2, 3, 1)),
    ((2, 3, 31, 33), (0, 2, 3, 1)),
    ((1, 64, 14, 14), (0, 2, 3, 1)),
    ((3, 14, 15, 33), (0, 3, 1, 2)),
    ((1, 57, 73, 2), (0, 3, 1, 2)),
    ((1, 16, 256), (0, 2, 1)),
    ((5000, 3), (1, 0)),
    ((15, 1001), (1, 0)),
    ((2, 17, 3, 80), (0, 2, 3, 1)),
]


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("shape, axes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_to_the_last_bit(shape, axes, dtype, name):
    need(name)
    mod = graph.program([("x", shape, dtype)], lambda rw, x: [rw.emit(op.permute_dims(x, axes))])
    swap, lanes = swap_of(shape, axes), isa_of(Target.load(name).to_tvm()).lanes
    wanted = "woven" if swap.rows < lanes else "parted" if swap.columns < lanes else "results"
    assert kernels(mod, name) == [wanted]
    x = np.random.default_rng(0).integers(0, 1 << 32, shape, np.uint32).view(dtype)  # floats of all kinds
    (got,) = results(built(mod, name=name), x, name)
    np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(x.transpose(axes)).view(np.uint32))


@pytest.mark.parametrize("dtype", ["float16", "int8", "int64"])
def test_other_words_stay_as_they_are(dtype):
    mod = graph.program([("x", (64, 100), dtype)], lambda rw, x: [rw.emit(op.permute_dims(x, [1, 0]))])
    x = np.random.default_rng(0).integers(-100, 100, (64, 100)).astype(dtype)
    (got,) = results(built(mod), x)
    np.testing.assert_array_equal(got, x.T)


def test_at_the_borders_of_a_program():
    weight = normal(0, 40, 24, 3, 3)

    def body(rw, x):
        return [rw.emit(nn.relu(rw.emit(nn.conv2d(x, graph.const(weight), 1, 1))))]

    mod = graph.program([("x", (2, 24, 20, 31), "float32")], body)
    assert kernels(mod).count("results") == 2
    x = np.random.default_rng(0).standard_normal((2, 24, 20, 31)).astype(np.float32)
    for got, wanted in zip(results(built(mod), x), evaluate.evaluate(mod, [x]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_many_sums_of_one_value_take_no_time():
    """What is behind a permutation is looked at once."""

    def body(rw, x):
        x = rw.emit(op.exp(x))
        for _ in range(60):
            x = rw.emit(op.add(x, x))
        return [rw.emit(op.permute_dims(x, [1, 0]))]

    assert apart(graph.program([("x", (64, 100), "float32")], body)) == set()


def test_where_a_loop_takes_it_in_it_stays_there():
    def body(rw, x):
        return [rw.emit(nn.relu(rw.emit(op.permute_dims(rw.emit(op.exp(x)), [1, 0]))))]

    (name,) = kernels(graph.program([("x", (64, 100), "float32")], body))
    assert "exp_transpose" in name
