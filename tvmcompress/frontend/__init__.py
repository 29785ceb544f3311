"""`load`: a trained model of any format becomes a Model. The format is read off the content; names may lie."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmcompress.errors import ModelError, UsageError
from tvmcompress.model import Model

FORMATS = {".onnx": "onnx", ".pt2": "torch", ".tflite": "tflite", ".model": "saved", ".safetensors": "saved"}
WANTED = "wanted an ONNX model, a torch.export program (.pt2), a TFLite model, or one saved by tvmcompress"


def load(
    source: str | os.PathLike | tuple[Any, Sequence[Any]],
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> Model:
    """Read a model from a file, or from a live torch module: `(module, example_inputs)`.

    `shapes` binds open dimensions by input name; `values` (ONNX) makes inputs constants. Raises ModelError: what cannot
    be read, UnsupportedOperatorsError (all operators at once), OpenShapeError; MissingDependencyError for torch.
    """
    if isinstance(source, tuple):
        return _torch(source, shapes, values)
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"load: wanted a path or (torch module, example inputs), got {type(source).__name__}")
    path = Path(source)
    kind = format_of(path)
    if values and kind != "onnx":
        raise UsageError(f"{path}: values= binds inputs of ONNX models only; this is a {kind} model")
    if kind == "onnx":
        from tvmcompress.frontend.onnx import load_onnx

        return load_onnx(path, shapes, values)
    if kind == "torch":
        from tvmcompress.frontend.torch import load_torch

        return load_torch(path, None, shapes)
    if kind == "tflite":
        from tvmcompress.frontend.tflite import load_tflite

        return load_tflite(path, shapes)
    model = Model.load(path)
    for name, wanted in (shapes or {}).items():
        if (name, tuple(wanted)) not in [(s.name, s.shape) for s in model.inputs]:
            raise ModelError(f"{path}: a saved model's shapes are fixed; give --shape when it is made from its source")
    return model


def _torch(source: tuple[Any, ...], shapes: Any, values: Any) -> Model:
    if len(source) != 2 or values:
        raise UsageError("load: a live module is given as (torch.nn.Module, example inputs), and takes no values=")
    from tvmcompress.frontend.torch import load_torch

    return load_torch(source[0], source[1], shapes)


def format_of(path: Path) -> str:
    """`onnx`, `torch`, `tflite` or `saved`, by content; raises ModelError for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except IsADirectoryError as error:
        raise ModelError(f"{path}: is a folder; {WANTED}") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not head:
        raise ModelError(f"{path}: the file is empty; {WANTED}")
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:4] == b"PK\x03\x04":
        return "torch"
    if head[257:262] == b"ustar":
        raise ModelError(f"{path}: is a package (already compiled), not a model; see `tvmcompress run` and `verify`")
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "saved"
    from tvmcompress.frontend.onnx.files import looks_like_onnx

    if looks_like_onnx(path):
        return "onnx"
    named = FORMATS.get(path.suffix.lower())
    if named:
        what = {"onnx": "an ONNX model", "torch": "a torch.export program", "tflite": "a TFLite model"}.get(
            named, "a saved model"
        )
        raise ModelError(f"{path}: is not {what}, or a damaged one (truncated, or something else renamed)")
    raise ModelError(f"{path}: unknown format; {WANTED}")
