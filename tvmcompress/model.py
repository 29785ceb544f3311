"""Model: a Relax program with its weights, and what was done to it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from tvmcompress.errors import ModelError
from tvmcompress.ir import graph
from tvmcompress.ir.files import atomic_write
from tvmcompress.spec import TensorSpec, numpy_dtype, spec_from_json, spec_json

SCHEMA = 1
INLINE_BYTES = 256  # smaller constants stay inside the program's text


@dataclass(frozen=True)
class Source:
    """The file a model came from: its name without folders, format, size in bytes (external data too) and SHA-256."""

    name: str
    format: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str | os.PathLike, format: str, more: tuple[Path, ...] = ()) -> Source:
        digest, total = hashlib.sha256(), 0
        for part in (Path(path), *more):
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    total += len(block)
        return cls(Path(path).name, format, total, digest.hexdigest())


@dataclass(frozen=True)
class Model:
    """A program (see `ir.graph`), what goes in and comes out, the passes it has been through, and where it came from.

    `module` has one Relax function `main` whose parameters are `inputs` in order and whose result is a tuple of
    `outputs` in order. Weights are constants in it. Quantized tensors are written as quantize / dequantize around
    float operators (README, "The quantized form").
    """

    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: Source
    applied: tuple[str, ...] = ()
    notes: tuple[dict, ...] = ()  # what passes have to say to the report, layer by layer; JSON values only

    def with_module(self, module: tvm.IRModule, applied: str = "", notes: tuple[dict, ...] = ()) -> Model:
        """The same model after a pass whose name and options are `applied`."""
        more = (applied,) if applied else ()
        return replace(self, module=module, applied=self.applied + more, notes=self.notes + tuple(notes))

    def save(self, path: str | os.PathLike) -> None:
        """Write one file: safetensors whose metadata carries the program. Whole or not at all."""
        from safetensors.numpy import save_file

        lifted, arrays = lift_constants(self.module)
        header = {
            "schema": SCHEMA,
            "inputs": [spec_json(s) for s in self.inputs],
            "outputs": [spec_json(s) for s in self.outputs],
            "source": vars(self.source),
            "applied": list(self.applied),
            "notes": list(self.notes),
            "dtypes": [str(a.dtype) for a in arrays],
            "shapes": [list(a.shape) for a in arrays],
        }
        metadata = {"tvmcompress": json.dumps(header), "program": tvm.ir.save_json(lifted)}
        tensors = {f"w{i}": a.reshape(-1).view(np.uint8) for i, a in enumerate(arrays)}
        with atomic_write(path) as temporary:
            save_file(tensors, str(temporary), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Model:
        """Read what `save` wrote; weights are mapped, not copied. Raises ModelError."""
        import safetensors

        try:
            with safetensors.safe_open(str(path), "numpy") as file:
                metadata = file.metadata() or {}
                header = json.loads(metadata["tvmcompress"])
                if header["schema"] != SCHEMA:
                    raise ModelError(f"{path}: written by another version (schema {header['schema']}, wanted {SCHEMA})")
                arrays = [
                    file.get_tensor(f"w{i}").view(numpy_dtype(d)).reshape(s)
                    for i, (d, s) in enumerate(zip(header["dtypes"], header["shapes"]))
                ]
            module = bind_constants(tvm.ir.load_json(metadata["program"]), len(header["inputs"]), arrays)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{path}: not a model saved by tvmcompress ({type(error).__name__})") from error
        return cls(
            module,
            tuple(spec_from_json(s) for s in header["inputs"]),
            tuple(spec_from_json(s) for s in header["outputs"]),
            Source(**header["source"]),
            tuple(header["applied"]),
            tuple(header["notes"]),
        )


def lift_constants(module: tvm.IRModule) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """The program with its large constants turned into further parameters, and their values in that order."""
    seen: dict[GenericConst, relax.Var] = {}
    arrays: list[np.ndarray] = []

    def lift(constant):
        array = graph.value(constant)
        if array.nbytes <= INLINE_BYTES:
            return constant
        if constant not in seen:
            seen[constant] = relax.Var(f"w{len(arrays)}", constant.ty)
            arrays.append(np.ascontiguousarray(array))
        return seen[constant]

    # The parameters must be known before the body is rebuilt, so the constants are collected first.
    for binding in graph.bindings(module):
        for constant in graph.constants_of(binding.value):
            lift(constant)
    for result in graph.results(module):
        for constant in graph.constants_of(result):
            lift(constant)
    lifted = graph.rewrite(module, lambda *_: None, more_params=tuple(seen.values()), on_const=lift)
    return lifted, arrays


def bind_constants(module: tvm.IRModule, inputs: int, arrays: list[np.ndarray]) -> tvm.IRModule:
    """The inverse of `lift_constants`: parameters from number `inputs` on become constants."""
    extra = list(module["main"].params)[inputs:]
    return graph.rewrite(module, lambda *_: None, fewer_params={v: graph.const(a) for v, a in zip(extra, arrays)})
