"""Timing what was built: on this machine, one candidate after the other and nothing beside it; or on a board.

Each measurement is a child of its own. It loads the candidates, compares what they give with the reference, and times
them in turns by the clock of the machine that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax

from tvmcompress import conditions, threads
from tvmcompress.serving.programs import PREPARE, SET_INPUT
from tvmcompress.tuning import children
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.tasks import Task, np_dtype
from tvmcompress.tuning.workshop import Built

RUN_S = 20.0
SAMPLES = 9  # times of a candidate
SAMPLE_S = 0.003  # of running, at least
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # of the greatest magnitude


@dataclass(frozen=True)
class Job:
    """Builds of a kernel, to be compared with what it must give and timed in turns, `rounds` times each."""

    task: Task
    built: Sequence[Built]
    reference: list[np.ndarray] | None
    rounds: int = 1

    @property
    def seconds(self) -> float:
        return RUN_S * len(self.built)


@dataclass(frozen=True)
class Place:
    """A session to come: where to connect, what to say, and on how many threads to run. `host` is empty here."""

    host: str = ""
    port: int = 0
    key: str = ""
    threads: int = 0


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

    paused_s = 0.0

    @property
    def at_once(self) -> int:
        return 1

    def __init__(self, board: str) -> None:
        self.board = board

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        for index, job in enumerate(jobs):
            (outcome,) = children.run([partial(measured, job, Place())], 1, job.seconds)
            yield index, replace(verdict(outcome), conditions=conditions.conditions())

    def close(self) -> None:
        pass


class WrongResult(Exception):
    """A candidate's results are not those of the reference."""


def verdict(outcome: Outcome) -> Outcome:
    """With the status `wrong` where the results were."""
    wrong = outcome.status == "error" and outcome.error.startswith(WrongResult.__name__)
    return replace(outcome, status="wrong") if wrong else outcome


def measured(job: Job, place: Place) -> list[list[float]]:
    """Times in ms of each build. Runs in a child."""
    side = Side(place, job.seconds)
    arrays = job.task.inputs()
    timers = [side.timer(one, arrays, job.reference) for one in job.built]
    times: list[list[float]] = [[] for _ in job.built]
    for _ in range(job.rounds):
        for found, timer in zip(times, timers):
            found += timer()
    return times


class Side:
    """The machine that runs: this one, or a board in whose session this is."""

    def __init__(self, place: Place, seconds: float) -> None:
        self.session: Any = None
        self.threads = place.threads or threads.count(None)
        if place.host:
            self.session = tvm.rpc.connect(place.host, place.port, place.key, session_timeout=seconds)
        self.device = self.session.cpu() if self.session else tvm.cpu()
        self.count = 0

    def load(self, path: str) -> Any:
        if self.session is None:
            return tvm.runtime.load_module(path)
        self.count += 1
        self.session.upload(path, target=f"{self.count}.so")
        return self.session.load_module(f"{self.count}.so")

    def tensor(self, array: np.ndarray) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), self.device)

    def timer(
        self, built: Built, arrays: Sequence[np.ndarray], reference: list[np.ndarray] | None
    ) -> Callable[[], list[float]]:
        """Loads a candidate, runs it once and compares, and returns what times it."""
        assert built.folder is not None
        module = self.load(str(built.folder / "library.so"))
        threads.use(module, self.threads)
        vm = relax.VirtualMachine(module, self.device)
        weights = [
            self.tensor(np.load(built.folder / f"{i}.npy").view(np_dtype(dtype)).reshape(shape))
            for i, (dtype, shape) in enumerate(built.weights)
        ]
        inputs = [self.tensor(array) for array in arrays]
        self.set_inputs(vm, built, inputs, weights)
        vm.invoke_stateful("main")
        results = vm.get_outputs("main")
        got = [result.numpy() for result in (results if isinstance(results, tuple) else [results])]
        if reference is not None:
            compare(got, reference)
        first = vm.time_evaluator("invoke_stateful", self.device, number=3, repeat=2)("main").min
        number = max(int(SAMPLE_S / max(first, 1e-7)), 1)
        timer = vm.time_evaluator("invoke_stateful", self.device, number=number, repeat=SAMPLES)
        return lambda: [seconds * 1e3 for seconds in timer("main").results]

    def set_inputs(self, vm: relax.VirtualMachine, built: Built, inputs: list, weights: list) -> None:
        """What `prepare` makes of the weights stays where it is, also on a board (`serving.programs`)."""
        if not built.prepares:
            vm.set_input("main", *inputs, *weights)
        elif self.session is None:
            vm.set_input("main", *inputs, *vm["prepare"](*weights))
        else:
            vm.set_input("prepare", *weights)
            number = self.session.get_function(PREPARE)(vm.module)
            self.session.get_function(SET_INPUT)(vm.module, number, *inputs)


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
