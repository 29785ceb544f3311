"""Texts of tensor programs that Python runs: what TVM's own reader makes of them comes out, names and all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tests.kernels.test_sparse_streams import ISAS
from tvmcompress.ir import script
from tvmcompress.kernels import sparse_blocks, sparse_rows, sparse_rows_lists, sparse_rows_plan
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse import UNLIMITED, product

TEXT = """
@T.prim_func(private=True, s_tir=True)
def turned(x: T.Buffer((n, 4), "float32"), y: T.Buffer((4, n), kind), z: T.Buffer((4,), kind)):
    T.func_attr({"tirx.noalias": True})
    own = T.sblock_alloc_buffer((4, n), kind)
    for i, j in T.grid(4, n):
        with T.sblock("turn"):
            vi, vj = T.axis.remap("SS", [i, j])
            own[vi, vj] = x[vj, vi]
    for i in range(4):
        for j in T.parallel(n // 2):
            with T.sblock("scale"):
                vi = T.axis.spatial(4, i)
                vj = T.axis.spatial(n // 2, j)
                T.reads(own[vi, vj * 2 : vj * 2 + 2])
                T.writes(y[vi, vj * 2], z[vi])
                T.sblock_attr(facts)
                two = T.alloc_buffer((2,), kind)
                T.evaluate(T.call_extern("void", "f", T.address_of(two[1])))
                y[vi, vj * 2] = T.max(own[vi, vj * 2] * T.float32(0.5), two[0])
                z[vi] = T.Cast(kind, vi)
"""
NAMES = {"n": 6, "kind": "float32", "facts": {"macs": 3}}
program = script.program


def alike(text: str, names: Mapping[str, Any]) -> PrimFunc:
    ours, theirs = program(text, names), tvm.script.from_source(text, {"T": T, **names})
    tvm.ir.assert_structural_equal(ours, theirs)
    assert ours.script() == theirs.script()
    return ours


def test_every_statement():
    text = alike(TEXT, NAMES).script()
    assert all(name in text for name in ("own", "vi", "two", "T.parallel(3)"))


def test_a_program_is_its_own():
    first, second = program(TEXT, NAMES), program(TEXT, {**NAMES, "n": 8})
    assert not tvm_ffi.structural_equal(first, second)
    tvm.ir.assert_structural_equal(first, program(TEXT, NAMES))


def test_what_is_wrong_with_a_text_is_said():
    with pytest.raises(NameError, match="kind"):
        program(TEXT, {"n": 6, "facts": {}})
    with pytest.raises(SyntaxError):
        program(TEXT.replace("range(4)", "range(4"), NAMES)
    program(TEXT, NAMES)  # and nothing of it is left


@pytest.mark.parametrize("kinds", [("float32", "float32"), ("uint8", "int8")])
@pytest.mark.parametrize(
    "conv, shape",
    [
        (Conv2d(2, 9, 9, 20, 40, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), (2, 5, 5, 40)),
        (Conv2d(1, 14, 14, 400, 16, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), (1, 14, 14, 16)),
        (Conv2d(3, 1, 70, 64, 33, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), (3, 1, 70, 33)),
        (Conv2d(1, 1, 8, 16, 10, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), (8, 10)),
    ],
)
def test_kernels(monkeypatch, conv, shape, kinds):
    read = []
    monkeypatch.setattr(script, "program", lambda text, names: read.append(text) or alike(text, names))
    isa = ISAS["icelake-server"]
    how = product(conv, isa, *kinds)
    weight = np.random.default_rng(0).integers(-3, 4, (conv.oc, conv.c, *conv.kernel)).astype(kinds[1])
    rows = sparse_rows_plan.plan(conv, isa, how, 0.3)
    packed = streams(sparse_rows_lists.pack(weight, rows))
    sparse_rows.written.__wrapped__(rows, *packed, shape, 0, False, UNLIMITED)
    blocks = sparse_blocks.plan(conv, isa, how, 1, 0.3)
    sparse_blocks.written.__wrapped__(conv, blocks, *streams(sparse_blocks.pack(weight, conv, blocks)), shape)
    assert len(read) == 2


def streams(packed) -> tuple[int, str, str]:
    return len(packed.values), str(packed.values.dtype), str(packed.offsets.dtype)
