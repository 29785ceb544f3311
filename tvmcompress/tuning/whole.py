"""The model end to end, untuned and tuned: what tuning is for.

It is lowered in a child and timed as a kernel is, by the same bench. The results were checked kernel by kernel, so here
they are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm

from tvmcompress import golden
from tvmcompress.model import Model
from tvmcompress.trials import EMULATED
from tvmcompress.tuning.bench import Bench, Job
from tvmcompress.tuning.tasks import Task
from tvmcompress.tuning.workshop import Built, Workshop

ROUNDS = 5


@dataclass(frozen=True)
class Program(Task):
    """All of a model, on example inputs."""

    arrays: list[np.ndarray] = field(default_factory=list)

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        return self.arrays


class Whole:
    """Times are in ms, None where they could not be had: for want of memory or time, or on an emulated board."""

    def __init__(self, model: Model, module: tvm.IRModule, workshop: Workshop, bench: Bench) -> None:
        inputs = golden.example_inputs(model.inputs)
        self.task = Program("model", module, 1, 0, arrays=[inputs[spec.name] for spec in model.inputs])
        self.workshop, self.bench = workshop, bench
        self.first: Built | None = None
        self.untuned_ms: float | None = None

    def begin(self) -> None:
        """Before anything is tuned."""
        if not self.bench.board.endswith(EMULATED):
            self.first = self.workshop.build_whole(self.task, {})
            found = self.times([self.first] if self.first else [])
            self.untuned_ms = found[0] if found else None

    def end(self, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, float] | None:
        """Untuned and tuned, in turns."""
        tuned = self.workshop.build_whole(self.task, tables) if self.untuned_ms is not None else None
        found = self.times([self.first, tuned]) if self.first and tuned else None
        return {"untuned": found[0], "tuned": found[1]} if found else None

    def times(self, built: list[Built]) -> list[float] | None:
        if not built:
            return None
        ((_, ran),) = self.bench.measure([Job(self.task, built, None, ROUNDS)])
        return [float(np.median(times)) for times in ran.value] if ran.status == "ok" else None
