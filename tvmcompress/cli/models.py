"""From a path to a Model, and through the verbs that several commands call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tvmcompress import process

if TYPE_CHECKING:
    from tvmcompress.model import Model


def open_model(path: Path, shapes: dict | None = None, values: dict | None = None) -> Model:
    """A model in any format that `load` takes, or one that `compress` saved."""
    process.import_without_torch("tvm")
    from tvmcompress.frontend import load

    return load(path, shapes=shapes or None, values=values or None)


def compress_model(
    model: Model, recipe: str, samples: Path | None, limit: int | None, cache: Path | None, progress: Callable
) -> Model:
    from tvmcompress.compression import compress
    from tvmcompress.recipe import Recipe
    from tvmcompress.samples import Samples

    stream = Samples(samples, model.inputs, limit) if samples is not None else None
    return compress(model, Recipe.load(recipe), stream, progress=progress, cache=cache)
