"""Products of few rows with weights that share 16 values, looked up in a register."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import assembly, build, need
from tvmcompress import linking
from tvmcompress.ir import constants, graph
from tvmcompress.kernels import few_rows
from tvmcompress.lower.pipeline import machine
from tvmcompress.passes import ClusterWeights
from tvmcompress.target import Target

LEVEL = "x86-64-v4"
RNG = np.random.default_rng(0)


def program(shape, weight, name="fc"):
    def body(rw, x):
        y = rw.emit(relax.op.matmul(x, graph.const(weight)), name)
        return [relax.op.nn.relu(rw.emit(relax.op.add(y, graph.const(np.float32(weight.shape[1] * [0.5])))))]

    return graph.program([("x", shape, "float32")], body)


def test_indices_lie_as_the_kernel_reads_them():
    """One row: blocks of 256 columns; byte j of a load holds column j and column 16 + j."""
    indices = RNG.integers(0, 16, (3, 300)).astype(np.uint8)
    packed = few_rows.pack(indices, 1)
    assert packed.shape == (2, 3, 128)
    assert packed[0, 2, 0] == indices[2, 0] | indices[2, 16] << 4
    assert packed[0, 1, 21] == indices[1, 37] | indices[1, 53] << 4
    assert packed[1, 0, 27] == indices[0, 256 + 43] and not packed[1, :, 32:].any()


# Weights that no second-level cache holds, or a cache of none; widths that fill blocks and that do not.
CASES = [
    ((1, 600), 512),
    ((1, 7), 300),
    ((2, 33), 128),
    ((3, 65), 100),
    ((4, 40), 64),
    ((2, 2, 50), 90),
    ((1, 3, 9), 200),
]


@pytest.mark.parametrize("shape, columns", CASES, ids=str)
def test_against_numpy(shape, columns, monkeypatch):
    need(LEVEL)
    monkeypatch.setattr(few_rows, "LEAST_BYTES", 0)
    weight, x = (RNG.normal(size=s).astype(np.float32) for s in ((shape[-1], columns), shape))
    weight[RNG.random(weight.shape) < 0.3] = 0
    mod = ClusterWeights(min_size=0)(program(shape, weight)).module
    lowered = build(mod, LEVEL)
    assert [row["kind"] for row in lowered.layers] == ["matmul"] and lowered.layers[0]["algorithm"] == "looked up"
    assert re.search(r"\bvperm(ps|d)\b", assembly(lowered)) and not lowered.fallbacks
    (call,) = [b.value for b in graph.bindings(mod) if b.var.name == "fc"]
    found = constants.known(call.args[1], graph.definitions(mod).get)
    got = machine(lowered, linking.linker(Target.load(LEVEL)))([x])[0]
    np.testing.assert_allclose(got, np.maximum(x @ found + 0.5, 0), rtol=1e-4, atol=1e-4)


def test_where_it_is_not_for(monkeypatch):
    """More rows, 256 values, narrow results, weights that a cache holds, other targets: unpacked when loaded."""
    monkeypatch.setattr(few_rows, "LEAST_BYTES", 1 << 20)

    def looked_up(shape, columns, level=LEVEL, **options):
        mod = program(shape, RNG.normal(size=(shape[-1], columns)).astype(np.float32))
        return "algorithm" in build(ClusterWeights(min_size=0, **options)(mod).module, level).layers[0]

    assert looked_up((1, 1024), 512)
    assert not looked_up((5, 1024), 512) and not looked_up((1, 1024), 512, clusters=256)
    assert not looked_up((1, 16384), 32) and not looked_up((1, 1024), 200)
    assert not looked_up((1, 1024), 512, "x86-64-v3") and not looked_up((1, 1024), 512, group=128)
