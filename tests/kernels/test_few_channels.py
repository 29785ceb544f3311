"""Layers of few channels: vectors no longer than these, of whatever kind the layer is."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import assembly, build
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels.tiles import lanes_for
from tvmcompress.target import Target

TARGET = Target.load("icelake-server")
ISA = isa_of(TARGET.to_tvm(), TARGET.l1d, TARGET.l2)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "channels, lanes", [(1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (12, 16), (16, 16), (17, 16), (40, 16)]
)
def test_the_shortest_vector_that_holds_them_all(channels: int, lanes: int) -> None:
    assert lanes_for(ISA, channels) == lanes


def image(channels: int, outputs: int, groups: int, kernel: int):
    weight = RNG.standard_normal((outputs, channels // groups, kernel, kernel)).astype(np.float32)

    def body(rw, x):
        return [relax.op.nn.conv2d(x, graph.const(weight), padding=kernel // 2, groups=groups)]

    return graph.program([("x", (1, channels, 8, 16), "float32")], body)


def rows(channels: int, outputs: int):
    weight = RNG.standard_normal((channels, outputs)).astype(np.float32)
    return graph.program([("x", (32, channels), "float32")], lambda rw, x: [relax.op.matmul(x, graph.const(weight))])


PROGRAMS = {
    "pointwise": lambda n: image(12, n, 1, 1),
    "plain": lambda n: image(12, n, 1, 3),
    "grouped": lambda n: image(12, 3 * n, 3, 3),
    "depthwise": lambda n: image(n, n, n, 3),
    "product": lambda n: rows(12, n),
}


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("channels, register", [(6, "ymm"), (8, "ymm"), (12, "zmm")])
def test_registers_that_are_multiplied(kind: str, channels: int, register: str) -> None:
    text = assembly(build(PROGRAMS[kind](channels), "icelake-server"))
    assert set(re.findall(r"vfmadd\w+ps\s.*%([xyz]mm)\d+", text)) == {register}
