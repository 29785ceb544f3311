"""LSTM and GRU layers with products of integers, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import assembly, build, need
from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels import matmul, recurrent
from tvmcompress.kernels.recurrent import Bytes
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target

CASES = [  # steps, batch, hidden, backward
    (4, 1, 16, False),
    (3, 2, 19, True),
    (5, 1, 40, True),
    (2, 3, 1, False),
    (3, 1, 128, False),
]
ORDER = {"lstm": (2, 0, 3, 1), "gru": (1, 2, 0)}
FORMS = [Bytes(1 / 127, 128, "uint8"), Bytes(1 / 90, 3, "int8"), Bytes(1 / 200, 0, "uint8")]  # the last cuts values off


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(op, x, h, c, weight, scale, bias, form, backward):
    """Step by step, as kernels/recurrent.py says; h is rounded before each product."""
    low, high = (-128, 127) if form.dtype == "int8" else (0, 255)
    rows = []
    for t in reversed(range(len(x))) if backward else range(len(x)):
        whole = np.clip(np.rint(h / np.float32(form.scale)) + form.zero, low, high).astype(np.int64) - form.zero
        product = (whole @ weight.astype(np.int64)) * np.float64(form.scale) * scale
        split = lambda a: np.split(a, len(ORDER[op]), axis=1)  # noqa: E731
        if op == "lstm":
            i, o, f, g = (split(x[t] + product)[place] for place in ORDER[op])
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = (sigmoid(o) * np.tanh(c)).astype(np.float32)
        else:
            (xz, xr, xn), (mz, mr, mn) = ([split(a)[place] for place in ORDER[op]] for a in (x[t], product))
            z, r = sigmoid(xz + mz), sigmoid(xr + mr)
            h = ((1 - z) * np.tanh(xn + r * (mn + bias)) + z * h).astype(np.float32)
        rows.append(h)
    return np.stack(rows[::-1] if backward else rows), c


def layer(rw, isa, op, case, form, rng, inputs):
    """A call of the kernel, and the weights, scales and bias that it computes with."""
    time, batch, hidden, backward = case
    wide, state = len(ORDER[op]) * hidden, (batch, hidden)
    p = recurrent.plan(isa, wide, hidden, "int8")
    weight = rng.integers(-127, 128, (hidden, wide), np.int8)
    scale = (rng.uniform(0.5, 2, wide) / 60 / np.sqrt(hidden)).astype(np.float32)
    bias = rng.standard_normal(hidden).astype(np.float32)
    start = -form.zero_of(p.data) * weight.sum(0, dtype=np.int64)
    blocks = (-1, p.tile.block)
    constants = [matmul.pack(weight, p), *([] if op == "lstm" else [bias]), start.astype(np.int32).reshape(blocks)]
    constants.append((np.float64(form.scale) * scale).astype(np.float32).reshape(blocks))
    kernel = rw.builder.add_func(getattr(recurrent, op)(p, time, batch, hidden, ORDER[op], backward, form), op)
    arguments = [*inputs[: 3 if op == "lstm" else 2], *(graph.const(a) for a in constants)]
    types = [relax.TensorType((time, *state), "float32"), relax.TensorType(state, "float32")]
    call = rw.emit(relax.op.call_tir(kernel, arguments, types if op == "lstm" else types[0]))
    results = [rw.emit(relax.TupleGetItem(call, i)) for i in range(2)] if op == "lstm" else [call]
    return results, (weight, scale, bias)


def check(name: str, op: str, cases) -> str:
    """One program of all cases and forms; returns its assembly."""
    target, rng = Target.load(name), np.random.default_rng(0)
    isa = isa_of(target.to_tvm(), target.l1d, target.l2)
    work = [(case, form) for case in cases for form in FORMS]
    shapes = [((t, n, len(ORDER[op]) * h), (n, h), (n, h)) for (t, n, h, _), _ in work]
    arrays = [rng.uniform(-0.9, 0.9, s).astype(np.float32) for each in shapes for s in each]
    wanted = []

    def body(rw, *inputs):
        results = []
        for i, (case, form) in enumerate(work):
            out, numbers = layer(rw, isa, op, case, form, rng, inputs[3 * i : 3 * i + 3])
            y, c = reference(op, *arrays[3 * i : 3 * i + 3], *numbers, form, case[3])
            wanted.extend([y, c][: len(out)])
            results += out
        return results

    lowered = build(graph.program([(f"x{i}", a.shape, "float32") for i, a in enumerate(arrays)], body), name)
    assert not lowered.fallbacks
    got = machine(lowered, linking.linker(target))(arrays)
    for a, b in zip(got, wanted, strict=True):
        # Where the last bits of a state differ, its integer may be the next one: rare, and a step of about 1/127.
        np.testing.assert_allclose(a, b, atol=0.01)
        assert np.mean(np.abs(a - b) > 2e-6) < 0.2
    return assembly(lowered)


@pytest.mark.parametrize("op", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
def test_against_numpy(name: str, op: str) -> None:
    need(name)
    check(name, op, CASES)


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_dot_products(op: str) -> None:
    need("icelake-server")
    assert "vpdpbusd" in check("icelake-server", op, CASES)
