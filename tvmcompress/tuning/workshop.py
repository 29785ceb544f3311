"""Building candidates, and what they must give: each in a child of its own.

Nothing is built while a kernel is timed here: builds are done in batches, and then `bench` times them (`quiet`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvmcompress import linking
from tvmcompress.ir import evaluate, graph
from tvmcompress.isa import Isa, isa_of
from tvmcompress.kernels.choices import Decisions, Question, Recorder, decided, nearest
from tvmcompress.lower.pipeline import Lowered, lower_graph, lower_kernels
from tvmcompress.lower.shared import Shared
from tvmcompress.target import Target
from tvmcompress.trials import digest
from tvmcompress.tuning import children, quiet
from tvmcompress.tuning.tasks import Task

BUILD_S = 60.0
REFERENCE_S = 300.0


@dataclass(frozen=True)
class Built:
    """A candidate as a library in `folder`, what was decided, and what was asked. `known`: it was built before."""

    decisions: Decisions
    asked: dict[str, Question]
    folder: Path | None
    inputs: int = 0
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()  # dtypes and shapes
    prepares: bool = False
    kernels: tuple[tuple[str, str], ...] = ()  # names of programs, and the workloads that they are

    @property
    def known(self) -> bool:
        return self.folder is None


@dataclass(frozen=True)
class Form:
    """A build of a model with decisions for some of its kernels. By their workloads: what was taken, what was asked,
    and why the schedule came to nothing where it did."""

    built: Built
    decisions: dict[str, Decisions]
    asked: dict[str, dict[str, Question]]
    failed: dict[str, str]


class _Known(Exception):
    pass


class Workshop:
    """For one target, in `folder`. `cores`: how many builds at once."""

    def __init__(self, target: Target, folder: Path, cores: int) -> None:
        self.target, self.folder, self.cores = target, folder, cores
        self.machine: tvm.target.Target = target.to_tvm()
        self.isa: Isa = isa_of(self.machine, target.l1d, target.l2)
        self.link = linking.linker(target)
        self.references: dict[str, list[np.ndarray] | None] = {}
        self.count = 0
        self.busy_s = 0.0  # spent on builds and references

    def build(self, task: Task, candidates: Sequence[Decisions], known: set[str]) -> list[children.Outcome]:
        """Outcomes with `Built`. What turns out to be in `known` (digests) is not built."""
        return self.run([self.order(task, one, known) for one in candidates], BUILD_S)

    def build_untuned(self, tasks: Sequence[Task]) -> list[children.Outcome]:
        """One of each task."""
        return self.run([self.order(task, {}, set()) for task in tasks], BUILD_S)

    def run(self, work: Sequence[Callable[[], Any]], seconds: float) -> list[children.Outcome]:
        begun = time.monotonic()
        try:
            with quiet.building():
                return children.run(work, self.cores, seconds)
        finally:
            self.busy_s += time.monotonic() - begun

    def order(self, task: Task, decisions: Decisions, known: set[str]) -> Callable[[], Built]:
        self.count += 1
        return partial(self._build, task, decisions, known, self.folder / f"{self.count}")

    def _build(self, task: Task, decisions: Decisions, known: set[str], folder: Path) -> Built:
        recorder = Recorder(decided({task.workload: decisions}, nearest))

        def watch(step: str, _module: tvm.IRModule) -> None:
            if step == "schedule" and digest(recorder.decisions(task.workload)) in known:
                raise _Known

        try:
            lowered = lower_kernels(task.module, self.machine, self.isa, watch, recorder).build()
        except _Known:
            return Built(recorder.decisions(task.workload), recorder.asked[task.workload], None)
        if lowered.fallbacks:
            raise RuntimeError("; ".join(lowered.fallbacks.values()))
        return self._linked(lowered, recorder.decisions(task.workload), recorder.asked[task.workload], folder)

    def _linked(self, lowered: Lowered, decisions: Decisions, asked: dict[str, Question], folder: Path) -> Built:
        folder.mkdir(parents=True)
        lowered.executable.export_library(str(folder / "library.so"), fcompile=self.link, workspace_dir=str(folder))
        for i, tensor in enumerate(lowered.stored):
            np.save(folder / f"{i}.npy", graph.as_numpy(tensor).reshape(-1).view(np.uint8))
        weights = tuple((str(t.dtype), tuple(int(d) for d in t.shape)) for t in lowered.stored)
        kernels = tuple((row["name"], row["key"]) for row in lowered.kernels if row["key"])
        return Built(decisions, asked, folder, lowered.inputs, weights, lowered.prepares, kernels)

    def build_first(self, task: Task) -> Form:
        """A model with all kernels untuned, made here: children that build other forms of it have its machine code."""
        begun = time.monotonic()
        try:
            self.graph, _ = lower_graph(task.module, self.isa, lambda _step, _mod: None)
            self.shared = Shared(self.machine, self.isa)
            self.count += 1
            with quiet.building():
                return self._form(self.shared, {}, self.folder / f"{self.count}")
        finally:
            self.busy_s += time.monotonic() - begun

    def build_forms(self, tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[Form | None]:
        """The model of `build_first`, for each of `tables` once, with these decisions for some kernels (of one that
        cannot be, the nearest); None where it cannot be made in time."""
        folders = [self.folder / f"{self.count + 1 + i}" for i in range(len(tables))]
        self.count += len(tables)
        orders = [partial(self._form_in_child, *pair) for pair in zip(tables, folders)]
        outcomes = self.run(orders, REFERENCE_S)
        return [outcome.value if outcome.status == "ok" else None for outcome in outcomes]

    def _form_in_child(self, table: Mapping[str, Mapping[str, Any]], folder: Path) -> Form:
        return self._form(self.shared.after_fork(), table, folder)

    def _form(self, shared: Shared, table: Mapping[str, Mapping[str, Any]], folder: Path) -> Form:
        recorder = Recorder(decided(table, nearest))
        watch = lambda _step, _mod: None  # noqa: E731
        lowered = lower_kernels(self.graph, self.machine, self.isa, watch, recorder, shared=shared).build()
        built = self._linked(lowered, {}, {}, folder)
        asked = {key: questions for key, questions in recorder.asked.items() if key in table}
        failed = {key: why for name, key in built.kernels if (why := lowered.fallbacks.get(name)) and key in table}
        return Form(built, {key: recorder.decisions(key) for key in asked}, asked, failed)

    def refer(self, tasks: Sequence[Task]) -> list[str]:
        """Computes what each kernel must give, by TVM's stock kernels; for each what went wrong, if anything."""
        outcomes = self.run([partial(_reference, task) for task in tasks], REFERENCE_S)
        self.references |= {task.workload: outcome.value for task, outcome in zip(tasks, outcomes)}
        return [outcome.error for outcome in outcomes]

    def forget(self, built: Built) -> None:
        if built.folder is not None:
            shutil.rmtree(built.folder, ignore_errors=True)


def _reference(task: Task) -> list[np.ndarray]:
    return evaluate.evaluate(task.module, task.inputs())
