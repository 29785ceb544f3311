"""Unrolled LSTM and GRU layers become one kernel again, with the same results."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

import tvmcompress as tc
from tests.lower.tools import build, need
from tvmcompress import linking
from tvmcompress.frontend import load
from tvmcompress.ir import evaluate, graph
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import lower, machine
from tvmcompress.lower.recurrent import roll
from tvmcompress.passes import ClusterWeights, simplified
from tvmcompress.target import Target


def network(op: str, steps: int, batch: int, inputs: int, hidden: int, direction: str, states: bool, **attributes):
    """A model with all results of an LSTM or GRU, and arrays for its inputs."""
    rng = np.random.default_rng(steps * hidden)
    count, gates = 2 if direction == "bidirectional" else 1, {"LSTM": 4, "GRU": 3}[op]
    state = {"LSTM": ["h", "c"], "GRU": ["h"]}[op]
    shapes = [(count, gates * hidden, inputs), (count, gates * hidden, hidden), (count, 2 * gates * hidden)]
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32), n)
        for s, n in zip(shapes, "WRB")
    ]
    first = [f"{n}0" if states else "" for n in state]
    given = {"x": (steps, batch, inputs)} | {n: (count, batch, hidden) for n in first if n}
    if op == "GRU":
        attributes.setdefault("linear_before_reset", 1)
    node = helper.make_node(
        op, ["x", "W", "R", "B", "", *first], ["y", *state], hidden_size=hidden, direction=direction, **attributes
    )
    results = {"y": (steps, count, batch, hidden)} | dict.fromkeys(state, (count, batch, hidden))
    values = lambda table: [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in table.items()]  # noqa: E731
    net = helper.make_graph([node], "net", values(given), values(results), weights)
    proto = helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return proto, [rng.standard_normal(s).astype(np.float32) for s in given.values()]


def program(proto: onnx.ModelProto, folder):
    onnx.save(proto, folder / "net.onnx")
    return load(folder / "net.onnx").module


def facts(name: str = "native"):
    target = Target.load(name)
    return isa_of(target.to_tvm(), target.l1d, target.l2)


def kernels(mod) -> int:
    calls = [b.value for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.call_tir"]
    return sum(c.args[0].name_hint.startswith(("lstm", "gru")) for c in calls)


CASES = [
    (7, 1, 5, 16, "forward", False),
    (6, 2, 9, 19, "forward", True),
    (5, 1, 4, 24, "reverse", True),
    (9, 3, 8, 40, "bidirectional", False),
    (4, 2, 3, 7, "bidirectional", True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("name", ["native", "x86-64-v3"])
def test_same_results(case, name: str, op: str, tmp_path) -> None:
    need(name)
    proto, arrays = network(op, *case)
    before = program(proto, tmp_path)
    wanted = evaluate.evaluate(before, arrays)
    after, rows = roll(before, facts(name))
    assert sum(row["macs"] for row in rows) == case[0] * case[1] * case[3] ** 2 * len(rows) * (4 if op == "LSTM" else 3)
    assert kernels(after) == (2 if case[4] == "bidirectional" else 1)
    assert not any(graph.op_name(b.value) == "relax.sigmoid" for b in graph.bindings(after))
    lowered = build(before, name)
    assert not lowered.fallbacks
    for got in (evaluate.evaluate(after, arrays), machine(lowered, linking.linker(Target.load(name)))(arrays)):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


OTHERS = [
    ("LSTM", {"clip": 0.5}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
    ("GRU", {"linear_before_reset": 0}),
    ("GRU", {"clip": 0.5}),
]


@pytest.mark.parametrize(("op", "attributes"), OTHERS, ids=str)
def test_other_cells_stay(op: str, attributes, tmp_path) -> None:
    before = program(network(op, 5, 1, 4, 16, "forward", False, **attributes)[0], tmp_path)
    assert kernels(roll(before, facts())[0]) == 0


def test_a_cell_that_something_else_reads_stays(tmp_path) -> None:
    """The cell state of a step between is no result of the kernel."""
    before = program(network("LSTM", 5, 1, 4, 16, "forward", False)[0], tmp_path)
    tanh = [b.value for b in graph.bindings(before) if graph.op_name(b.value) == "relax.tanh"]
    between = tanh[3].args[0]  # of the second step

    def visit(rw, var, expr):
        if var != graph.results(before)[2]:
            return None
        return relax.op.add(rw.emit(expr), rw.emit(relax.op.reshape(rw.new(between), (1, 1, 16))))

    assert kernels(roll(graph.rewrite(before, visit), facts())[0]) == 0


def compressed(proto: onnx.ModelProto, arrays, folder):
    """The model and its int8 form, from random samples."""
    onnx.save(proto, folder / "net.onnx")
    model = tc.load(folder / "net.onnx")
    rng = np.random.default_rng(1)
    names = [spec.name for spec in model.inputs]
    draw = lambda: {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in zip(names, arrays)}  # noqa: E731
    return model, tc.compress(model, "int8", samples=[draw() for _ in range(4)])


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_int8_products_of_a_layer_are_integers(op: str, tmp_path) -> None:
    proto, arrays = network(op, 12, 1, 20, 64, "forward", False)
    model, small = compressed(proto, arrays, tmp_path)
    package, whole = (tc.compile(m, Target.load("native")) for m in (small, model))
    wanted, got = (tc.deploy(p)({"x": arrays[0]})["y"] for p in (whole, package))
    assert 10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()) > 30
    weights = sum(numpy_helper.to_array(w).nbytes for w in proto.graph.initializer)
    assert sum(a.nbytes for a in package.weights()) < 0.35 * weights
    assert [row["integer"] for row in package.manifest["layers"] if row["kind"] == "recurrent"] == [True]


@pytest.mark.parametrize("case", CASES[-1:], ids=str)
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_steps_in_integers_become_one_call(case, op: str, tmp_path) -> None:
    """Against the program as compressed; a bias before the layer is rounded to a step of the sums."""
    proto, arrays = network(op, *case)
    before = compressed(proto, arrays, tmp_path)[1].module
    wanted = evaluate.evaluate(before, arrays)
    after, rows = roll(before, facts())
    assert [row["integer"] for row in rows] == [True, True] and kernels(after) == 2
    got = machine(build(before, "native"), linking.linker(Target.load("native")))(arrays)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=0.004)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_neutral_weights_give_the_same_results(tmp_path, op, integers):
    """Stored as the program has them, in the layout that is the same for every target."""
    proto, inputs = network(op, 4, 1, 16, 64, "forward", False)
    mod, target = program(proto, tmp_path), Target.load("native")
    if integers:
        mod = compressed(proto, inputs, tmp_path)[1].module
    results, stored = [], []
    for neutral in (False, True):
        lowered = lower(mod, target.to_tvm(), facts(), neutral=neutral)
        results.append(machine(lowered, linking.linker(target))(inputs))
        stored.append({tuple(t.shape) for t in lowered.stored})
    for one, other in zip(*results):
        np.testing.assert_array_equal(one, other)
    recurrent = (64, {"LSTM": 4, "GRU": 3}[op] * 64)
    assert recurrent in stored[1] and recurrent not in stored[0]


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_weights_that_share_values_stay_one_layer(tmp_path, op, integers):
    """Unpacked when the package is loaded; in float as the stock kernels have it, and in integers nearly."""
    proto, inputs = network(op, 4, 1, 16, 64, "forward", False)
    mod = compressed(proto, inputs, tmp_path)[1].module if integers else program(proto, tmp_path)
    shared = ClusterWeights()(simplified(mod)).module
    assert kernels(roll(shared, facts())[0]) == 1
    lowered = build(shared, "native")
    recurrent = (1, 64 * {"LSTM": 4, "GRU": 3}[op] * 64 // 2)
    assert recurrent in {tuple(t.shape) for t in lowered.stored}
    got = machine(lowered, linking.linker(Target.load("native")))(inputs)
    for a, b in zip(got, evaluate.evaluate(shared, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=0.004 if integers else 2e-6)
