"""The model end to end, untuned and tuned: what tuning is for.

It is timed as a kernel is, by the same bench; its results are not looked at, for each kernel's were. On this machine
kernels are timed within it, too, and compared with what they gave in the untuned form: alone they find their data in
caches that are others' there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import comb, prod
from typing import Any

import numpy as np
import tvm

from tvmcompress import golden
from tvmcompress.model import Model
from tvmcompress.timing.session import SAMPLE_S, SAMPLES, np_dtype
from tvmcompress.trials import EMULATED, GAIN
from tvmcompress.tuning.bench import Bench, Here, Job
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.watching import watched
from tvmcompress.tuning.workshop import Built, Form, Workshop

ROUNDS, MOST_ROUNDS = 6, 30
SITTINGS = 2  # pairs of them: which is loaded first is changed
TURNS_S = 6.0  # in which untuned and tuned are compared at last, as far as that allows more rounds than the least
LUCK = 40  # one in so many comparisons of equals may end with a winner
ROOM = 2 << 30  # bytes of weights that are in memory at once, in all forms of the model


@dataclass(frozen=True)
class Program(Task):
    """All of a model, on example inputs."""

    arrays: list[np.ndarray] = field(default_factory=list)

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        return self.arrays


class Whole:
    """Times are in ms, None where they could not be had: for want of memory or time, or on an emulated board."""

    def __init__(
        self, model: Model, module: tvm.IRModule, tasks: Sequence[Task], workshop: Workshop, bench: Bench
    ) -> None:  # fmt: skip
        inputs = golden.example_inputs(model.inputs)
        self.task = Program("model", module, 1, 0, arrays=[inputs[spec.name] for spec in model.inputs])
        self.exact = {task.workload for task in tasks if task.exact}
        self.workshop, self.bench = workshop, bench
        self.first: Built | None = None
        self.untuned_ms: float | None = None
        self.measuring_s = 0.0  # of `begin` and `end`, pauses with it; who asks for `kernels` or `watch` counts that
        self.beside: dict[str, set[str]] = {}  # of each workload those that are called just before or behind it

    def begin(self) -> None:
        """Before anything is tuned."""
        if not self.bench.board.endswith(EMULATED):
            self.first = self.workshop.build_first(self.task).built
            found = self.samples([self.first], 1)
            self.untuned_ms = float(np.median(found[0])) if found else None
            begun = time.monotonic()
            ran = self.watch([]) if self.room else None
            self.measuring_s += time.monotonic() - begun
            if ran is not None and ran.status == "ok":
                order = ran.value[0].order
                self.beside = {key: set() for key in order}
                for one, other in pairwise(order):
                    self.beside[one].add(other)
                    self.beside[other].add(one)

    def end(self, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
        """Untuned and tuned, in turns; the same number twice where tuned is not clearly the faster one.

        In several sittings, each a process of its own: where in memory each form comes to lie, the first and what is
        loaded behind it, makes two of a kind differ by a hundredth or more.
        """
        if self.untuned_ms is None or self.first is None:
            return None
        (form,) = self.workshop.build_forms([tables])
        if form is None:
            return None
        both, sat = [self.first, form.built], list[list[np.ndarray]]()
        rounds = int(TURNS_S * 1e3 / (2 * SAMPLES * max(self.untuned_ms, SAMPLE_S * 1e3)))
        pairs = SITTINGS if isinstance(self.bench, Here) else 1  # to a board both are sent each time
        for turn in [1, -1] * pairs:
            found = self.samples(both[::turn], -(-min(max(rounds, ROUNDS), MOST_ROUNDS) // (2 * pairs)))
            if found is None:
                return None
            sat.append(found[::turn])
        before, after = (float(np.median(times)) for times in zip(*sat))
        first, second = (np.median(np.concatenate(times), axis=1) for times in zip(*sat))
        won = clearly(int((second < first).sum()), len(first)) and after <= (1 - GAIN) * before
        return {"untuned": before, "tuned": after if won else before}

    @property
    def room(self) -> int:
        """How many other forms there is memory for whose kernels are timed within the model; none on boards."""
        if self.first is None or not isinstance(self.bench, Here):
            return 0
        size = sum(np_dtype(dtype).itemsize * prod(shape) for dtype, shape in self.first.weights)
        return max(ROOM // max(size, 1) - 1, 0)

    def kernels(self, tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, float]] | None:
        """ms of each workload in a run: untuned, and with each of `tables`; in turns."""
        forms = self.build(tables)
        if forms is None:
            return None
        ran = self.watch([form.built for form in forms])
        if ran.status != "ok" or any(one.wrong for one in ran.value):
            return None
        return [{key: float(np.median(ms)) for key, ms in one.times.items()} for one in ran.value]

    def build(self, tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[Form] | None:
        """A form of the model for each of `tables`; None where one could not be made."""
        forms = [form for form in self.workshop.build_forms(tables) if form is not None]
        return forms if len(forms) == len(tables) else None

    def watch(self, built: Sequence[Built]) -> Outcome:
        """What kernels take (`Watched`) in the untuned form, and in each of these, which are then forgotten."""
        assert self.first is not None and isinstance(self.bench, Here)
        job = Job(self.task, [self.first, *built], None)
        try:
            return self.bench.alone(partial(watched, job, self.workshop.machine, self.exact), 3 * job.seconds)
        finally:
            for form in built:
                self.workshop.forget(form)

    def samples(self, built: list[Built], rounds: int) -> list[np.ndarray] | None:
        """Of each build ms, (rounds, samples)."""
        expected_s = rounds * len(built) * SAMPLES * (self.untuned_ms or 0) / 1e3
        begun = time.monotonic()
        ((_, ran),) = self.bench.measure([Job(self.task, built, None, rounds, expected_s)])
        self.measuring_s += time.monotonic() - begun
        return [np.reshape(times, (rounds, -1)) for times in ran.value] if ran.status == "ok" else None


def clearly(won: int, rounds: int) -> bool:
    """Whether so many rounds are no luck: of equals fewer than one pair in forty would have as many (sign test)."""
    return sum(comb(rounds, number) for number in range(won, rounds + 1)) * LUCK < 2**rounds
