"""Sums of a tile stay in registers, however many bytes these have."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax, tirx

from tests.lower.tools import assembly, build
from tvmcompress.ir import graph
from tvmcompress.lower.registers import MOST, placed, size

POOL = "__TVMBackendAllocWorkspace"


def program(padding: int):
    weight = np.ones((12, 12, 1 + 2 * padding, 1 + 2 * padding), np.float32)

    def body(rw, x):
        return [relax.op.nn.conv2d(x, graph.const(weight), padding=padding)]

    return graph.program([("x", (1, 12, 56, 56), "float32")], body)


def test_a_tile_of_more_than_a_kilobyte_is_none_of_the_pool() -> None:
    """28 pixels by 16 channels; a padded image is much larger, and the pool's."""
    assert POOL not in assembly(build(program(0), "icelake-server"))
    assert POOL in assembly(build(program(1), "icelake-server"))


@pytest.mark.parametrize("length, kept", [(MOST // 4, True), (MOST // 4 + 1, False)])
def test_up_to_all_registers(length: int, kept: bool) -> None:
    buffer = tirx.decl_buffer((length,), "float32")
    one = tirx.AllocBuffer(buffer)
    i = tirx.Var("i", "int32")
    nested = tirx.For(i, 0, 2, tirx.ForKind.SERIAL, tirx.IfThenElse(i < 1, tirx.SeqStmt([one, one]), None))
    for found in (placed(one), *placed(nested).body.then_case):
        assert ("disable_lower_builtin" in found.annotations) is kept


def test_what_has_no_constant_shape_is_large() -> None:
    assert size(tirx.decl_buffer((tirx.Var("n", "int32"),), "float32")) > MOST
