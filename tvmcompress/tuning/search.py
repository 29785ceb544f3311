"""The search: which kernel to work on, which candidates to try, when to stop.

Every kernel's untuned form is its first trial, so that tuning can only gain. Then trials go where they promise most: to
kernels with a large share of the model's time, whose last trials gained. On this machine they are made in rounds: a few
forms of the model, each with a candidate of many kernels, timed where they will run. On boards, and for kernels that
are few or without a family, a batch of one kernel's candidates is built and timed alone. `finals` decides what is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmcompress.kernels.choices import Decisions
from tvmcompress.trials import BESIDE, GAIN, PASSING, Trial, by_place, digest
from tvmcompress.tuning.bench import Bench, Job
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.cost_model import CostModel
from tvmcompress.tuning.kernel import BATCH, Kernel, Place, space_of
from tvmcompress.tuning.rounds import Rounds
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.whole import Whole
from tvmcompress.tuning.workshop import Built, Workshop
from tvmcompress.tuning_log import TuningLog

POOL = 96  # proposals of which the cost model picks a batch
BLIND = 0.25  # of a batch, taken at random instead
FLAT = 16  # trials without a gain after which a kernel is left alone

# What a trial is called for what came of its measurement.
STATUS = {"ok": "ok", "wrong": "wrong_result", "timeout": "run_timeout", "crash": "run_crash", "error": "run_crash"}

Tell = Callable[[str, Mapping[str, Any]], None]


class Search:
    """`limit`: trials in all; `deadline`: by time.monotonic; `until`: stop when the best gain expected is below it."""

    def __init__(
        self, tasks: list[Task], place: Place, workshop: Workshop, bench: Bench, log: TuningLog, tell: Tell,
        limit: int, deadline: float, until: float, seed: int | None = None, whole: Whole | None = None,
    ) -> None:  # fmt: skip
        self.whole = whole
        self.place, self.workshop, self.bench, self.log, self.tell = place, workshop, bench, log, tell
        self.limit, self.deadline, self.until = limit, deadline, until
        self.rng, self.model = np.random.default_rng(seed), CostModel()
        self.kernels = [Kernel(task, space_of(task, workshop)) for task in tasks]
        self.seen, found_all = log.since(0, place.target, place.board, place.versions)
        known = by_place(found_all)
        self.failures: Counter[str] = Counter()
        self.first_error = ""
        for kernel in self.kernels:
            found = known.get((place.target, kernel.task.workload, place.board, place.versions), [])
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

    def why_over(self) -> str:
        """What ended it."""
        if self.late:
            return "the budget is used up"
        if self.over:
            return "all trials are made"
        ended = {kernel.ended for kernel in self.kernels}
        return ended.pop() if len(ended) == 1 and "" not in ended else "no kernel promises more"

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
        rounds = Rounds(self)
        while not self.over:
            kernel = self.next()
            if kernel is None:
                break
            together = rounds.kernels()
            if kernel not in together or not rounds.run(together):
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
            self.measure(fresh[: max(self.limit - self.count, 0)])
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
        kernel.form = built
        return digest(built.decisions) not in kernel.known

    def next(self) -> Kernel | None:
        """The kernel that promises the greatest gain; None when none promises more than `until`."""
        whole = sum(kernel.total(kernel.best) for kernel in self.kernels) or 1.0
        kernel = max((k for k in self.kernels if not k.ended), key=Kernel.promise, default=None)
        return None if kernel is None or kernel.promise() / whole < self.until else kernel

    def step(self, kernel: Kernel) -> None:
        """One batch: propose, build, check and time."""
        before = kernel.best
        if not kernel.seeds:
            self.learn()
        chosen = self.choose(kernel, min(max(BATCH, 2 * self.bench.at_once), self.limit - self.count))
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
        self.measure([(kernel, built) for built in fresh.values()], self.beside(kernel) if fresh else None)
        self.judge(kernel, before, len(chosen))
        self.report(kernel)

    def judge(self, kernel: Kernel, before: float, tried: int) -> None:
        """What the last trials gained, and whether the kernel's curve is flat."""
        gain = 1 - kernel.best / before if np.isfinite(before) else 0.0
        kernel.gained = 0.5 * kernel.gained + 0.5 * max(gain, 0.0)
        kernel.idle = 0 if gain > GAIN else kernel.idle + tried
        if kernel.idle >= FLAT:
            kernel.ended = "its curve is flat"

    def choose(self, kernel: Kernel, count: int) -> list[Decisions]:
        """So many that were never tried: what the cost model likes best of many proposals, and a few at random."""
        if kernel.seeds:
            some, kernel.seeds = kernel.seeds[:count], kernel.seeds[count:]
            return some
        pool = kernel.space.propose([dict(t.decisions) for t in kernel.good()[:5]], POOL, kernel.known, self.rng)
        scores = self.model.predict([self.features(kernel, one) for one in pool]) if pool else None
        if scores is None:
            return [pool[int(i)] for i in self.rng.permutation(len(pool))[:count]]
        order = list(np.argsort(-scores, kind="stable"))
        liked = count - int(self.rng.binomial(count, BLIND))
        picked, rest = order[:liked], order[liked:]
        picked += [int(i) for i in self.rng.permutation(rest)[: count - len(picked)]]
        return [pool[i] for i in picked]

    def learn(self) -> None:
        """Of all trials, also those that others have written down meanwhile."""
        place = self.place
        self.seen, new = self.log.since(self.seen, place.target, place.board, place.versions)
        by = {kernel.task.workload: kernel for kernel in self.kernels}
        for trial in new:
            if trial.status not in PASSING and (kernel := by.get(trial.workload)) and trial.digest not in kernel.known:
                kernel.trials.append(trial)
        rows, speeds = [], []
        for kernel in self.kernels:
            times, best = kernel.times(), kernel.best
            for trial in kernel.trials:
                rows.append(self.features(kernel, trial.decisions))
                speeds.append(best / times[trial.digest] if np.isfinite(best) else 0.0)
        self.model.fit(rows, speeds)

    def features(self, kernel: Kernel, decisions: Mapping[str, Any]) -> dict[str, float]:
        return kernel.space.features(dict(decisions)) | kernel.task.facts

    def beside(self, kernel: Kernel) -> dict[str, float]:
        """The untuned form once more, just before a batch: no trial, but what the batch is compared with."""
        assert kernel.form is not None
        begun = time.monotonic()
        job = Job(kernel.task, [kernel.form], self.workshop.references[kernel.task.workload])
        found = [float(np.median(ran.value[0])) for _, ran in self.bench.measure([job]) if ran.status == "ok"]
        self.measuring_s += time.monotonic() - begun
        return {BESIDE: found[0]} if found else {}

    def measure(self, fresh: Sequence[tuple[Kernel, Built]], beside: Mapping[str, float] | None = None) -> None:
        """Times what was built, and writes each trial down before the next ends, whatever came of it; also what is
        still out when this is stopped, by an interrupt or because time or trials are used up. `beside` goes into the
        conditions of each."""
        jobs = [Job(kernel.task, [built], self.workshop.references[kernel.task.workload]) for kernel, built in fresh]
        out, begun = dict(enumerate(fresh)), time.monotonic()
        try:
            with contextlib.closing(self.bench.measure(jobs)) as running:  # type: ignore[type-var]
                for index, ran in running:
                    kernel, built = fresh[index]
                    times = ran.value[0] if ran.status == "ok" else []
                    conditions = {**ran.conditions, **(beside or {})}
                    self.note(kernel, built.decisions, STATUS[ran.status], times, ran.error, conditions)
                    del out[index]
                    if self.over:
                        break
            self.cancel((kernel, built.decisions) for kernel, built in out.values())
        except (KeyboardInterrupt, SystemExit):
            self.cancel((kernel, built.decisions) for kernel, built in out.values())
            raise
        finally:
            self.measuring_s += time.monotonic() - begun
            for kernel, built in fresh:
                if built is not kernel.form:
                    self.workshop.forget(built)

    def note(
        self, kernel: Kernel, decisions: Decisions, status: str, times: Sequence[float] = (), error: str = "",
        conditions: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        trial = self.trial(kernel, decisions, status, tuple(times), error, dict(conditions or {}))
        self.fresh += self.log.add(trial)
        kernel.trials.append(trial)
        if status != "ok":
            self.failures[status] += 1
            if not self.first_error:
                self.first_error = f"{kernel.task.workload}: {status}: {error}"
                self.tell("first_error", {"workload": kernel.task.workload, "status": status, "error": error})
        facts = {"workload": trial.workload, "digest": trial.digest, "status": status, "ms": trial.ms}
        self.tell("trial", {**facts, "count": self.count})

    def cancel(self, left: Iterable[tuple[Kernel, Decisions]]) -> None:
        """What was handed out and did not come back costs no trial, teaches nothing, and comes first the next time."""
        for kernel, decisions in left:
            self.cancelled += self.log.add(self.trial(kernel, decisions, "cancelled"))

    def trial(self, kernel: Kernel, decisions: Decisions, *result: Any) -> Trial:
        place = self.place
        return Trial(place.target, kernel.task.workload, place.board, place.versions, decisions, *result)

    def seconds(self) -> dict[str, float]:
        """Where the time of this run went."""
        measuring = self.measuring_s + (self.whole.measuring_s if self.whole is not None else 0.0)
        spent = {"building": self.workshop.busy_s, "measuring": measuring - self.bench.paused_s}
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
