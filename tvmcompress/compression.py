"""compress: a model through the passes of a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvmcompress.errors import RecipeError, SampleError
from tvmcompress.isa import isa_of
from tvmcompress.lower import host, layer_time
from tvmcompress.model import Model
from tvmcompress.passes import Calibration, Factorize, Pass
from tvmcompress.passes.support import clock
from tvmcompress.passes.support.calibration import Executor, Progress
from tvmcompress.recipe import Recipe
from tvmcompress.samples import Samples
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target

Between = Callable[[Pass, Model], None]


def clock_of(target: str) -> clock.Clock:
    """What layers take on a target."""
    found = Target.load(target)
    if found.kind != "cpu" or found.builds:
        raise RecipeError(f"factorize: target {found.name}: wanted one CPU, whose layers' time can be estimated")
    isa = isa_of(found.to_tvm(), found.l1d, found.l2)
    return lambda shapes: sum(layer_time.cycles(isa, **vars(shape)) for shape in shapes)


clock.provide(clock_of)


def host_executor(mod: tvm.IRModule) -> Callable[[Any], list[np.ndarray]]:
    """What runs programs during calibration: arrays in, arrays out, in order."""
    return host.executor(mod)


def compress(
    model: Model,
    recipe: Recipe | str | os.PathLike,
    samples: Any = None,
    *,
    progress: Progress | None = None,
    cache: str | os.PathLike | None = None,
    between: Between | None = None,
) -> Model:
    """`model` after every pass of `recipe`; the one given is not changed.

    samples: a .npz or .npy file, a folder of them, or an iterable (read once, one by one) of dicts from input name to
    array, of arrays when there is one input, or of tuples in the order of the inputs; needed by recipes that calibrate.
    progress: called with (samples done, total or None, what is being done).
    cache: a file that keeps the calibration. It is reused as long as program and options stay the same; of the samples
    only the first few are then read, to compare with float, and none need be given.
    between: called with (pass, model after it) after each pass.

    Raises RecipeError, SampleError, and ModelError for weights that are not numbers.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    calibration = None
    if recipe.needs_samples:
        needing = next(step for step in recipe.passes if step.needs_samples)
        if samples is None and not (cache is not None and Path(cache).exists()):
            raise SampleError(
                f"recipe '{recipe.name}' needs samples for {needing.key}: give some typical inputs "
                f"(--samples calib.npz, samples=images), or {without_samples(needing)}"
            )
        calibration = calibration_of(model, samples, progress, cache)
    for step in recipe.passes:
        outcome = step(model.module, calibration)
        model = model.with_module(outcome.module, repr(step), outcome.notes)
        if between is not None:
            between(step, model)
    return model


def without_samples(needing: Pass) -> str:
    """What can be done where there are none."""
    if hasattr(needing, "repair"):
        return 'in a recipe of your own say repair = "none"'
    if isinstance(needing, Factorize):
        return "keep energy instead of an error"
    return "take one that needs none (int8-dynamic, int8-weights)"


def calibration_of(
    model: Model, samples: Any, progress: Progress | None, cache: str | os.PathLike | None
) -> Calibration:
    executor: Executor = host_executor
    path = Path(cache) if cache is not None else None
    if samples is None:
        return Calibration((), executor, total=0, progress=progress, cache=path)
    checked = samples if isinstance(samples, Samples) else Samples(samples, model.inputs)
    return Calibration(
        Ordered(checked, model.inputs),
        executor,
        total=checked.count(),
        once=hasattr(checked.source, "__next__"),
        progress=progress,
        cache=path,
    )


class Ordered:
    """Samples as lists of arrays in the order of the model's inputs."""

    def __init__(self, samples: Samples, inputs: tuple[TensorSpec, ...]):
        self.samples = samples
        self.names = [spec.name for spec in inputs]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for sample in self.samples:
            yield [np.ascontiguousarray(sample[name]) for name in self.names]
