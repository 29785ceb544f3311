"""Rounds of a search: forms of the model, each with candidates of many kernels, timed where they will run.

Of a form only the candidates in it are compiled, for the rest of its machine code is that of the untuned form; and what
a kernel takes in the model is what counts. Only on this machine, and while many kernels are open.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvmcompress.kernels.choices import Decisions
from tvmcompress.trials import BESIDE, digest
from tvmcompress.tuning.kernel import Kernel
from tvmcompress.tuning.workshop import Form

if TYPE_CHECKING:
    from tvmcompress.tuning.search import Search

FEW = 4  # of the kernels of a model one in so many must be open, for forms of it to be worth their building
FORMS = 2  # of a round, at least


class Rounds:
    """Of the kernels of a search. `possible`: none has failed so far."""

    def __init__(self, search: Search) -> None:
        self.search, self.whole, self.possible = search, search.whole, True

    def kernels(self) -> list[Kernel]:
        """Kernels to be tried in one form of the model, what promises most first; none where that cannot be, or where
        too few are open."""
        if not self.possible or self.whole is None or self.whole.room < FORMS:
            return []
        inside = self.whole.beside
        found = [kernel for kernel in self.search.kernels if not kernel.ended and kernel.task.workload in inside]
        return sorted(found, key=Kernel.promise, reverse=True) if FEW * len(found) >= len(inside) else []

    def run(self, kernels: Sequence[Kernel]) -> bool:
        """Forms of the model, each with candidates of some of these kernels, as far as trials allow. False where a form
        cannot be built or run: then kernels are tried alone."""
        assert self.whole is not None
        self.search.learn()
        forms_at_once = min(max(self.search.workshop.cores, FORMS), self.whole.room)
        tables: list[dict[str, Decisions]] = [{} for _ in range(forms_at_once)]
        for kernel, places in self.parted(kernels, len(tables)):
            chosen = self.search.choose(kernel, len(places))
            for place, one in zip(places, chosen):
                tables[place][kernel.task.workload] = one
            if not chosen:
                kernel.ended = "every candidate was tried"
        tables = [table for table in tables if table]
        forms = self.whole.build(tables) if tables else []
        if forms is None:
            self.possible = False
            return False
        by = {kernel.task.workload: kernel for kernel in kernels}
        before = {key: by[key].best for table in tables for key in table}
        fresh: list[list[tuple[Kernel, Decisions]]] = []
        for table, form in zip(tables, forms):
            seen = {(kernel.task.workload, digest(one)) for of_form in fresh for kernel, one in of_form}
            fresh.append(list(self.resolved(by, table, form, seen)))
        if not any(fresh):
            for form in forms:
                self.search.workshop.forget(form.built)
        elif not self.timed(forms, fresh):
            self.possible = False
            return False
        for key, best in before.items():
            self.search.judge(by[key], best, len([table for table in tables if key in table]))
        if before:
            self.search.report(by[next(iter(before))])
        return True

    def parted(self, kernels: Sequence[Kernel], forms: int) -> list[tuple[Kernel, list[int]]]:
        """Which kernels are tried in which forms of a round: what promises little not in every form, and of two that
        follow each other one, for what a kernel takes depends on where its neighbours leave their results."""
        assert self.whole is not None
        mean, left = float(np.mean([kernel.promise() for kernel in kernels])), self.search.limit - self.search.count
        found: dict[str, tuple[Kernel, list[int]]] = {}
        for place in range(forms):
            taken = set[str]()
            for kernel in kernels:
                kernel.credit += min(kernel.promise() / mean, 1.0) if mean else 1.0
            for kernel in sorted(kernels, key=lambda kernel: -kernel.credit):
                key = kernel.task.workload
                if kernel.credit >= 1 and left and not taken & self.whole.beside[key]:
                    kernel.credit, left = kernel.credit - 1, left - 1
                    taken.add(key)
                    found.setdefault(key, (kernel, []))[1].append(place)
        return list(found.values())

    def resolved(
        self, by: Mapping[str, Kernel], table: Mapping[str, Decisions], form: Form, seen: Collection[tuple[str, str]]
    ) -> Iterator[tuple[Kernel, Decisions]]:
        """What the proposals of a form came out as, where that was neither measured before nor is in `seen`."""
        for key, proposal in table.items():
            kernel = by[key]
            if key in form.failed or key not in form.decisions:
                self.search.note(kernel, proposal, "build_error", error=form.failed.get(key, "it was not asked for"))
                continue
            kernel.space.learn(form.asked[key])
            decisions = form.decisions[key]
            known = digest(decisions) in kernel.known
            if digest(proposal) != digest(decisions):
                kernel.aliases[digest(proposal)] = digest(decisions)
            if not known and (key, digest(decisions)) not in seen:
                yield kernel, decisions

    def timed(self, forms: Sequence[Form], fresh: Sequence[Sequence[tuple[Kernel, Decisions]]]) -> bool:
        """Runs forms in turns with the untuned one and writes down what their kernels took: per call, with what that
        of the untuned took. What comes after a wrong result says nothing, and is no trial. False also where a kernel
        that is not tried gives something else."""
        assert self.whole is not None
        begun, left = time.monotonic(), [pair for of_form in fresh for pair in of_form]
        try:
            ran = self.whole.watch([form.built for form in forms])
            if ran.status != "ok":
                return False
            first, *found = ran.value
            for watched, pairs in zip(found, fresh):
                if watched.wrong is not None and watched.wrong[0] not in {kernel.task.workload for kernel, _ in pairs}:
                    return False
                for kernel, decisions in pairs:
                    key, calls = kernel.task.workload, kernel.task.calls
                    if watched.wrong is None and key in watched.times and key in first.times:
                        times = [ms / calls for ms in watched.times[key]]
                        beside = float(np.median(first.times[key])) / calls
                        self.search.note(kernel, decisions, "ok", times, "", {**ran.conditions, BESIDE: beside})
                    elif watched.wrong is not None and watched.wrong[0] == key:
                        self.search.note(kernel, decisions, "wrong_result", error=watched.wrong[1])
                    left.remove((kernel, decisions))
            return True
        except (KeyboardInterrupt, SystemExit):
            self.search.cancel(left)
            raise
        finally:
            self.search.measuring_s += time.monotonic() - begun
