"""Tuning a small network on this machine: what it finds is right, is kept, and is what `compile` makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from tvm import relax

import tvmcompress as tc
from tests import networks
from tvmcompress.cli.tune import Summary
from tvmcompress.errors import TargetError, UsageError
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels.choices import versions
from tvmcompress.lower.pipeline import lower_graph
from tvmcompress.passes import simplified
from tvmcompress.target import Target
from tvmcompress.timing.session import turns
from tvmcompress.trials import Trial, digest, target_key
from tvmcompress.tuning import FOLDER, tune, workshop
from tvmcompress.tuning.bench import Here, WrongResult, compare
from tvmcompress.tuning.cost_model import CostModel
from tvmcompress.tuning.kernel import FINALISTS
from tvmcompress.tuning.search import BATCH, Search
from tvmcompress.tuning.tasks import Task, anchors_of, tasks
from tvmcompress.tuning.whole import Whole, clearly
from tvmcompress.tuning.workshop import Workshop
from tvmcompress.tuning_log import TuningLog

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tc.Model:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(networks.small(32), path)
    return tc.load(path)


def found(model: tc.Model, name: str = "native") -> list:
    target = Target.load(name)
    machine = target.to_tvm()
    return tasks(simplified(model.module), machine, isa_of(machine, target.l1d, target.l2))


@pytest.mark.parametrize("network", ["resnet18", "shuffle", "transformer"])
@pytest.mark.parametrize("recipe", ["", "int8", "prune90"])
def test_every_product_of_a_network_is_a_task(network: str, recipe: str, tmp_path, monkeypatch) -> None:
    # What the guard measures, on a machine that is busy, does not change what there is to tune.
    monkeypatch.setattr("tvmcompress.compilation.guarded", lambda made, _begin, finish, *_: finish(made))
    options = {"resnet18": (64,), "transformer": (32, 8, 64, 2, 2, 10)}
    proto = getattr(networks, network)(*options.get(network, ()))
    onnx.save(proto, tmp_path / "net.onnx")
    model = tc.load(tmp_path / "net.onnx")
    if recipe:
        rng = np.random.default_rng(0)
        samples = [{s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in model.inputs} for _ in range(2)]
        model = tc.compress(model, recipe, **({"samples": samples} if recipe == "int8" else {}))
    target = Target.load("icelake-server")
    isa = isa_of(target.to_tvm(), target.l1d, target.l2)
    mod, _ = lower_graph(simplified(model.module), isa, lambda _step, _mod: None)
    rows = found(model, "icelake-server")
    assert sum(task.calls for task in rows) == len(list(anchors_of(mod)))
    package = tc.compile(model, target)
    assert {row["key"] for row in package.manifest["kernels"] if row["key"]} <= {task.workload for task in rows}


def events_of(model, log, **options) -> list[tuple[str, dict]]:
    events: list[tuple[str, dict]] = []
    tune(model, "native", log=log, events=lambda name, facts: events.append((name, dict(facts))), **options).close()
    return events


def test_tunes_resumes_and_compiles(model, tmp_path) -> None:
    path, target = tmp_path / "log.db", Target.load("native")
    first = events_of(model, path, trials=14)
    trials = [facts for name, facts in first if name == "trial"]
    assert len(trials) == 14 and all(facts["status"] == "ok" for facts in trials)
    again = events_of(model, path, trials=14)
    assert not [facts for name, facts in again if name == "trial"]  # nothing is measured twice
    more = events_of(model, path, trials=18)
    assert len([facts for name, facts in more if name == "trial"]) == 4
    kept = {facts["workload"]: facts for name, facts in more if name == "confirmed"}
    assert set(kept) == {task.workload for task in found(model)}
    assert all(facts["ms"] <= facts["untuned_ms"] for facts in kept.values())
    with TuningLog.open(path) as log:
        rows = log.trials(target_key(target))
        assert len({(t.workload, t.digest) for t in rows}) == len(rows) == 18
        assert log.decisions(target_key(target), versions()) == {k: v["decisions"] for k, v in kept.items()}
    package, plain = tc.compile(model, target, log=path), tc.compile(model, target)
    inputs = {s.name: np.random.default_rng(0).standard_normal(s.shape).astype(s.dtype) for s in model.inputs}
    one, other = tc.deploy(package)(inputs), tc.deploy(plain)(inputs)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"{FOLDER}{os.getpid()}-*"))


class Stopped:
    """Listens to a run, and presses Ctrl-C at a trial."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.trials: list[dict] = []

    def __call__(self, name: str, facts) -> None:
        if name == "trial":
            self.trials.append(dict(facts))
            if facts["count"] == self.at:
                raise KeyboardInterrupt


