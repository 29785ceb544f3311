"""Which kernels may write over an operand, and that those which may not are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.s_tir import Schedule
from tvm.script import tirx as T

from tvmcompress.lower.in_place import in_place

TEMPLATE = """
@T.prim_func(private=True, s_tir=True)
def kernel(x: T.Buffer((6, 20), "{x}"), y: T.Buffer((6, 20), "float32"), z: T.Buffer((1, 20), "float32"),
           out: T.Buffer((6, 20), "float32")):
    T.func_attr({{"tirx.noalias": True}})
    {before}
    for {loops}:
        with T.sblock("sum"):
            i, j = T.axis.remap("SS", [a, b])
            T.reads(x[0:6, 0:20], y[0:6, 0:20], z[0, 0:20])
            T.writes({target})
            {target} = {value}
"""


def kernel(
    value: str, x: str = "float32", loops: str = "a, b in T.grid(6, 20)", target: str = "out[i, j]", before: str = ""
) -> tvm.tirx.PrimFunc:
    source = TEMPLATE.format(value=value, x=x, loops=loops, target=target, before=before)
    return tvm.script.from_source(source, {"T": T})


def run(func: tvm.tirx.PrimFunc, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """All parameters after the call."""
    built = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target={"kind": "llvm"})
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    built["main"](*tensors)
    return [t.numpy() for t in tensors]


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in ((6, 20), (6, 20), (1, 20), (6, 20))]


@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_form_computes_the_same(operand: int, scheduled: bool) -> None:
    func = kernel("x[i, j] * y[i, j] + x[i, j] + z[0, j]")
    if scheduled:
        sch = Schedule(func)
        outer, inner = sch.get_loops(sch.get_sblock("sum"))
        _, lanes = sch.split(inner, [None, 16])  # a tail: 20 is no multiple
        sch.vectorize(lanes)
        sch.parallel(outer)
        func = sch.mod["main"].without_attr("global_symbol")
    form = in_place(func, operand)
    assert form is not None and len(form.params) == 3
    x, y, z, out = arrays()
    np.testing.assert_array_equal(run(form, [x, y, z])[operand], run(func, [x, y, z, out])[3])


COPY = """t = T.sblock_alloc_buffer((6, 20), "float32")
    for c, d in T.grid(6, 20):
        with T.sblock("copy"):
            k, l = T.axis.remap("SS", [c, d])
            T.reads(x[k, l])
            T.writes(t[k, l])
            t[k, l] = x[k, l]"""


@pytest.mark.parametrize(
    "change",
    [
        {"value": "x[5 - i, j] + z[0, j]"},  # another index
        {"value": "x[i, j] - x[i, 0]"},  # the right one, and another
        {"value": "x[i, j] + out[i, j]"},  # the result is read
        {"value": "z[0, j]"},  # not read at all: nothing says that its shape fits by more than chance
        {"value": "T.Cast('float32', x[i, j])", "x": "int32"},
        {"value": "x[i, j] * t[5 - i, j]", "before": COPY},  # read again by another block
        {"value": "x[i, j] + T.float32(1)", "loops": "r, a, b in T.grid(2, 6, 20)"},  # each element twice
        {"value": "x[i, j]", "target": "out[i, 19 - j]"},
        {"value": "x[i, j]", "target": "out[i, i]"},
    ],
    ids=lambda change: " ".join(change.values())[:40],
)
def test_what_may_not(change: dict) -> None:
    assert in_place(kernel(**change), 0) is None


def test_an_operand_that_is_broadcast() -> None:
    assert in_place(kernel("x[i, j] + z[0, j]"), 2) is None


def test_stores_outside_of_blocks() -> None:
    @T.prim_func(private=True, s_tir=True)
    def func(x: T.Buffer((4,), "float32"), out: T.Buffer((4,), "float32")):
        for i in range(4):
            out[i] = x[i] + T.float32(1)

    assert in_place(func, 0) is None


@pytest.mark.parametrize("at", [16, 7])
def test_a_loop_in_two_parts(at: int) -> None:
    sch = Schedule(kernel("x[i, j] * y[i, j] + z[0, j]"))
    sch.loop_partition(sch.get_loops(sch.get_sblock("sum"))[-1], [at, None], preserve_unit_iters=False)
    func = sch.mod["main"].without_attr("global_symbol")
    form = in_place(func, 0)
    assert form is not None and len(form.params) == 3
    given = arrays()
    np.testing.assert_array_equal(run(form, given[:3])[0], run(func, given)[3])


def test_two_loops_that_meet() -> None:
    """Some elements are written twice: the second time what is read would be a result."""
    func = kernel("x[i, j] + y[i, j]", loops="h, a, b in T.grid(2, 6, 12)").script()
    twice = func.replace('T.axis.remap("SS", [a, b])', "T.axis.spatial(6, a), T.axis.spatial(20, h * 8 + b)")
    assert "h * 8" in twice
    assert in_place(tvm.script.from_source(twice), 0) is None
