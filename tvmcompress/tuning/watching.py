"""What each kernel takes where it counts: within runs of the whole model, with caches as its neighbours leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm

from tvmcompress.measurement.stamps import Called, Stamps, calls
from tvmcompress.timing.session import turns
from tvmcompress.tuning.bench import Job, machine_of
from tvmcompress.tuning.workshop import Built

ROUNDS = 9
TURN_S = 0.06  # of runs of each form in a round
MOST_RUNS = 50


def watched(job: Job, target: tvm.target.Target) -> list[dict[str, float]]:
    """For each form of a model ms in a run by workload, in turns. Runs in a child.

    Of a round the least counts, for what else runs on the machine only adds; of the rounds the median.
    """
    arrays, stamps = job.task.inputs(), Stamps(target)
    forms = [Form(built, arrays, stamps) for built in job.built]
    runs = max(min(int(TURN_S / max(forms[0].seconds, 1e-6)), MOST_RUNS), 3)
    rounds: list[list[dict[str, float]]] = [[] for _ in forms]
    for number in turns(len(forms), ROUNDS):
        rounds[number].append(forms[number].least(runs))
    return [
        {key: float(np.median([found[key] for found in own])) for key in form.keys} for form, own in zip(forms, rounds)
    ]


class Form:
    """A build that is loaded, and which of its calls are which workload's."""

    def __init__(self, built: Built, arrays: Sequence[np.ndarray], stamps: Stamps) -> None:
        self.machine, self.stamps = machine_of(built, arrays), stamps
        self.run: Callable[[], Any] = lambda: self.machine["invoke_stateful"]("main")
        self.run()
        self.seconds = float(self.machine.time_evaluator("invoke_stateful", tvm.cpu(), number=1, repeat=2)("main").min)
        names = dict(built.kernels)
        called, self.events = calls(self, self.run)
        self.called: list[tuple[str, Called]] = [(key, one) for one in called if (key := names.get(one.name))]
        self.keys = sorted({key for key, _ in self.called})

    def watch(self, instrument: Any) -> None:
        """As `Program.watch`."""
        self.machine.module["set_instrument"](instrument)

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
