"""Softmax over the last axis against NumPy: rows of any length, large values, one row and many."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import build, dequantized, need, random_bytes
from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target

SHAPES = [(1, 3, 196, 196), (2, 16), (5, 17), (1, 1000), (3, 7, 31), (4, 15), (2, 1), (1, 12, 128, 128), (997, 33)]


@pytest.mark.parametrize("name", ["native", "x86-64-v3"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax(shape, name: str) -> None:
    need(name)
    x = (np.random.default_rng(0).standard_normal(shape) * 30).astype(np.float32)
    x.reshape(-1)[0] = 300.0
    lowered = build(graph.program([("x", shape, "float32")], lambda _rw, v: [relax.op.nn.softmax(v, -1)]), name)
    assert not lowered.fallbacks
    (got,) = machine(lowered, linking.linker(Target.load(name)))([x])
    power = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    np.testing.assert_allclose(got, power / power.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_bytes(shape, dtype: str) -> None:
    """The full range of bytes; where rows are long enough nothing is dequantized before."""
    x, scale = random_bytes(shape, dtype), np.float32(0.07)
    body = lambda rw, q: [relax.op.nn.softmax(dequantized(rw, q, scale, 9), -1)]  # noqa: E731
    lowered = build(graph.program([("x", shape, dtype)], body), "native")
    assert not lowered.fallbacks
    assert shape[-1] < 16 or "dequantize" not in lowered.executable.as_text()
    (got,) = machine(lowered, linking.linker(Target.load("native")))([x])
    power = np.exp((x.astype(np.float64) - x.max(-1, keepdims=True)) * np.float64(scale))
    np.testing.assert_allclose(got, power / power.sum(-1, keepdims=True), rtol=1e-5, atol=1e-9)
