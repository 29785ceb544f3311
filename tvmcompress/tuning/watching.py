"""What each kernel takes where it counts: within runs of the whole model, with caches as its neighbours leave them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm

from tvmcompress.measurement.stamps import Called, Stamps, calls
from tvmcompress.timing.session import WrongResult, compare, turns
from tvmcompress.tuning.bench import Job, machine_of
from tvmcompress.tuning.workshop import Built

ROUNDS, LEAST_ROUNDS = 9, 3  # of a model that is slow fewer
TURN_S = 0.06  # of runs of each form in a round
MOST_RUNS = 50
ROOM = 2 << 30  # bytes of all that kernels read and give in a run


@dataclass(frozen=True)
class Seen:
    """A call of a run: its workload, what it read (weights aside), what it gave."""

    workload: str
    inputs: list[np.ndarray]
    output: np.ndarray


@dataclass(frozen=True)
class Watched:
    """Of a form of a model: ms in a run by workload, of each round; the workloads of its calls, in order; and that
    whose result was wrong first, and how: then there are no times."""

    times: dict[str, list[float]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    wrong: tuple[str, str] | None = None


def watched(job: Job, target: tvm.target.Target, exact: Collection[str]) -> list[Watched]:
    """For each form of a model what its kernels take, in turns. Runs in a child.

    The first form is what the others are compared with: call by call each must give what it gave, on its inputs,
    integers of the workloads `exact` bit by bit. Of a round the least counts, for what else runs only adds.
    """
    arrays, stamps = job.task.inputs(), Stamps(target)
    forms = [Loaded(built, arrays, stamps) for built in job.built]
    seen = forms[0].seen() if len(forms) > 1 else []
    wrong = {number: error for number, form in enumerate(forms[1:], 1) if (error := form.differs(seen, exact))}
    right = [number for number in range(len(forms)) if number not in wrong]
    runs = max(min(int(TURN_S / max(forms[0].seconds, 1e-6)), MOST_RUNS), 3)
    count = max(min(int(ROUNDS * 2 * TURN_S / (runs * max(forms[0].seconds, 1e-6))), ROUNDS), LEAST_ROUNDS)
    orders = ([key for key, _ in form.called] for form in forms)
    found = [Watched(order=order, wrong=wrong.get(number)) for number, order in enumerate(orders)]
    for place in turns(len(right), count):
        for key, ms in forms[right[place]].least(runs).items():
            found[right[place]].times.setdefault(key, []).append(ms)
    return found


class Loaded:
    """A build that is loaded, and which of its calls are which workload's."""

    def __init__(self, built: Built, arrays: Sequence[np.ndarray], stamps: Stamps) -> None:
        self.machine, weights = machine_of(built, arrays)
        self.stored, self.stamps = {tensor.data_ptr() for tensor in weights}, stamps
        self.run: Callable[[], Any] = lambda: self.machine["invoke_stateful"]("main")
        self.run()
        self.seconds = float(self.machine.time_evaluator("invoke_stateful", tvm.cpu(), number=1, repeat=2)("main").min)
        self.names = dict(built.kernels)
        called, self.events = calls(self, self.run)
        self.called: list[tuple[str, Called]] = [(key, one) for one in called if (key := self.names.get(one.name))]
        self.keys = sorted({key for key, _ in self.called})

    def watch(self, instrument: Any) -> None:
        """As `Program.watch`."""
        self.machine.module["set_instrument"](instrument)

    def seen(self) -> list[Seen]:
        """What the calls of all workloads read and gave, in a run."""
        found: list[Seen] = []
        reads: dict[int, list[np.ndarray]] = {}
        room = ROOM

        def note(_function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> None:
            nonlocal room
            if name not in self.names:
                return
            *inputs, output = self.tensors(arguments)
            if before:
                reads[0] = [tensor.numpy() for tensor in inputs]
                return
            room -= sum(array.nbytes for array in reads[0]) + (result := output.numpy()).nbytes
            if room < 0:
                raise MemoryError("the results of all kernels are too large")
            found.append(Seen(self.names[name], reads[0], result))

        self.through(note)
        return found

    def differs(self, seen: Sequence[Seen], exact: Collection[str]) -> tuple[str, str] | None:
        """The workload of the first call that does not give what it gave there, on the inputs that it had there."""
        left = {key: [one for one in seen if one.workload == key] for key in {one.workload for one in seen}}
        found: list[tuple[str, str]] = []

        def note(_function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> None:
            if name not in self.names or found or not left.get(self.names[name]):
                return
            key, (*inputs, output) = self.names[name], self.tensors(arguments)
            there = left[key][0]
            if before:
                shapes = [(tuple(a.shape), str(a.dtype)) for a in inputs]
                if shapes == [(a.shape, str(a.dtype)) for a in there.inputs]:
                    for tensor, array in zip(inputs, there.inputs):
                        tensor.copyfrom(array)
                return
            del left[key][0]
            try:
                compare([output.numpy()], [there.output], key in exact)
            except WrongResult as error:
                found.append((key, str(error)))

        self.through(note)
        return found[0] if found else None

    def tensors(self, arguments: Sequence[Any]) -> list[Any]:
        """Of a call those that are no weights; the last is its result."""
        found = [a for a in arguments if hasattr(a, "shape") and hasattr(a, "dtype")]
        return [a for a in found[:-1] if a.data_ptr() not in self.stored] + found[-1:]

    def through(self, note: Callable[..., None]) -> None:
        """A run in which it is told of each call."""
        self.watch(note)
        try:
            self.run()
        finally:
            self.watch(None)

    def least(self, runs: int) -> dict[str, float]:
        """ms of all calls of a workload, in the run of several in which they took least."""
        found = []
        self.run()  # with its own weights in the caches, as far as they stay there
        self.watch(self.stamps.function)
        try:
            self.stamps.take()
            for _ in range(runs):
                self.run()
                found.append(self.stamps.take())
        finally:
            self.watch(None)
        times = np.array([one for one in found if len(one) == self.events])
        spent: dict[str, float] = {}
        for key in self.keys:
            inside = sum(times[:, one.after] - times[:, one.before] for name, one in self.called if name == key)
            spent[key] = float(np.min(inside))
        return spent