def in_log(path: Path) -> tuple[list[Trial], list[Trial]]:
    """Measured, and cancelled."""
    with TuningLog.open(path) as log:
        rows = log.trials()
    return [t for t in rows if t.status != "cancelled"], [t for t in rows if t.status == "cancelled"]


def test_what_was_in_flight_is_cancelled_and_measured_first_the_next_time(model, tmp_path, monkeypatch) -> None:
    path, learnt, only = tmp_path / "log.db", [], found(model)[0].workload
    monkeypatch.setattr(Whole, "begin", lambda self: None)  # nor is the model timed at the end then
    fit = CostModel.fit
    monkeypatch.setattr(
        CostModel, "fit", lambda self, rows, speeds: learnt.append(len(rows)) or fit(self, rows, speeds)
    )
    with pytest.raises(KeyboardInterrupt):
        tune(model, "native", log=path, trials=BATCH + 5, only=only, events=Stopped(4))
    measured, cancelled = in_log(path)
    assert len(measured) == 4 and len(cancelled) == BATCH - 3
    assert not {t.digest for t in cancelled} & {t.digest for t in measured}
    assert all(not t.times_ms and t.ms == float("inf") for t in cancelled)
    with TuningLog.open(path) as log:
        assert log.decisions(target_key(Target.load("native")), versions())
    learnt.clear()
    again = Stopped(0)
    tune(model, "native", log=path, trials=BATCH + 5, only=only, events=again).close()
    assert [facts["count"] for facts in again.trials] == list(range(5, BATCH + 6))
    first = {(facts["workload"], facts["digest"]) for facts in again.trials[: BATCH - 3]}
    assert first == {(t.workload, t.digest) for t in cancelled}
    assert learnt and min(learnt) == 1 + BATCH  # the first time that it learns, these were measured
    measured, cancelled = in_log(path)
    assert len(measured) == BATCH + 5 and not cancelled


def test_what_was_in_flight_when_time_was_up_is_cancelled(model, tmp_path, monkeypatch) -> None:
    path, kernels = tmp_path / "log.db", len(found(model))
    monkeypatch.setattr(Whole, "begin", lambda self: None)
    monkeypatch.setattr(Search, "late", property(lambda self: self.count >= kernels - 2))
    done = dict(events_of(model, path, trials=100))["done"]
    measured, cancelled = in_log(path)
    assert len(measured) == kernels - 2 == done["trials"] and len(cancelled) == 2 == done["cancelled"]
    monkeypatch.undo()
    monkeypatch.setattr(Whole, "begin", lambda self: None)
    events_of(model, path, trials=kernels - 1)  # no more than asked for
    measured, cancelled = in_log(path)
    assert len(measured) == kernels - 1 and len(cancelled) == 1


def test_decisions_of_the_log_are_those_of_the_code(model, tmp_path) -> None:
    """A decision that is not the analytic one changes the machine code; one of another target does not."""
    target = Target.load("native")
    task = max(found(model), key=lambda t: t.macs)
    shop = Workshop(target, tmp_path, 2)
    (outcome,) = shop.build(task, [{}], set())
    untuned = outcome.value
    name, question = next(
        (n, q) for n, q in untuned.asked.items() if n in ("tile", "algorithm") and len(q.candidates) > 1
    )
    other = next(c for c in question.candidates if c != question.candidates[question.taken])
    code = {}
    for key in (target_key(target), target_key(target) + "x"):
        with TuningLog.open(tmp_path / f"{len(key)}.db") as log:
            log.add(Trial(key, task.workload, "b", versions(), {**untuned.decisions, name: other}, times_ms=(1.0,)))
            with tc.compile(model, target, log=log).library() as library:
                code[key] = Path(library).read_bytes()
    with tc.compile(model, target).library() as library:
        plain = Path(library).read_bytes()
    assert code[target_key(target)] != plain and code[target_key(target) + "x"] == plain


