"""Unrolled LSTM layers become one kernel again, with the same results."""

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
from tvmcompress.lower.pipeline import machine
from tvmcompress.lower.roll import roll
from tvmcompress.target import Target


def lstm(steps: int, batch: int, inputs: int, hidden: int, direction: str, states: bool, **attributes):
    """A model with all three results of an LSTM, and arrays for its inputs."""
    rng = np.random.default_rng(steps * hidden)
    count = 2 if direction == "bidirectional" else 1
    shapes = [(count, 4 * hidden, inputs), (count, 4 * hidden, hidden), (count, 8 * hidden)]
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32), n)
        for s, n in zip(shapes, "WRB")
    ]
    given = {"x": (steps, batch, inputs)} | (dict.fromkeys(("h0", "c0"), (count, batch, hidden)) if states else {})
    names = ["x", "W", "R", "B", "", "h0" if states else "", "c0" if states else ""]
    node = helper.make_node("LSTM", names, ["y", "h", "c"], hidden_size=hidden, direction=direction, **attributes)
    results = {"y": (steps, count, batch, hidden), "h": (count, batch, hidden), "c": (count, batch, hidden)}
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
    return sum(c.args[0].name_hint.startswith("lstm") for c in calls)


CASES = [
    (7, 1, 5, 16, "forward", False),
    (6, 2, 9, 19, "forward", True),
    (5, 1, 4, 24, "reverse", True),
    (9, 3, 8, 40, "bidirectional", False),
    (4, 2, 3, 7, "bidirectional", True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["native", "x86-64-v3"])
def test_same_results(case, name: str, tmp_path) -> None:
    need(name)
    proto, arrays = lstm(*case)
    before = program(proto, tmp_path)
    wanted = evaluate.evaluate(before, arrays)
    after = roll(before, facts(name))
    assert kernels(after) == (2 if case[4] == "bidirectional" else 1)
    assert not any(graph.op_name(b.value) == "relax.sigmoid" for b in graph.bindings(after))
    lowered = build(before, name)
    assert not lowered.fallbacks
    for got in (evaluate.evaluate(after, arrays), machine(lowered, linking.linker(Target.load(name)))(arrays)):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "attributes", [{"clip": 0.5}, {"input_forget": 1}, {"activations": ["Sigmoid", "Relu", "Tanh"]}]
)
def test_other_cells_stay(attributes, tmp_path) -> None:
    before = program(lstm(5, 1, 4, 16, "forward", False, **attributes)[0], tmp_path)
    assert kernels(roll(before, facts())) == 0


def test_a_cell_that_something_else_reads_stays(tmp_path) -> None:
    """The cell state of a step between is no result of the kernel."""
    before = program(lstm(5, 1, 4, 16, "forward", False)[0], tmp_path)
    tanh = [b.value for b in graph.bindings(before) if graph.op_name(b.value) == "relax.tanh"]
    between = tanh[3].args[0]  # of the second step

    def visit(rw, var, expr):
        if var != graph.results(before)[2]:
            return None
        return relax.op.add(rw.emit(expr), rw.emit(relax.op.reshape(rw.new(between), (1, 1, 16))))

    assert kernels(roll(graph.rewrite(before, visit), facts())) == 0


def test_int8_keeps_activations_float(tmp_path) -> None:
    proto, arrays = lstm(12, 1, 20, 64, "forward", False)
    onnx.save(proto, tmp_path / "net.onnx")
    model = tc.load(tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal(arrays[0].shape).astype(np.float32)} for _ in range(4)]
    small = tc.compress(model, "int8", samples=samples)
    package, whole = (tc.compile(m, Target.load("native")) for m in (small, model))
    wanted, got = (tc.deploy(p)({"x": arrays[0]})["y"] for p in (whole, package))
    assert 10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()) > 30
    weights = sum(numpy_helper.to_array(w).nbytes for w in proto.graph.initializer)
    assert sum(a.nbytes for a in package.weights()) < 0.3 * weights
