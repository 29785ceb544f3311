"""`load_tflite`: a TensorFlow Lite file, float or quantized, as a Model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tvmcompress.frontend.tflite.importer import declared, import_file
from tvmcompress.frontend.tflite.reader import read
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec


def load_tflite(path: str | os.PathLike, shapes: Mapping[str, Sequence[int]] | None = None) -> Model:
    """Import a `.tflite` file: float, fully quantized, or with quantized weights only.

    Inputs and outputs keep their layout (NHWC for images), their dtypes (a fully quantized model may take and return
    int8), and the names of the file's signature, or those of the tensors where it has none. `shapes` overrides the
    shapes in the file; without it they are taken as they are, as TFLite's own interpreter does.

    Raises ModelError, OpenShapeError, UnsupportedOperatorsError (domain `tflite`), MissingDependencyError.
    """
    return import_file(read(path), Source.of(path, "tflite"), dict(shapes or {}))


def border_tflite(path: str | os.PathLike) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the file declares them, whether or not it can be imported."""
    source = read(path)
    return declared(source, source.inputs), declared(source, source.outputs)