def test_known_decisions_are_not_built(model, tmp_path) -> None:
    task, shop = found(model)[0], Workshop(Target.load("native"), tmp_path, 2)
    (first,) = shop.build(task, [{}], set())
    again, nonsense = shop.build(task, [{}, {"tile": "no such"}], {digest(first.value.decisions)})
    assert again.value.known and nonsense.value.known and not first.value.known


def test_wrong_results_are_found() -> None:
    right = [np.arange(6, dtype=np.int32), np.linspace(-1, 1, 7, dtype=np.float32)]
    compare(right, right)
    for spoiled in (
        [right[0] + np.eye(6, dtype=np.int32)[3], right[1]],
        [right[0], right[1] + np.float32(3e-4)],
        [right[0], np.where(right[1] == 0, np.nan, right[1])],
    ):
        with pytest.raises(WrongResult):
            compare(spoiled, right)
    compare([right[0], right[1] + np.float32(5e-5)], right)


def test_integers_that_are_rounded_from_floats_may_be_neighbours() -> None:
    """Where products and sums are one instruction a tie falls on the other side: the kernel is not wrong."""
    right = np.arange(30000, dtype=np.int32).reshape(3, -1)

    def spoiled(count: int, by: int) -> list[np.ndarray]:
        wrong = right.copy()
        wrong.flat[:count] += by
        return [wrong]

    compare(spoiled(3, 1), [right], exact=False)
    compare([np.array([7], np.uint8)], [np.array([8], np.uint8)], exact=False)  # and does not wrap
    for count, by in ((4, 1), (1, 2), (1, -2)):
        with pytest.raises(WrongResult):
            compare(spoiled(count, by), [right], exact=False)
    with pytest.raises(WrongResult):
        compare(spoiled(1, 1), [right])


@pytest.mark.parametrize("rounded", [False, True])
def test_which_integers_are_rounded_from_floats(rounded) -> None:
    """Sums of integers, and these together with floats of another branch, quantized."""
    scale, zero = graph.const(np.float32(0.3)), graph.const(np.uint8(3))

    def body(rw, x, y):
        sums = rw.emit(relax.op.add(rw.emit(relax.op.astype(x, "int32")), graph.const(np.int32(7))))
        if not rounded:
            return [sums]
        floats = rw.emit(relax.op.add(rw.emit(relax.op.dequantize(sums, scale, graph.const(np.int8(0)), -1)), y))
        return [rw.emit(relax.op.quantize(floats, scale, zero, -1, "uint8"))]

    module = graph.program([("x", (4, 4), "uint8"), ("y", (4, 4), "float32")], body)
    assert Task("k", module, 1, 1).exact != rounded


def test_a_wrong_kernel_never_enters_the_log_as_good(model, tmp_path, monkeypatch) -> None:
    reference = workshop._reference
    monkeypatch.setattr(workshop, "_reference", lambda task: [r + 1 for r in reference(task)])
    events = events_of(model, tmp_path / "log.db", trials=4)
    assert {facts["status"] for name, facts in events if name == "trial"} == {"wrong_result"}
    assert [name for name, _ in events].count("first_error") == 1
    with TuningLog.open(tmp_path / "log.db") as log:
        assert log.decisions(target_key(Target.load("native")), versions()) == {}
        assert all("off by" in t.error or "differ" in t.error for t in log.trials())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"trials": 0}, UsageError, "at least 1"),
        ({"budget_s": 0.0}, UsageError, "more than nothing"),
        ({"until": 1.5}, UsageError, "5%"),
        ({"only": "nothing*"}, UsageError, "nothing to tune"),
    ],
)
def test_options_that_cannot_be(options: dict, error, said: str, model, tmp_path) -> None:
    with pytest.raises(error, match=said):
        tune(model, "native", log=tmp_path / "log.db", **options)


def test_a_target_that_does_not_run_here(model, tmp_path) -> None:
    with pytest.raises(TargetError, match="does not run on this machine"):
        tune(model, "riscv64", log=tmp_path / "log.db")


