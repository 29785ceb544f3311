"""Kernels without a family: traces of TVM's generic space, tuned and compiled like all other decisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

import tvmcompress as tc
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels.choices import Open, Recorder, decided
from tvmcompress.lower import traces
from tvmcompress.lower.traces import DECISION
from tvmcompress.model import Model, Source
from tvmcompress.passes import simplified
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target
from tvmcompress.trials import digest, target_key
from tvmcompress.tuning import tune
from tvmcompress.tuning.generic_space import TraceSpace
from tvmcompress.tuning.tasks import Task, tasks
from tvmcompress.tuning_log import TuningLog

SHAPE = 1, 8, 8, 12, 12


def volumes(bias: bool = True) -> Model:
    """Two transposed convolutions of one kind in three dimensions, and a pool of which there is nothing to tune."""
    rng = np.random.default_rng(0)

    def body(r, x):
        for _ in range(2):
            weight = graph.const((rng.standard_normal((8, 8, 3, 3, 3)) / 15).astype(np.float32))
            x = r.emit(relax.op.nn.conv3d_transpose(x, weight, padding=1))
            x = r.emit(relax.op.nn.relu(x) if bias else relax.op.tanh(x))
        return [r.emit(relax.op.nn.max_pool3d(x, (2, 2, 2), (2, 2, 2)))]

    specs = (TensorSpec("x", SHAPE, "float32"),), (TensorSpec("y", (1, 8, 4, 6, 6), "float32"),)
    return Model(graph.program([("x", SHAPE, "float32")], body), *specs, Source("volumes", "test", 0, ""))


def found(model: Model) -> list[Task]:
    target = Target.load("native")
    machine = target.to_tvm()
    return tasks(simplified(model.module), machine, isa_of(machine, target.l1d, target.l2))


def test_equal_programs_are_one_task() -> None:
    (task,) = found(volumes())
    (other,) = found(volumes(bias=False))
    assert task.calls == 2 and task.macs == 8 * 27 * np.prod(SHAPE) and task.workload != other.workload
    assert task.workload.startswith("compute float32 1x8x8x12x12, float32 8x8x3x3x3, ")
    assert len(task.module["main"].params) == 2  # the weights too


@pytest.fixture(scope="module")
def space() -> TraceSpace:
    (task,) = found(volumes())
    return TraceSpace(task.program, Target.load("native").to_tvm())


def test_proposals_are_new_and_can_be_made(space: TraceSpace) -> None:
    rng = np.random.default_rng(0)
    first = space.propose([], 8, set(), rng)
    known = {digest(one) for one in first}
    more = space.propose(first[-2:], 8, known, rng)
    assert len(known) == 8 and len(more) == 8 and not known & {digest(one) for one in more}
    for one in [*first, *more]:
        assert json.loads(json.dumps(one)) == one
        assert bool(space.features(one)) == (one != {DECISION: None})
        if one[DECISION] is not None:
            sch = Schedule(space.program)
            Trace.apply_json_to_schedule(one[DECISION], sch)
            assert not tvm_ffi.structural_equal(sch.mod, space.program)
            assert not sch.get(sch.get_sblock("root")).annotations


def test_near_a_trace_most_decisions_are_its_own(space: TraceSpace) -> None:
    rng = np.random.default_rng(0)
    trace = next(one[DECISION] for one in space.propose([], 4, set(), rng) if one[DECISION])
    for _ in range(8):
        sch = Schedule(space.program)
        Trace.apply_json_to_schedule(trace, sch)
        assert 1 <= len(sch.trace.decisions) - len(space.near_trace(trace, rng).decisions) <= 2


def test_an_open_decision_may_be_anything_that_is_written_down() -> None:
    recorder = Recorder(decided({"a": {DECISION: [[1], []]}}))
    assert recorder("a")(DECISION, Open([None])) == [[1], []] and recorder("b")(DECISION, Open([None])) is None
    assert recorder.decisions("a") == {DECISION: [[1], []]} and recorder.decisions("b") == {DECISION: None}
    assert recorder.asked["a"][DECISION].candidates == (None, [[1], []])


def test_tuned_and_compiled(tmp_path) -> None:
    model, native = volumes(), Target.load("native")
    events: list[tuple[str, dict]] = []
    with TuningLog.open(tmp_path / "log.db") as log:
        tune(model, native, log=log, trials=10, events=lambda name, facts: events.append((name, dict(facts))))
        trials = log.trials(target_key(native))
        best = min(trials, key=lambda t: t.ms)
        package = tc.compile(model, native, log=log)
    assert len(trials) == 10 and {t.status for t in trials} == {"ok"} and trials[0].decisions[DECISION] is None
    assert best.decisions[DECISION] and best.ms < trials[0].ms / 2
    assert not package.manifest["fallbacks"]
    inputs = {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}
    tuned, plain = tc.deploy(package)(inputs)["y"], tc.deploy(tc.compile(model, native))(inputs)["y"]
    np.testing.assert_allclose(tuned, plain, rtol=1e-4, atol=1e-5)
    with package.library() as one, tc.compile(model, native).library() as other:
        assert Path(one).read_bytes() != Path(other).read_bytes()


def test_only_products_that_memory_does_not_wait_for() -> None:
    def steps(body, shape) -> int:
        mod = relax.transform.LegalizeOps()(graph.program([("x", shape, "float32")], lambda r, x: [r.emit(body(x))]))
        return max(traces.steps(f) for _, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc))

    weight = graph.const(np.ones((8, 8, 3, 3, 3), np.float32))
    assert steps(lambda x: relax.op.nn.conv3d(x, weight), (1, 8, 14, 14, 14)) == 8 * 8 * 27 * 12**3
    assert not steps(lambda x: relax.op.nn.conv3d(x, weight), (1, 8, 5, 5, 5))  # too little to do
    assert not steps(lambda x: relax.op.sum(x, [1]), (64, 1 << 16))
    assert not steps(lambda x: relax.op.nn.max_pool2d(x, (3, 3)), (1, 64, 128, 128))
    assert not steps(relax.op.exp, (1 << 12, 1 << 10))
