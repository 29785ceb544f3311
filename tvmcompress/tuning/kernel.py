"""A kernel that is tuned, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tvmcompress.kernels.choices import Decisions
from tvmcompress.trials import Trial, comparable, digest, untuned_ms
from tvmcompress.tuning.candidates import Space
from tvmcompress.tuning.generic_space import TraceSpace
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.workshop import Built, Workshop

BATCH = 8  # trials
FINALISTS = 3


@dataclass(frozen=True)
class Place:
    """What all trials of a run have in common."""

    target: str
    board: str
    versions: str


@dataclass
class Kernel:
    """A task and what is known of it. `ended`: why it is left alone."""

    task: Task
    space: Space = field(default_factory=Space)
    trials: list[Trial] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)  # digests of proposals, and of what they came out as
    seeds: list[Decisions] = field(default_factory=list)  # to be tried before all others
    untuned: Decisions | None = None
    form: Built | None = None  # the untuned one, which is timed again beside each batch
    idle: int = 0  # trials since the last gain
    credit: float = 0.0  # with 1 it takes part in a round
    gained: float = 1.0  # share of its time that the last batches gained
    ended: str = ""
    kept: str = ""  # the digest of what the log says to take

    @property
    def known(self) -> set[str]:
        return {trial.digest for trial in self.trials} | self.aliases.keys()

    @property
    def tried(self) -> bool:
        """Whether its untuned form was measured, whatever came of it."""
        return self.untuned is not None and self.first in self.known

    @property
    def best(self) -> float:
        """ms of one call."""
        return min(self.times().values(), default=float("inf"))

    @property
    def first(self) -> str:
        """The digest of the untuned form."""
        return digest(self.untuned) if self.untuned is not None else ""

    @property
    def start(self) -> float:
        """ms of one call, untuned: the median of all times that it was measured."""
        return untuned_ms(self.trials, self.first)

    def times(self) -> dict[str, float]:
        """ms of one call of each trial, by its digest, as `comparable` has it."""
        return comparable(self.trials, self.first)

    def good(self) -> list[Trial]:
        """What was right, the fastest first."""
        times = self.times()
        return sorted((t for t in self.trials if t.status == "ok"), key=lambda t: times[t.digest])

    def finalists(self) -> list[Decisions]:
        """The best few that are not the untuned form."""
        return [dict(t.decisions) for t in self.good()[:FINALISTS] if t.digest != self.first]

    def promise(self) -> float:
        """ms of a run of the model that the next trials may gain."""
        return self.total(self.best) * (self.gained + 0.02) / (1 + self.idle / BATCH)

    def total(self, ms: float) -> float:
        """ms of a run of the model that this kernel takes."""
        return ms * self.task.calls if np.isfinite(ms) else 0.0


def space_of(task: Task, workshop: Workshop) -> Space:
    return Space() if task.program is None else TraceSpace(task.program, workshop.machine)
