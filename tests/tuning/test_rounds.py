"""Candidates of many kernels in one form of the model: what is tried together, what is checked, what is kept."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import tvmcompress as tc
from tests import networks
from tvmcompress.passes import simplified
from tvmcompress.target import Target
from tvmcompress.trials import BESIDE, digest
from tvmcompress.tuning import tune
from tvmcompress.tuning.bench import Here, Job
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.search import Search
from tvmcompress.tuning.tasks import tasks
from tvmcompress.tuning.watching import watched
from tvmcompress.tuning.whole import Whole
from tvmcompress.tuning.workshop import Workshop
from tvmcompress.tuning_log import TuningLog


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(networks.small(32), path)
    return path


def whole_of(path: Path, folder: Path) -> Whole:
    """A model that is built, and nothing timed."""
    model, target = tc.load(path), Target.load("native")
    workshop, module = Workshop(target, folder, 2), simplified(model.module)
    whole = Whole(model, module, tasks(module, workshop.machine, workshop.isa), workshop, Here("b"))
    whole.first = workshop.build_first(whole.task).built
    return whole


def test_neighbours_are_never_in_one_form_and_what_was_taken_is_told(network, tmp_path, monkeypatch) -> None:
    tables, orders = [], []
    build, watch = Whole.build, Whole.watch

    def built(self, wanted):
        forms = build(self, wanted)
        tables.extend(zip(wanted, forms))
        return forms

    def ran(self, forms):
        outcome = watch(self, forms)
        orders.append(outcome.value[0].order)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Whole, "build", built)
        patch.setattr(Whole, "watch", ran)
        patch.setattr(Whole, "kernels", lambda self, tables: None)
        tune(tc.load(network), "native", log=tmp_path / "log.db", trials=40).close()
    assert tables
    follow = {pair for one in pairwise(orders[0]) for pair in (one, one[::-1])}
    assert all(one == other or (one, other) not in follow for table, _ in tables for one in table for other in table)
    with TuningLog.open(tmp_path / "log.db") as log:
        rows = {(t.workload, t.digest): t for t in log.trials()}
    taken = {(key, digest(decisions)) for _, form in tables for key, decisions in form.decisions.items()}
    assert taken <= rows.keys() and len(rows) == 40
    inside = [rows[key] for key in taken if rows[key].conditions.get(BESIDE)]
    assert inside and all(t.status == "ok" and min(t.times_ms) > 0 for t in inside)


def test_a_form_has_the_code_of_its_decisions(network, tmp_path) -> None:
    """Machine code is shared with the untuned form, but for kernels that are decided otherwise."""
    whole = whole_of(network, tmp_path)
    keys = sorted(set(dict(whole.first.kernels).values()))
    (form,) = whole.build([{key: {} for key in keys}])
    asked = {name: (key, question) for key in keys for name, question in form.asked[key].items()
             if len(question.candidates) > 1}  # fmt: skip
    assert {"tile", "unroll"} <= asked.keys()  # and of several cores `tasks`
    for name in ("tile", "unroll", "tasks"):
        if name not in asked:
            assert whole.workshop.isa.cores == 1
            continue
        key, question = asked[name]
        offered = question.candidates
        same, other = whole.build([{key: {name: value}} for value in (offered[question.taken], offered[-1])])
        assert [form.decisions[key][name] for form in (same, other)] == [offered[question.taken], offered[-1]]
        code = [(one.folder / "library.so").read_bytes() for one in (whole.first, same.built, other.built)]
        assert code[0] == code[1] != code[2], name
        job = Job(whole.task, [whole.first, same.built, other.built], None)
        found = watched(job, whole.workshop.machine, whole.exact)
        assert all(one.wrong is None and one.times.keys() == found[0].times.keys() for one in found)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_kernel_that_gives_something_else_is_found_by_name(network, place: int, tmp_path) -> None:
    """One layer of the other form has other weights: what follows reads what it read in the first, and is right."""
    proto = onnx.load(network)
    weights = {i.name: i for i in proto.graph.initializer}
    layers = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in weights]
    spoiled = weights[layers[place].input[1]]
    spoiled.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(spoiled) * np.float32(1.1), spoiled.name))
    onnx.save(proto, tmp_path / "other.onnx")
    first, other = whole_of(network, tmp_path / "a"), whole_of(tmp_path / "other.onnx", tmp_path / "b")
    machine, exact = first.workshop.machine, first.exact
    job = Job(first.task, [first.first, other.first], None)
    right, wrong = watched(job, machine, exact)
    assert right.wrong is None and wrong.wrong is not None and not wrong.times
    key, why = wrong.wrong
    assert "off by" in why and key == right.order[place]


@pytest.mark.parametrize("tried", [True, False])
def test_what_comes_behind_a_wrong_kernel_is_no_trial(network, tried: bool, tmp_path, monkeypatch) -> None:
    """It comes again. Where the wrong one was not tried forms are not to be trusted, and kernels are tried alone."""
    build, watch, steps, spoiled, tables = Whole.build, Whole.watch, [], [], []
    step = Search.step
    monkeypatch.setattr(Whole, "build", lambda self, wanted: tables.append(wanted) or build(self, wanted))
    monkeypatch.setattr(Search, "step", lambda self, kernel: steps.append(kernel) or step(self, kernel))

    def ran(self, forms):
        outcome = watch(self, forms)
        if forms and not spoiled:
            one = outcome.value[1]
            spoiled.append(next(key for key in one.order if (key in tables[0][0]) is tried))
            object.__setattr__(one, "wrong", (spoiled[0], "off by one"))
        return outcome

    monkeypatch.setattr(Whole, "watch", ran)
    told = []
    tune(tc.load(network), "native", log=tmp_path / "log.db", trials=24,
         events=lambda name, facts: told.append((name, dict(facts)))).close()  # fmt: skip
    trials = [facts for name, facts in told if name == "trial"]
    wrong = [(facts["workload"], facts["status"]) for facts in trials if facts["status"] != "ok"]
    assert len(trials) == 24 and wrong == ([(spoiled[0], "wrong_result")] if tried else [])
    assert tried or steps


@pytest.mark.parametrize("what", ["build", "watch"])
def test_where_forms_fail_kernels_are_tried_alone(network, what: str, tmp_path, monkeypatch) -> None:
    steps, step, watch = [], Search.step, Whole.watch
    monkeypatch.setattr(Search, "step", lambda self, kernel: steps.append(kernel) or step(self, kernel))
    if what == "build":
        monkeypatch.setattr(Whole, "build", lambda self, tables: None)
    else:
        monkeypatch.setattr(Whole, "watch", lambda self, forms: Outcome("crash") if forms else watch(self, forms))
    tune(tc.load(network), "native", log=tmp_path / "log.db", trials=24).close()
    with TuningLog.open(tmp_path / "log.db") as log:
        assert len(log.trials()) == 24 and steps


def test_a_round_that_is_stopped_keeps_what_was_told(network, tmp_path) -> None:
    count = len(dict(whole_of(network, tmp_path).first.kernels))

    def tell(name, facts):
        if name == "trial" and facts["count"] == count + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tc.load(network), "native", log=tmp_path / "log.db", trials=200, events=tell)
    with TuningLog.open(tmp_path / "log.db") as log:
        rows = log.trials()
    measured, cancelled = ([t for t in rows if (t.status == "cancelled") is out] for out in (False, True))
    assert len(measured) == count + 3 and not {t.digest for t in cancelled} & {t.digest for t in measured}
