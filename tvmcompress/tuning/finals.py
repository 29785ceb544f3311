"""The end of a search: the best few of each kernel once more, in turn with the untuned one, and within the model where
that can be. Only what is faster then too is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvmcompress.kernels.choices import Decisions
from tvmcompress.trials import GAIN, Trial, digest
from tvmcompress.tuning.bench import Job
from tvmcompress.tuning.kernel import Kernel
from tvmcompress.tuning.workshop import BUILD_S, Built

if TYPE_CHECKING:
    from tvmcompress.tuning.search import Search

ROUNDS = 5


class Finals:
    """Of the kernels of a search."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def known(self) -> bool:
        """Whether all was decided by an earlier run, and nothing was measured since: that is told once more."""
        search, place = self.search, self.search.place
        if search.fresh:
            return False
        confirmed, found = search.log.confirmed(), list[tuple[Kernel, Trial]]()
        for kernel in search.kernels:
            if kernel.untuned is not None and np.isfinite(kernel.start):
                kept, _ = confirmed.get((place.target, kernel.task.workload, place.board, place.versions), ("", ""))
                trial = next((trial for trial in kernel.trials if trial.digest == kept), None)
                if trial is None:
                    return False
                found.append((kernel, trial))
        for kernel, trial in found:
            self.told(kernel, dict(trial.decisions), kernel.start, kernel.times()[trial.digest])
        return True

    def confirm(self) -> None:
        """The finalists of each kernel in turn with its untuned form; what wins clearly is kept, else the untuned."""
        open_ones = []
        for kernel in self.search.kernels:
            if kernel.untuned is None or not np.isfinite(kernel.start):
                continue
            if kernel.best > (1 - GAIN) * kernel.start:
                self.keep(kernel, kernel.untuned, kernel.start, kernel.start)
            else:
                open_ones.append(kernel)
        open_ones = self.within(open_ones)
        while open_ones:
            count = self.search.bench.at_once  # boards come and go
            self.final(open_ones[:count])
            del open_ones[:count]

    def within(self, kernels: Sequence[Kernel]) -> list[Kernel]:
        """Finalists timed within the model: the first of all kernels in a form of it, the second in another, and so on.
        A product of few rows that reads its weights from memory there may look fast alone. Gives back the kernels that
        could not be timed so, those without a family among them."""
        ranks = [kernel.finalists() for kernel in kernels]
        count = min(max(map(len, ranks), default=0), self.search.whole.room if self.search.whole is not None else 0)
        if not count:
            return list(kernels)
        assert self.search.whole is not None
        tables = [
            {kernel.task.workload: rank[min(number, len(rank) - 1)] for kernel, rank in zip(kernels, ranks)}
            for number in range(count)
        ]
        begun, spent = time.monotonic(), self.search.workshop.busy_s
        times = self.search.whole.kernels(tables)
        self.search.measuring_s += time.monotonic() - begun - (self.search.workshop.busy_s - spent)
        if times is None:
            return list(kernels)
        left, won = list[Kernel](), list[tuple[Kernel, Decisions, float, float]]()
        for kernel in kernels:
            key, calls = kernel.task.workload, kernel.task.calls
            if not all(key in form for form in times):
                left.append(kernel)
                continue
            assert kernel.untuned is not None
            ms = [form[key] / calls for form in times]
            winner = int(np.argmin(ms))
            if not winner or ms[winner] > (1 - GAIN) * ms[0]:
                self.keep(kernel, kernel.untuned, ms[0], ms[0])
            else:
                won.append((kernel, tables[winner - 1][key], ms[0], ms[winner]))
        right = self.right([(kernel, decisions) for kernel, decisions, *_ in won])
        for (kernel, decisions, before, after), sure in zip(won, right):
            assert kernel.untuned is not None
            self.keep(kernel, decisions if sure else kernel.untuned, before, after if sure else before)
        return left

    def right(self, winners: Sequence[tuple[Kernel, Decisions]]) -> list[bool]:
        """Whether each gives what it must alone, too: on numbers over their whole range."""
        search, found = self.search, [False] * len(winners)
        orders = [search.workshop.order(kernel.task, decisions, set()) for kernel, decisions in winners]
        built = [outcome.value for outcome in search.workshop.run(orders, BUILD_S)]
        sound = [number for number, one in enumerate(built) if one is not None]
        jobs = [Job(winners[n][0].task, [built[n]], search.workshop.references[winners[n][0].task.workload])
                for n in sound]  # fmt: skip
        begun, results = time.monotonic(), list(search.bench.measure(jobs))
        search.measuring_s += time.monotonic() - begun
        for index, ran in results:
            found[sound[index]] = ran.status == "ok"
            search.workshop.forget(built[sound[index]])
        return found

    def withdraw(self) -> None:
        """All kernels as they are untuned: together what won is not clearly faster."""
        for kernel in self.search.kernels:
            if kernel.untuned is not None and np.isfinite(kernel.start):
                self.keep(kernel, kernel.untuned, kernel.start, kernel.start)

    def final(self, kernels: Sequence[Kernel]) -> None:
        """Of a few kernels, as many as are measured at once."""
        forms: list[list[Built]] = []
        for kernel in kernels:
            assert kernel.untuned is not None
            finalists = kernel.finalists()
            outcomes = self.search.workshop.build(kernel.task, [kernel.untuned, *finalists], set())
            built = [o.value for o in outcomes if o.status == "ok"]
            forms.append(built if outcomes[0].status == "ok" else [])
        jobs = [
            Job(kernel.task, built, self.search.workshop.references[kernel.task.workload], ROUNDS)
            for kernel, built in zip(kernels, forms)
        ]
        begun, results = time.monotonic(), list(self.search.bench.measure(jobs))
        self.search.measuring_s += time.monotonic() - begun
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
                self.search.workshop.forget(one)

    def keep(self, kernel: Kernel, decisions: Decisions, before: float, after: float) -> None:
        self.search.log.confirm(self.search.trial(kernel, decisions))
        self.told(kernel, decisions, before, after)

    def told(self, kernel: Kernel, decisions: Decisions, before: float, after: float) -> None:
        kernel.kept = digest(decisions)
        row = {"workload": kernel.task.workload, "calls": kernel.task.calls, "untuned_ms": before, "ms": after}
        more = {"decisions": decisions, "trials": len(kernel.trials), "ended": kernel.ended}
        self.search.tell("confirmed", row | more)
