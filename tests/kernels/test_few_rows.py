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
from tvmcompress.lower.sparse import Keep
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
def test_against_numpy(shape, columns):
    need(LEVEL)
    weight, x = (RNG.normal(size=s).astype(np.float32) for s in ((shape[-1], columns), shape))
    weight[RNG.random(weight.shape) < 0.3] = 0
    mod = ClusterWeights(min_size=0)(program(shape, weight)).module
    lowered = build(mod, LEVEL, keep=Keep("always"))
    (row,) = lowered.layers
    assert row["kind"] == "matmul" and row["algorithm"] == "looked up" and row["shared"]["kept"]
    assert not row.get("sparse", {}).get("kept")
    assert re.search(r"\bvperm(ps|d)\b", assembly(lowered)) and not lowered.fallbacks
    (call,) = [b.value for b in graph.bindings(mod) if b.var.name == "fc"]
    found = constants.known(call.args[1], graph.definitions(mod).get)
    got = machine(lowered, linking.linker(Target.load(LEVEL)))([x])[0]
    np.testing.assert_allclose(got, np.maximum(x @ found + 0.5, 0), rtol=1e-4, atol=1e-4)


def row_of(shape, columns, level=LEVEL, keep="always", **options) -> dict:
    """What is said of a layer's shared weights, which the kernel that was built agrees with."""
    mod = program(shape, RNG.normal(size=(shape[-1], columns)).astype(np.float32))
    (layer,) = build(ClusterWeights(min_size=0, **options)(mod).module, level, keep=Keep(keep)).layers
    assert ("algorithm" in layer) == layer["shared"]["kept"] == (not layer["shared"]["why"])
    return layer["shared"]


@pytest.mark.parametrize(
    "shape, columns, options, why",
    [
        ((5, 1024), 512, {}, "5 rows"),
        ((1, 16384), 32, {}, "many columns"),
        ((1, 1024), 512, {"clusters": 256}, "16 values of a layer"),
        ((1, 1024), 512, {"group": 128}, "16 values of a layer"),
        ((1, 1024), 512, {"sharing": "hashed"}, "not hashed"),
        ((1, 1024), 512, {"level": "x86-64-v3"}, "does not pick 16 floats"),
        ((1, 1024), 512, {"keep": "never"}, "asked for"),
    ],
    ids=str,
)
def test_where_it_is_not_for(shape, columns, options, why):
    row = row_of(shape, columns, **options)
    assert why in row["why"] and row["format"] == "unpacked" and row["bytes"] == row["dense_bytes"]


def test_the_estimate_decides():
    """Weights that no cache holds are looked up; a few that one does only where that is asked for."""
    wide = row_of((1, 4096), 4096, keep="faster")
    assert wide["kept"] and wide["estimate"] < 0.5 and wide["format"] == "16 values looked up"
    assert not row_of((4, 128), 256, keep="faster")["kept"] and row_of((4, 128), 256)["kept"]


@pytest.mark.parametrize("density, kept", [(0.02, "sparse"), (0.5, "shared")])
def test_of_shared_values_with_zeros_the_faster_kernel(density, kept):
    weight = (RNG.normal(size=(2048, 2048)) * (RNG.random((2048, 2048)) < density)).astype(np.float32)
    (layer,) = build(ClusterWeights(min_size=0)(program((1, 2048), weight)).module, LEVEL).layers
    told = {kind: layer[kind] for kind in ("sparse", "shared")}
    assert [kind for kind, row in told.items() if row["kept"]] == [kept]
    (other,) = (row for kind, row in told.items() if kind != kept)
    assert "faster" in other["why"] and other["bytes"] == other["dense_bytes"] and "blocks" not in other
