"""The search: which kernel to work on, which candidates to try, when to stop.

Every kernel's untuned form is its first trial, so that tuning can only gain. Then batches go to the kernel that
promises most: its share of the model's time, and how much its last trials gained. At the end the best few of each are
timed again, in turn with the untuned one and where that can be within the model, and only what is faster then too is
kept; nothing, if the model is no faster with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmcompress.kernels.choices import Decisions
from tvmcompress.trials import PASSING, Trial, digest
from tvmcompress.tuning.bench import Bench, Job
from tvmcompress.tuning.candidates import Space
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.cost_model import CostModel
from tvmcompress.tuning.generic_space import TraceSpace
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.whole import Whole
from tvmcompress.tuning.workshop import Built, Workshop
from tvmcompress.tuning_log import TuningLog

BATCH = 8
POOL = 96  # proposals of which the cost model picks a batch
BLIND = 2  # of a batch, taken at random instead
FLAT = 3  # batches without a gain after which a kernel is left alone
GAIN = 0.01  # of a kernel's time: less is noise
FINALISTS = 3
ROUNDS = 5

# What a trial is called for what came of its measurement.
STATUS = {"ok": "ok", "wrong": "wrong_result", "timeout": "run_timeout", "crash": "run_crash", "error": "run_crash"}

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Place:
    """What all trials of a run have in common."""

    target: str
    board: str
    versions: str


@dataclass
class Kernel:
    """A task and what is known of it. `ended`: why it is left alone."""

    task: Task
    space: Space = field(default_factory=Space)
    trials: list[Trial] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)  # digests of proposals, and of what they came out as
    seeds: list[Decisions] = field(default_factory=list)  # to be tried before all others
    untuned: Decisions | None = None
    idle: int = 0  # batches since the last gain
    gained: float = 1.0  # share of its time that the last batches gained
    ended: str = ""

    @property
    def known(self) -> set[str]:
        return {trial.digest for trial in self.trials} | self.aliases.keys()

    @property
    def tried(self) -> bool:
        """Whether its untuned form was measured, whatever came of it."""
        return self.untuned is not None and digest(self.untuned) in self.known

    @property
    def best(self) -> float:
        """ms of one call."""
        return min((trial.ms for trial in self.trials), default=float("inf"))

    @property
    def start(self) -> float:
        """ms of one call, untuned."""
        first = digest(self.untuned) if self.untuned is not None else ""
        return next((trial.ms for trial in self.trials if trial.digest == first), float("inf"))

    def finalists(self) -> list[Decisions]:
        """The best few that are not the untuned form."""
        good = sorted((t for t in self.trials if t.status == "ok"), key=lambda t: t.ms)
        first = digest(self.untuned) if self.untuned is not None else ""
        return [dict(t.decisions) for t in good[:FINALISTS] if t.digest != first]

    def total(self, ms: float) -> float:
        """ms of a run of the model that this kernel takes."""
        return ms * self.task.calls if np.isfinite(ms) else 0.0


def space_of(task: Task, workshop: Workshop) -> Space:
    return Space() if task.program is None else TraceSpace(task.program, workshop.machine)


class Search:
    """`limit`: trials in all; `deadline`: by time.monotonic; `until`: stop when the best gain expected is below it."""

    def __init__(
        self, tasks: list[Task], place: Place, workshop: Workshop, bench: Bench, log: TuningLog, tell: Tell,
        limit: int, deadline: float, until: float, seed: int = 0, whole: Whole | None = None,
    ) -> None:  # fmt: skip
        self.whole = whole
        self.place, self.workshop, self.bench, self.log, self.tell = place, workshop, bench, log, tell
        self.limit, self.deadline, self.until = limit, deadline, until
        self.rng, self.model = np.random.default_rng(seed), CostModel()
        self.kernels = [Kernel(task, space_of(task, workshop)) for task in tasks]
        self.failures: Counter[str] = Counter()
        self.first_error = ""
        for kernel in self.kernels:
            found = log.trials(place.target, kernel.task.workload, place.board, place.versions)
            kernel.trials = [trial for trial in found if trial.status not in PASSING]
            kernel.seeds = [dict(trial.decisions) for trial in found if trial.status in PASSING]
        self.fresh = self.cancelled = 0
        self.measuring_s, self.begun = 0.0, time.monotonic()

    @property
    def count(self) -> int:
        return sum(len(kernel.trials) for kernel in self.kernels)

    @property
    def over(self) -> bool:
        return self.count >= self.limit or self.late

    @property
    def late(self) -> bool:
        """Time in which no board was there is not counted."""
        return time.monotonic() - self.bench.paused_s >= self.deadline

    def run(self) -> None:
        if self.whole is not None:
            self.whole.begin()
        self.begin()
        for sown in self.kernels:
            while sown.seeds and not sown.ended and not self.over:
                self.step(sown)
                sown.idle = 0  # seeds say nothing about its curve
        while not self.over:
            kernel = self.next()
            if kernel is None:
                break
            self.step(kernel)

    def begin(self) -> None:
        """References, and the untuned form of each kernel as its first trial, unless the log has it: their times say
        what share of the model's each has. A few kernels at a time, so that it can be stopped."""
        for i in range(0, len(self.kernels), BATCH):
            some = self.kernels[i : i + BATCH]
            tasks = [kernel.task for kernel in some]
            for kernel, error in zip(some, self.workshop.refer(tasks)):
                kernel.ended = f"no reference: {error}" if error else ""
            fresh = []
            for kernel, outcome in zip(some, self.workshop.build_untuned(tasks)):
                if not kernel.ended and self.first(kernel, outcome):
                    fresh.append((kernel, outcome.value))
            room = max(self.limit - self.count, 0)
            self.measure(fresh[:room])
            for _, built in fresh[room:]:
                self.workshop.forget(built)
            for kernel in some:
                if not kernel.ended and not np.isfinite(kernel.start):
                    kernel.ended = "its untuned form fails" if kernel.tried else "there was no time for it"
            if self.late:
                break
        for kernel in self.kernels:
            kernel.seeds = [seed for seed in kernel.seeds if digest(seed) not in kernel.known]
            if kernel.untuned is None and not kernel.ended:
                kernel.ended = "there was no time for it"

    def first(self, kernel: Kernel, outcome: Outcome) -> bool:
        """Whether the untuned form is still to be measured."""
        if outcome.status != "ok":
            kernel.ended = f"not built: {outcome.error}"
            self.note(kernel, {}, "build_error", error=outcome.error)
            return False
        built: Built = outcome.value
        kernel.untuned = built.decisions
        kernel.space.learn(built.asked)
        if digest(built.decisions) not in kernel.known:
            return True
        self.workshop.forget(built)
        return False

    def next(self) -> Kernel | None:
        """The kernel that promises the greatest gain; None when none promises more than `until`."""
        whole = sum(kernel.total(kernel.best) for kernel in self.kernels) or 1.0
        open_ones = [k for k in self.kernels if not k.ended]
        promise = {id(k): k.total(k.best) * (k.gained + 0.02) / (1 + k.idle) for k in open_ones}
        kernel = max(open_ones, key=lambda k: promise[id(k)], default=None)
        if kernel is None or promise[id(kernel)] / whole < self.until:
            return None
        return kernel

    def step(self, kernel: Kernel) -> None:
        """One batch: propose, build, check and time."""
        before = kernel.best
        chosen = self.choose(kernel)
        if not chosen:
            kernel.ended = "every candidate was tried"
            return
        fresh: dict[str, Built] = {}
        for proposal, outcome in zip(chosen, self.workshop.build(kernel.task, chosen, kernel.known)):
            if outcome.status != "ok":
                late = "building: " if outcome.status == "timeout" else ""
                self.note(kernel, proposal, "build_error", error=late + outcome.error)
                continue
            built: Built = outcome.value
            kernel.space.learn(built.asked)
            if digest(proposal) != digest(built.decisions):
                kernel.aliases[digest(proposal)] = digest(built.decisions)
            if digest(built.decisions) in kernel.known or digest(built.decisions) in fresh:
                self.workshop.forget(built)
            else:
                fresh[digest(built.decisions)] = built
        self.measure([(kernel, built) for built in fresh.values()])
        gain = 1 - kernel.best / before if np.isfinite(before) else 0.0
        kernel.gained = 0.5 * kernel.gained + 0.5 * max(gain, 0.0)
        kernel.idle = 0 if gain > GAIN else kernel.idle + 1
        if kernel.idle >= FLAT:
            kernel.ended = "its curve is flat"
        self.report(kernel)

    def choose(self, kernel: Kernel) -> list[Decisions]:
        """A batch that was never tried: what the cost model likes best of many proposals, and a few at random."""
        good = sorted((t for t in kernel.trials if t.status == "ok"), key=lambda t: t.ms)[:5]
        count = min(max(BATCH, 2 * self.bench.at_once), self.limit - self.count)
        if kernel.seeds:
            some, kernel.seeds = kernel.seeds[:count], kernel.seeds[count:]
            return some
        pool = kernel.space.propose([dict(t.decisions) for t in good], POOL, kernel.known, self.rng)
        self.learn()
        scores = self.model.predict([self.features(kernel, one) for one in pool]) if pool else None
        if scores is None:
            return pool[:count]
        order = list(np.argsort(-scores, kind="stable"))
        picked, rest = order[: max(count - BLIND, 1)], order[max(count - BLIND, 1) :]
        picked += [int(i) for i in self.rng.permutation(rest)[: count - len(picked)]]
        return [pool[i] for i in picked]

    def learn(self) -> None:
        rows, speeds = [], []
        for kernel in self.kernels:
            for trial in kernel.trials:
                rows.append(self.features(kernel, trial.decisions))
                speeds.append(kernel.best / trial.ms if np.isfinite(kernel.best) else 0.0)
        self.model.fit(rows, speeds)

    def features(self, kernel: Kernel, decisions: Mapping[str, Any]) -> dict[str, float]:
        facts = {"macs": np.log2(1 + kernel.task.macs), "integers": float("int8" in kernel.task.workload)}
        return kernel.space.features(dict(decisions)) | facts

    def measure(self, fresh: Sequence[tuple[Kernel, Built]]) -> None:
        """Times what was built, and writes each trial down before the next ends, whatever came of it; also what is
        still out when this is stopped, by an interrupt or because time or trials are used up."""
        jobs = [Job(kernel.task, [built], self.workshop.references[kernel.task.workload]) for kernel, built in fresh]
        out, begun = dict(enumerate(fresh)), time.monotonic()
        try:
            with contextlib.closing(self.bench.measure(jobs)) as running:  # type: ignore[type-var]
                for index, ran in running:
                    kernel, built = fresh[index]
                    times = ran.value[0] if ran.status == "ok" else []
                    self.note(kernel, built.decisions, STATUS[ran.status], times, ran.error, ran.conditions)
                    del out[index]
                    if self.over:
                        break
            self.cancel(out.values())
        except (KeyboardInterrupt, SystemExit):
            self.cancel(out.values())
            raise
        finally:
            self.measuring_s += time.monotonic() - begun
            for _, built in fresh:
                self.workshop.forget(built)

    def note(
        self, kernel: Kernel, decisions: Decisions, status: str, times: Sequence[float] = (), error: str = "",
        conditions: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        trial = self.trial(kernel, decisions, status, tuple(times), error, dict(conditions or {}))
        self.log.add(trial)
        kernel.trials.append(trial)
        self.fresh += 1
        if status != "ok":
            self.failures[status] += 1
            if not self.first_error:
                self.first_error = f"{kernel.task.workload}: {status}: {error}"
                self.tell("first_error", {"workload": kernel.task.workload, "status": status, "error": error})
        facts = {"workload": trial.workload, "digest": trial.digest, "status": status, "ms": trial.ms}
        self.tell("trial", {**facts, "count": self.count})

    def cancel(self, left: Iterable[tuple[Kernel, Built]]) -> None:
        """What was handed out and did not come back costs no trial, teaches nothing, and comes first the next time."""
        for kernel, built in left:
            self.cancelled += self.log.add(self.trial(kernel, built.decisions, "cancelled"))

    def trial(self, kernel: Kernel, decisions: Decisions, *result: Any) -> Trial:
        place = self.place
        return Trial(place.target, kernel.task.workload, place.board, place.versions, decisions, *result)

    def confirm(self) -> None:
        """The finalists of each kernel in turn with its untuned form; what wins clearly is kept, else the untuned."""
        open_ones = []
        for kernel in self.kernels:
            if kernel.untuned is None or not np.isfinite(kernel.start):
                continue
            if kernel.best > (1 - GAIN) * kernel.start:
                self.keep(kernel, kernel.untuned, kernel.start, kernel.start)
            else:
                open_ones.append(kernel)
        open_ones = self.within(open_ones)
        while open_ones:
            count = self.bench.at_once  # boards come and go
            self.final(open_ones[:count])
            del open_ones[:count]

    def within(self, kernels: Sequence[Kernel]) -> list[Kernel]:
        """Finalists timed within the model: the first of all kernels in a form of it, the second in another, and so on.
        A product of few rows that reads its weights from memory there may look fast alone. Gives back the kernels that
        could not be timed so, those without a family among them."""
        ranks = [kernel.finalists() for kernel in kernels]
        count = min(max(map(len, ranks), default=0), self.whole.room if self.whole is not None else 0)
        if not count:
            return list(kernels)
        assert self.whole is not None
        tables = [
            {kernel.task.workload: rank[min(number, len(rank) - 1)] for kernel, rank in zip(kernels, ranks)}
            for number in range(count)
        ]
        begun, spent = time.monotonic(), self.workshop.busy_s
        times = self.whole.kernels(tables)
        self.measuring_s += time.monotonic() - begun - (self.workshop.busy_s - spent)
        if times is None:
            return list(kernels)
        timed, left = list[Kernel](), list[Kernel]()
        for kernel in kernels:
            (timed if all(kernel.task.workload in form for form in times) else left).append(kernel)
        for kernel in timed:
            assert kernel.untuned is not None
            key, calls = kernel.task.workload, kernel.task.calls
            ms = [form[key] / calls for form in times]
            winner = int(np.argmin(ms))
            lost = not winner or ms[winner] > (1 - GAIN) * ms[0]
            self.keep(kernel, kernel.untuned if lost else tables[winner - 1][key], ms[0], ms[0] if lost else ms[winner])
        return left

    def withdraw(self) -> None:
        """All kernels as they are untuned: together what won is no faster."""
        for kernel in self.kernels:
            if kernel.untuned is not None and np.isfinite(kernel.start):
                self.keep(kernel, kernel.untuned, kernel.start, kernel.start)

    def final(self, kernels: Sequence[Kernel]) -> None:
        """Of a few kernels, as many as are measured at once."""
        forms: list[list[Built]] = []
        for kernel in kernels:
            assert kernel.untuned is not None
            finalists = kernel.finalists()
            outcomes = self.workshop.build(kernel.task, [kernel.untuned, *finalists], set())
            built = [o.value for o in outcomes if o.status == "ok"]
            forms.append(built if outcomes[0].status == "ok" else [])
        jobs = [
            Job(kernel.task, built, self.workshop.references[kernel.task.workload], ROUNDS)
            for kernel, built in zip(kernels, forms)
        ]
        begun, results = time.monotonic(), list(self.bench.measure(jobs))
        self.measuring_s += time.monotonic() - begun
        for index, ran in results:
            kernel, built = kernels[index], forms[index]
            if ran.status != "ok" or not built:
                assert kernel.untuned is not None
                self.keep(kernel, kernel.untuned, kernel.start, kernel.start)
                continue
            medians = [float(np.median(times)) for times in ran.value]
            winner = int(np.argmin(medians))
            if medians[winner] > (1 - GAIN) * medians[0]:
                winner = 0
            self.keep(kernel, built[winner].decisions, medians[0], medians[winner])
        for built in forms:
            for one in built:
                self.workshop.forget(one)

    def keep(self, kernel: Kernel, decisions: Decisions, before: float, after: float) -> None:
        self.log.confirm(self.trial(kernel, decisions))
        row = {"workload": kernel.task.workload, "calls": kernel.task.calls, "untuned_ms": before, "ms": after}
        self.tell("confirmed", {**row, "decisions": decisions, "trials": len(kernel.trials), "ended": kernel.ended})

    def seconds(self) -> dict[str, float]:
        """Where the time of this run went."""
        spent = {"building": self.workshop.busy_s, "measuring": self.measuring_s - self.bench.paused_s}
        whole = time.monotonic() - self.begun - self.bench.paused_s
        return {name: round(value, 3) for name, value in {**spent, "all": whole}.items()}

    def report(self, kernel: Kernel) -> None:
        """Where the whole run stands, after a batch."""
        start = sum(k.total(k.start) for k in self.kernels)
        best = sum(k.total(min(k.best, k.start)) for k in self.kernels)
        state = {"untuned_ms": start, "ms": best, "trials": self.count, "failures": dict(self.failures)}
        if self.whole is not None and (model := self.whole.untuned_ms):
            state |= {"model_untuned_ms": model, "model_ms": max(model - start + best, 0.0)}  # by what kernels gained
        self.tell("progress", {"workload": kernel.task.workload, **state})
