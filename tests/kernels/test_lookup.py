"""Tables of 256 bytes: every value, any shape, both kinds of bytes, in vectors where the instruction set can."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lower.tools import assembly, build, need, random_bytes
from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.kernels import quantized
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target

SHAPES = [(1,), (63,), (64,), (1, 5, 7, 3), (1, 32, 32, 16), (2, 33, 17, 5), (1, 56, 56, 64), (3, 1, 131)]


def program(x: np.ndarray, table: np.ndarray):
    return graph.program(
        [("x", x.shape, str(x.dtype))], lambda rw, value: [quantized.look_up(rw.builder, value, table)]
    )


@pytest.mark.parametrize("name", ["native", "x86-64-v3", "icelake-server"])
@pytest.mark.parametrize("data", ["uint8", "int8"])
@pytest.mark.parametrize("out", ["uint8", "int8"])
def test_look_up(name: str, data: str, out: str) -> None:
    need(name)
    for seed, shape in enumerate(SHAPES):
        table = np.random.default_rng(seed).permutation(256).astype(np.uint8).view(out)
        x = random_bytes(shape, data, seed)
        lowered = build(program(x, table), name)
        assert not lowered.fallbacks
        (got,) = machine(lowered, linking.linker(Target.load(name)))([x])
        np.testing.assert_array_equal(got, table[x.astype(int) - (-128 if data == "int8" else 0)])


@pytest.mark.parametrize("name", ["icelake-server", "znver4"])
def test_in_vectors(name: str) -> None:
    x = random_bytes((1, 32, 32, 16), "uint8")
    text = assembly(build(program(x, np.arange(256, dtype=np.uint8)), name))
    assert "vpermi2b" in text or "vpermt2b" in text
