"""Timing what was built: on this machine, one candidate after the other and nothing beside it; or on a board.

Each measurement is a child of its own. It loads the candidates, compares what they give with the reference, and times
them in turns by the clock of the machine that runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax

from tvmcompress import conditions, threads
from tvmcompress.timing.session import SAMPLE_S, SAMPLES, Form, Work, WrongResult, compare, np_dtype, turns
from tvmcompress.tuning import children, quiet
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.workshop import Built

RUN_S = 20.0

Timer = Callable[[], list[float]]


@dataclass(frozen=True)
class Job:
    """Builds of a kernel, to be compared with what it must give and timed in turns, `rounds` times each."""

    task: Task
    built: Sequence[Built]
    reference: list[np.ndarray] | None
    rounds: int = 1
    expected_s: float = 0.0  # of timing, as far as that is known

    @property
    def seconds(self) -> float:
        return max(RUN_S * len(self.built), 3 * self.expected_s)

    def work(self, host: str, port: int, key: str, cores: int) -> Work:
        """The same for a session of a board."""
        forms = tuple(Form(str(one.folder), one.weights, one.prepares) for one in self.built)
        reference = None if self.reference is None else tuple(self.reference)
        inputs = tuple(self.task.inputs())
        return Work(
            host, port, key, cores, self.seconds, forms, inputs, reference, self.rounds, self.task.exact
        )  # fmt: skip


class Bench(Protocol):
    """Where jobs are done. `at_once`: how many; `paused_s`: how long none could be, for no fault of ours."""

    paused_s: float
    board: str  # its key in the log

    @property
    def at_once(self) -> int: ...

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """The number of each job and what came of it, as they end: `ok` with a list of times in ms for each build,
        `wrong` for results unlike the reference, else as `children.Outcome` says."""
        ...

    def close(self) -> None: ...


class Here:
    """This machine."""

    paused_s = 0.0  # while another run of the tuner built or timed

    @property
    def at_once(self) -> int:
        return 1

    def __init__(self, board: str) -> None:
        self.board = board

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        for index, job in enumerate(jobs):
            yield index, self.alone(partial(measured, job), job.seconds)

    def alone(self, work: Callable[[], Any], seconds: float) -> Outcome:
        """What came of a measurement in a child."""
        waiting = time.monotonic()
        with quiet.timing():
            self.paused_s += time.monotonic() - waiting
            (outcome,) = children.run([work], 1, seconds)
        return replace(verdict(outcome), conditions=conditions.conditions())

    def close(self) -> None:
        pass


def verdict(outcome: Outcome) -> Outcome:
    """With the status `wrong` where the results were."""
    wrong = outcome.status == "error" and outcome.error.startswith(WrongResult.__name__)
    return replace(outcome, status="wrong") if wrong else outcome


def measured(job: Job) -> list[list[float]]:
    """Times in ms of each build, here. Runs in a child."""
    arrays = job.task.inputs()
    timers = [timer_of(one, arrays, job.reference, job.task.exact) for one in job.built]
    times: list[list[float]] = [[] for _ in job.built]
    for number in turns(len(times), job.rounds):
        times[number] += timers[number]()
    return times


def timer_of(
    built: Built, arrays: Sequence[np.ndarray], reference: Sequence[np.ndarray] | None, exact: bool
) -> Timer:  # fmt: skip
    """Loads a candidate, runs it once and compares, and returns what times it."""
    (vm, _), cpu = machine_of(built, arrays), tvm.cpu()
    if reference is not None:
        vm["invoke_stateful"]("main")
        compare([result.numpy() for result in vm.get_outputs("main")], reference, exact)
    first = vm.time_evaluator("invoke_stateful", cpu, number=3, repeat=2)("main").min
    number = max(int(SAMPLE_S / max(first, 1e-7)), 1)
    timer = vm.time_evaluator("invoke_stateful", cpu, number=number, repeat=SAMPLES)
    return lambda: [seconds * 1e3 for seconds in timer("main").results]


def machine_of(built: Built, arrays: Sequence[np.ndarray]) -> tuple[relax.VirtualMachine, list[tvm.runtime.Tensor]]:
    """A candidate that is loaded and has its inputs; and its weights."""
    assert built.folder is not None
    module = tvm.runtime.load_module(str(built.folder / "library.so"))
    threads.use(module, threads.count(None))
    vm = relax.VirtualMachine(module, tvm.cpu())
    weights = [
        tvm.runtime.tensor(np.load(built.folder / f"{i}.npy").view(np_dtype(dtype)).reshape(shape))
        for i, (dtype, shape) in enumerate(built.weights)
    ]
    if built.prepares:
        weights = list(vm["prepare"](*weights))
    vm.set_input("main", *(tvm.runtime.tensor(array) for array in arrays), *weights)
    return vm, weights
