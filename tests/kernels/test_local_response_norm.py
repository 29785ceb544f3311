"""Local response normalisation against NumPy: its kernel, and the operator as stock TVM runs it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lower.tools import build, need
from tvmcompress import linking
from tvmcompress.ir import evaluate, graph, ops
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target

CASES = [
    ((1, 5, 7, 96), 5, 1e-4, 0.75, 1.0),
    ((2, 3, 4, 19), 4, 0.5, 0.5, 2.0),
    ((1, 1, 1, 1), 3, 1.0, 1.0, 0.5),
    ((3, 2, 33), 7, 0.3, 0.6, 1.0),
    ((1, 4, 4, 40), 1, 2.0, 0.75, 1.0),
]


def wanted(x: np.ndarray, size: int, alpha: float, beta: float, bias: float) -> np.ndarray:
    square = x.astype(np.float64) ** 2
    before = (size - 1) // 2
    padded = np.pad(square, [(0, 0)] * (x.ndim - 1) + [(before, size - 1 - before)])
    total = sum(padded[..., j : j + x.shape[-1]] for j in range(size))
    return x / (bias + alpha / size * total) ** beta


def program(x: np.ndarray, *numbers):
    return graph.program([("x", x.shape, "float32")], lambda _rw, v: [ops.local_response_norm(v, *numbers)])


@pytest.mark.parametrize("name", ["native", "x86-64-v3"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case, name: str) -> None:
    need(name)
    shape, *numbers = case
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    lowered = build(program(x, *numbers), name)
    assert not lowered.fallbacks
    (got,) = machine(lowered, linking.linker(Target.load(name)))([x])
    np.testing.assert_allclose(got, wanted(x, *numbers), rtol=2e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case) -> None:
    shape, *numbers = case
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (got,) = evaluate.evaluate(program(x, *numbers), [x])
    np.testing.assert_allclose(got, wanted(x, *numbers), rtol=2e-6)
