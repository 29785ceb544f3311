"""Building candidates, checking them against the reference, timing them: each in a child of its own.

Nothing is built while a kernel is timed: builds are done in batches, and then one candidate after the other runs alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tvmcompress import linking, threads
from tvmcompress.ir import evaluate, graph
from tvmcompress.isa import Isa, isa_of
from tvmcompress.kernels.choices import Decisions, Question, Recorder, decided, nearest
from tvmcompress.lower.pipeline import Lowered, lower_kernels
from tvmcompress.target import Target
from tvmcompress.trials import digest
from tvmcompress.tuning import children
from tvmcompress.tuning.tasks import Task, np_dtype

BUILD_S = 60.0
REFERENCE_S = 300.0
RUN_S = 20.0
SAMPLES = 9  # times of a candidate
SAMPLE_S = 0.003  # of running, at least
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # of the greatest magnitude


@dataclass(frozen=True)
class Built:
    """A candidate as a library in `folder`, what was decided, and what was asked. `known`: it was built before."""

    decisions: Decisions
    asked: dict[str, Question]
    folder: Path | None
    inputs: int = 0
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()  # dtypes and shapes
    prepares: bool = False

    @property
    def known(self) -> bool:
        return self.folder is None


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

    def build(self, task: Task, candidates: Sequence[Decisions], known: set[str]) -> list[children.Outcome]:
        """Outcomes with `Built`. What turns out to be in `known` (digests) is not built."""
        return children.run([self.order(task, one, known) for one in candidates], self.cores, BUILD_S)

    def build_untuned(self, tasks: Sequence[Task]) -> list[children.Outcome]:
        """One of each task."""
        return children.run([self.order(task, {}, set()) for task in tasks], self.cores, BUILD_S)

    def order(self, task: Task, decisions: Decisions, known: set[str]) -> Callable[[], Built]:
        self.count += 1
        return partial(self._build, task, decisions, known, self.folder / f"{self.count}")

    def _build(self, task: Task, decisions: Decisions, known: set[str], folder: Path) -> Built:
        recorder = Recorder(decided({task.workload: decisions}, nearest))

        def watch(step: str, _module: tvm.IRModule) -> None:
            if step == "schedule" and digest(recorder.decisions(task.workload)) in known:
                raise _Known

        try:
            lowered = lower_kernels(task.module, self.machine, self.isa, watch, recorder)
        except _Known:
            return Built(recorder.decisions(task.workload), recorder.asked[task.workload], None)
        if lowered.fallbacks:
            raise RuntimeError("; ".join(lowered.fallbacks.values()))
        folder.mkdir(parents=True)
        lowered.executable.export_library(str(folder / "library.so"), fcompile=self.link, workspace_dir=str(folder))
        for i, tensor in enumerate(lowered.stored):
            np.save(folder / f"{i}.npy", graph.as_numpy(tensor).reshape(-1).view(np.uint8))
        return _built(lowered, recorder, task, folder)

    def refer(self, tasks: Sequence[Task]) -> list[str]:
        """Computes what each kernel must give, by TVM's stock kernels; for each what went wrong, if anything."""
        outcomes = children.run([partial(_reference, task) for task in tasks], self.cores, REFERENCE_S)
        self.references |= {task.workload: outcome.value for task, outcome in zip(tasks, outcomes)}
        return [outcome.error for outcome in outcomes]

    def time(self, task: Task, built: Sequence[Built], rounds: int = 1) -> children.Outcome:
        """Times in ms for each of several builds, in turn; status `wrong` for results unlike the reference."""
        work = partial(_time, task, built, self.references[task.workload], rounds)
        (outcome,) = children.run([work], 1, RUN_S * len(built))
        return outcome

    def forget(self, built: Built) -> None:
        if built.folder is not None:
            shutil.rmtree(built.folder, ignore_errors=True)


class WrongResult(Exception):
    """A candidate's results are not those of the reference."""


def _built(lowered: Lowered, recorder: Recorder, task: Task, folder: Path) -> Built:
    asked = recorder.asked[task.workload]
    weights = tuple((str(t.dtype), tuple(int(d) for d in t.shape)) for t in lowered.stored)
    decisions = recorder.decisions(task.workload)
    return Built(decisions, asked, folder, lowered.inputs, weights, lowered.prepares)


def _reference(task: Task) -> list[np.ndarray]:
    return evaluate.evaluate(task.module, task.inputs())


def _time(task: Task, built: Sequence[Built], reference: list[np.ndarray] | None, rounds: int) -> list[list[float]]:
    arrays = task.inputs()
    timers: list[Callable[[], list[float]]] = []
    for one in built:
        timers.append(_timer(one, arrays, reference))
    times: list[list[float]] = [[] for _ in built]
    for _ in range(rounds):
        for found, timer in zip(times, timers):
            found += timer()
    return times


def _timer(built: Built, arrays: list[np.ndarray], reference: list[np.ndarray] | None) -> Callable[[], list[float]]:
    """Loads a candidate, runs it once and compares, and returns what times it."""
    assert built.folder is not None
    module = tvm.runtime.load_module(str(built.folder / "library.so"))
    threads.use(module, threads.count(None))
    vm, cpu = relax.VirtualMachine(module, tvm.cpu()), tvm.cpu()
    weights = [
        tvm.runtime.tensor(np.load(built.folder / f"{i}.npy").view(np_dtype(dtype)).reshape(shape))
        for i, (dtype, shape) in enumerate(built.weights)
    ]
    if built.prepares:
        weights = list(vm["prepare"](*weights))
    inputs = [tvm.runtime.tensor(array) for array in arrays]
    got = [result.numpy() for result in vm["main"](*inputs, *weights)]
    if reference is not None:
        compare(got, reference)
    vm.set_input("main", *inputs, *weights)
    first = vm.time_evaluator("invoke_stateful", cpu, number=3, repeat=2)("main").min
    number = max(int(SAMPLE_S / max(first, 1e-7)), 1)
    timer = vm.time_evaluator("invoke_stateful", cpu, number=number, repeat=SAMPLES)
    return lambda: [seconds * 1e3 for seconds in timer("main").results]


def compare(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    """Integers bit by bit, floats within TOLERANCE; raises WrongResult."""
    for a, b in zip(got, wanted, strict=True):
        if str(a.dtype) not in TOLERANCE:
            if not np.array_equal(a, b):
                raise WrongResult(f"{np.mean(a != b):.1%} of the integers differ")
            continue
        a, b, tolerance = a.astype(np.float64), b.astype(np.float64), TOLERANCE[str(a.dtype)]
        limit = tolerance * max(float(np.abs(b).max(initial=0)), 1e-6)
        worst = float(np.abs(a - b).max(initial=0)) if np.isfinite(a).all() else float("inf")
        if not worst <= limit:
            raise WrongResult(f"off by {worst:.3g}, where {limit:.3g} is allowed")
