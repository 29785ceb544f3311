"""Rows of sparse products in blocks: how many, which operators go along, and that results are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from tests.lower.test_sparse import built, calls, normal, pruned, results
from tests.lower.tools import need
from tvmcompress.ir import evaluate, graph
from tvmcompress.isa import isa_of
from tvmcompress.lower import pipeline, sparse
from tvmcompress.lower.row_blocks import blocks, in_blocks
from tvmcompress.target import Target

op, nn = relax.op, relax.op.nn
X86 = ("native", "x86-64-v3", "x86-64-v2")


def machine(cores: int = 2, name: str = "x86-64-v4"):
    return replace(isa_of(Target.load(name).to_tvm()), cores=cores)


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """Layers as small as these would be blocks of weights, most of them full, or dense."""
    every = sparse.candidates
    monkeypatch.setattr(
        sparse, "candidates", lambda *given: [replace(one, cycles=0) for one in every(*given) if one.text == "rows"]
    )


@pytest.mark.parametrize(
    "shape, cores, wanted",
    [
        ((1, 128, 8), 2, 2), ((128, 8), 2, 2), ((1, 16, 16, 8), 4, 4), ((1, 128, 8), 4, 2), ((1, 384, 8), 3, 3),
        ((1, 384, 8), 5, 4), ((1, 128, 8), 1, 1), ((2, 128, 8), 2, 1), ((1, 197, 8), 2, 1), ((1, 64, 8), 2, 1),
        ((1, 0, 8), 2, 1), ((8,), 2, 1), ((1, 136, 8), 2, 1),
    ],
)  # fmt: skip
def test_blocks_are_whole_lines_enough_of_them_and_one_for_each_core_at_most(shape, cores, wanted):
    assert blocks(shape, machine(cores)) == wanted


def layers(rw, x, side=None):
    """Two sparse products with what is element-wise behind them, and a dense one."""
    c = graph.shape(x)[-1]
    first, second, third = pruned(1, c, 40), pruned(2, 40, c), normal(3, c, 12)
    y = rw.emit(op.add(rw.emit(op.matmul(x, graph.const(first)), "up"), graph.const(normal(4, 40))))
    y = rw.emit(op.multiply(rw.emit(nn.gelu(y)), graph.const(np.float32(0.5))))
    y = rw.emit(op.add(rw.emit(op.matmul(y, graph.const(second)), "down"), x if side is None else side))
    return [y, rw.emit(op.matmul(rw.emit(nn.relu(y)), graph.const(third)), "head")]


def shapes(mod, name: str) -> set[tuple[int, ...]]:
    return {graph.shape(b.var) for b in graph.bindings(mod) if graph.op_name(b.value) == f"relax.{name}"}


@pytest.mark.parametrize("shape", [(128, 24), (1, 128, 24), (1, 1, 128, 24)], ids=str)
def test_sparse_products_and_what_follows_are_in_blocks(shape):
    """The dense product is not, and results have the shapes that they had."""
    before = graph.program([("x", shape, "float32")], lambda rw, x: layers(rw, x))
    after = in_blocks(before, machine())
    assert shapes(after, "add") == {(2, 64, 40), (2, 64, 24)} and shapes(after, "nn.gelu") == {(2, 64, 40)}
    assert shapes(after, "matmul") == {(2, 64, 40), (2, 64, 24), (*shape[:-1], 12)}
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for got, wanted in zip(evaluate.evaluate(after, [x]), evaluate.evaluate(before, [x]), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_layers_keep_their_names():
    before = graph.program([("x", (1, 128, 24), "float32")], lambda rw, x: layers(rw, x))
    names = {
        b.var.name for b in graph.bindings(in_blocks(before, machine())) if graph.op_name(b.value) == "relax.matmul"
    }
    assert names == {"up", "down", "head"}


def test_other_operands():
    """A tensor of the same shape from elsewhere, a vector of the one image, and one of all channels as a matrix."""

    def body(rw, x, side, gate):
        y, _ = layers(rw, x, side)
        y = rw.emit(op.multiply(y, gate))
        return [rw.emit(op.add(y, graph.const(normal(7, 1, 24))))]

    inputs = [("x", (1, 128, 24), "float32"), ("side", (1, 128, 24), "float32"), ("gate", (1, 1, 24), "float32")]
    before = graph.program(inputs, body)
    after = in_blocks(before, machine())
    assert shapes(after, "multiply") == {(2, 64, 40), (2, 64, 24)}
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(np.float32) for _, shape, _ in inputs]
    np.testing.assert_allclose(*(evaluate.evaluate(mod, values)[0] for mod in (after, before)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 100, 24), (2, 128, 24), (1, 197, 24)], ids=str)
def test_what_cannot_be_divided_stays(shape):
    mod = graph.program([("x", shape, "float32")], lambda rw, x: layers(rw, x))
    assert in_blocks(mod, machine()) is mod


def test_dense_products_stay():
    weight = graph.const(normal(1, 24, 40))
    mod = graph.program([("x", (1, 128, 24), "float32")], lambda rw, x: [rw.emit(op.matmul(x, weight))])
    assert in_blocks(mod, machine()) is mod


@pytest.mark.parametrize("way", ["in", "out"])
def test_channels_first_stay(way):
    """They are planes already: in blocks they would have to be transposed."""
    weight = graph.const(pruned(1, 24, 40))

    def body(rw, x):
        x = rw.emit(nn.relu(rw.emit(op.permute_dims(x, [0, 2, 1])) if way == "in" else x))
        y = rw.emit(nn.relu(rw.emit(op.matmul(x, weight))))
        return [rw.emit(op.permute_dims(y, [0, 2, 1])) if way == "out" else y]

    shape = (1, 24, 128) if way == "in" else (1, 128, 24)
    mod = graph.program([("x", shape, "float32")], body)
    assert in_blocks(mod, machine()) is mod


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("shape", [(1, 256, 24), (256, 24)], ids=str)
def test_kernels(shape, name, monkeypatch):
    """On any number of cores: planes between the two layers, in blocks."""
    need(name)
    monkeypatch.setattr(pipeline, "in_blocks", lambda mod, isa: in_blocks(mod, replace(isa, cores=2)))

    def body(rw, x):
        return layers(rw, rw.emit(nn.layer_norm(x, graph.const(normal(8, 24)), graph.const(normal(9, 24)), [-1])))

    mod = graph.program([("x", shape, "float32")], body)
    lowered = built(mod, name=name)
    keys = [key for key in calls(lowered) if key.startswith("sparse ")]
    assert len(keys) == 2 and all("2x1x128x" in key for key in keys), keys
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for got, wanted in zip(results(lowered, x, name), evaluate.evaluate(mod, [x]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