@pytest.mark.alone
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_at_any_moment(how: signal.Signals, model, tmp_path) -> None:
    """What was measured is in the log, no process stays, and the model compiles with it."""
    onnx.save(networks.small(32), tmp_path / "net.onnx")
    path, events = tmp_path / "log.db", tmp_path / "events"
    command = [sys.executable, "-m", "tvmcompress", "tune", str(tmp_path / "net.onnx"), "--log", str(path)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  which what runs in the background ignores
    process = subprocess.Popen(
        [*command, "--events", str(events)], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    deadline = time.monotonic() + 120
    told: list[dict] = []
    while sum(e["event"] == "trial" for e in told) < 10 and time.monotonic() < deadline:
        time.sleep(0.1)
        told = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    process.send_signal(how)
    begun = time.monotonic()
    said = process.communicate()[1]
    assert time.monotonic() - begun < 10
    assert process.returncode == (130 if how == signal.SIGINT else -9), said
    told = [json.loads(line) for line in events.read_text().splitlines()]
    done = sum(e["event"] == "trial" for e in told)
    measured, cancelled = in_log(path)
    assert done >= 10 and len(measured) in (done, done + 1)
    assert how == signal.SIGINT or not cancelled
    tc.compile(model, "native", log=path)


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_a_tuner_killed_200_times(model, tmp_path, monkeypatch) -> None:
    """At random moments, half of them soon after a trial, and always the same run that goes on, now in rounds and now
    kernel by kernel: what it told was in the log, nothing is in it twice, and the log opens."""
    path, events, rng = tmp_path / "log.db", tmp_path / "events", np.random.default_rng(0)
    begin = Whole.begin
    told = lambda: events.read_text().splitlines() if events.exists() else []  # noqa: E731
    for turn in range(200):
        before = len(told())
        monkeypatch.setattr(Whole, "begin", begin if turn % 4 == 1 else lambda self: None)
        pid = os.fork()
        if pid == 0:  # with TVM loaded already

            def tell(name: str, facts) -> None:
                if name == "trial":
                    with events.open("a") as file:
                        file.write(f"{facts['workload']} {facts['digest']}\n")

            try:
                tune(model, "native", log=path, trials=100_000, events=tell, seed=turn)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 30
        while turn % 2 and len(told()) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0.0, 0.8 if turn % 2 else 6.0)))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with TuningLog.open(path) as log:
            assert log.sound()
            rows = [f"{trial.workload} {trial.digest}" for trial in log.trials()]
        assert len(set(rows)) == len(rows) and rows[: len(told())] == told(), turn
        if len(rows) > len(told()):  # written, but not told any more
            assert len(rows) == len(told()) + 1, turn
            with events.open("a") as file:
                file.write(f"{rows[-1]}\n")
    assert len(told()) > 100


def test_finalists_are_timed_within_the_model(model, tmp_path) -> None:
    """All kernels of a form at once; what a kernel takes there is what is told of it."""
    seen = []
    kernels = Whole.kernels

    def watched(self, tables):
        times = kernels(self, tables)
        seen.append((tables, times))
        return times

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Whole, "kernels", watched)
        patch.setattr(Whole, "end", lambda self, tables: None)  # on a machine that does other work it may be slower
        events = events_of(model, tmp_path / "log.db", trials=40)
    ((tables, times),) = seen
    kept = {facts["workload"]: facts for name, facts in events if name == "confirmed"}
    assert times is not None and len(times) == len(tables) + 1 <= FINALISTS + 1
    for key in {key for table in tables for key in table}:
        calls = next(task.calls for task in found(model) if task.workload == key)
        ms = [form[key] / calls for form in times]
        assert kept[key]["untuned_ms"] == ms[0] and kept[key]["ms"] in ms and kept[key]["ms"] <= ms[0]
        assert all(0 < one < 100 for one in ms)


@pytest.mark.parametrize(
    "won, rounds, sure", [(6, 6, True), (5, 6, False), (20, 30, False), (21, 30, True), (15, 30, False), (0, 6, False)]
)
def test_what_is_clearly_faster(won: int, rounds: int, sure: bool) -> None:
    """Of equals 1 in 64 would win all of six rounds, 1 in 47 so many of thirty."""
    assert clearly(won, rounds) is sure


def test_turns_go_both_ways() -> None:
    assert list(turns(3, 3)) == [0, 1, 2, 2, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("slower, sure", [(1.1, False), (1.0, False), (0.995, False), (0.9, True)])
def test_a_model_is_compared_in_pairs(monkeypatch, slower: float, sure: bool, here: bool) -> None:
    """The machine gets slower all the time, and what is loaded first is slower: neither form gains by that."""
    asked, first = [], object()

    def samples(self, built, rounds):
        asked.append(rounds)
        drift = np.linspace(1, 3, rounds)[:, None] * np.ones(9)
        return [drift * (1.0 if one is first else slower) * bias for one, bias in zip(built, (1.02, 0.98))]

    monkeypatch.setattr(Whole, "samples", samples)
    whole = Whole.__new__(Whole)
    whole.workshop, whole.task, whole.first, whole.untuned_ms = Mock(), None, first, 30.0
    whole.workshop.build_forms.return_value = [Mock()]
    whole.bench = Here("b") if here else Mock()
    found = whole.end({})
    assert found is not None and found["untuned"] == pytest.approx(2.0, rel=0.03)
    assert found["tuned"] / found["untuned"] == pytest.approx(slower if sure else 1.0, rel=0.001)
    assert asked == ([3] * 4 if here else [6] * 2)  # of 2 x 9 x 30 ms


def test_timing_the_model_counts_as_measuring(monkeypatch) -> None:
    whole, search = Whole.__new__(Whole), Search.__new__(Search)
    whole.task, whole.untuned_ms, whole.measuring_s, whole.bench = Mock(), 1.0, 0.0, Mock(paused_s=2.0)
    clock = iter([10.0, 14.0])
    whole.bench.measure.return_value = [(0, Mock(status="ok", value=[[1.0, 1.0]]))]
    monkeypatch.setattr("tvmcompress.tuning.whole.time.monotonic", lambda: next(clock))
    whole.samples([Mock()], 1)
    monkeypatch.undo()
    search.whole, search.bench, search.workshop = whole, whole.bench, Mock(busy_s=1.0)
    search.measuring_s, search.begun = 5.0, time.monotonic() - 20
    assert search.seconds() == {"building": 1.0, "measuring": 7.0, "all": pytest.approx(18.0, abs=0.5)}


def test_what_is_no_faster_as_a_whole_is_withdrawn(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Whole, "end", lambda self, tables: {"untuned": 1.0, "tuned": 1.1})
    events = events_of(model, tmp_path / "log.db", trials=24)
    assert dict(events)["done"]["model_ms"] == {"untuned": 1.0, "tuned": 1.0}
    kept = {facts["workload"]: facts for name, facts in events if name == "confirmed"}
    assert kept and all(facts["ms"] == facts["untuned_ms"] for facts in kept.values())
    with TuningLog.open(tmp_path / "log.db") as log:
        before = log.decisions(target_key(Target.load("native")), versions())
    monkeypatch.setattr(Whole, "end", lambda self, tables: pytest.fail("nothing is new"))
    again = events_of(model, tmp_path / "log.db", trials=24)  # the same command: it finds nothing to do, and says so
    with TuningLog.open(tmp_path / "log.db") as log:
        assert log.decisions(target_key(Target.load("native")), versions()) == before
    told = {facts["workload"]: facts for name, facts in again if name == "confirmed"}
    assert {key: facts["decisions"] for key, facts in told.items()} == before
    assert dict(again)["done"]["new"] == 0 and dict(again)["done"]["ended"] == "all trials are made"
    summary = Summary()
    for name, facts in events:
        summary(name, facts)
    assert len(summary.kernels) == len(before) and summary.totals()["gain"] == 1


def test_trials_of_another_run_are_known(model, tmp_path, monkeypatch) -> None:
    """Two runs tune into one log: what one has measured the other does not."""
    learn, path, own = Search.learn, tmp_path / "log.db", []

    def and_another(search: Search) -> None:
        if not own:  # another run measures one of this one's candidates just now
            kernel = next(kernel for kernel in search.kernels if not kernel.ended)
            pool = kernel.space.propose([], 1, kernel.known, np.random.default_rng(0))
            own.append((kernel, pool[0]))
            with TuningLog.open(path) as log:
                log.add(search.trial(kernel, pool[0], "ok", (1e-9,)))
        learn(search)
        kernel, decisions = own[0]
        assert digest(decisions) in kernel.known

    monkeypatch.setattr(Search, "learn", and_another)
    done = dict(events_of(model, path, trials=24))["done"]
    assert own and done["trials"] == 24 and done["new"] == 23
