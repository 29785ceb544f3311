"""Reading tensors: from the model file, which is mapped and not read, or from files beside it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tvmcompress.errors import ModelError


def dtype_name(kind: int, whose: str) -> str:
    """An ONNX element type by NumPy's name; raises ModelError for strings and unknown types."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    except KeyError as error:
        raise ModelError(f"{whose} has the unknown element type {kind}") from error
    if dtype.kind in "OUS":
        raise ModelError(f"{whose} holds strings, which cannot be compiled; take text processing out of the model")
    return dtype.name


@dataclass
class Tensors:
    """Reads TensorProtos. `blobs`: where the data of large ones lies, (file, offset, length); `folder`: the model's."""

    blobs: dict[str, tuple[Path, int, int]] = field(default_factory=dict)
    folder: Path | None = None

    def read(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The tensor as an array, mapped where it can be. Raises ModelError for NaN, bad sizes and bad locations."""
        where = f"tensor '{tensor.name}'"
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{where} holds strings, which cannot be compiled")
        dtype_name(tensor.data_type, where)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            array = self._array(tensor, *self._external(tensor))
        elif tensor.name in self.blobs:
            array = self._array(tensor, *self.blobs[tensor.name])
        else:
            try:
                array = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise ModelError(f"{where}: {error}") from error
        check_nan(array, tensor.name)
        return array

    def read_sparse(self, sparse: onnx.SparseTensorProto) -> np.ndarray:
        dense = np.zeros(tuple(sparse.dims), onnx.helper.tensor_dtype_to_np_dtype(sparse.values.data_type))
        values, indices = self.read(sparse.values), self.read(sparse.indices)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense

    def _array(self, tensor: onnx.TensorProto, path: Path, offset: int, length: int) -> np.ndarray:
        """The bytes of one tensor, read now; nothing else of the file is."""
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        count = math.prod(shape)
        bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}.get(dtype.name, dtype.itemsize * 8)
        wanted = (count * bits + 7) // 8
        if min(shape, default=0) < 0 or length < wanted:
            raise ModelError(f"tensor '{tensor.name}': {wanted} bytes wanted for shape {shape}, got {length}")
        try:
            data = np.fromfile(path, np.uint8, wanted, offset=offset)
        except OSError as error:
            raise ModelError(
                f"tensor '{tensor.name}': {path.name} cannot be read: {error.strerror or error}"
            ) from error
        if data.size < wanted:
            raise ModelError(f"tensor '{tensor.name}': {path.name} ends before its data does")
        if bits < 8:
            packed = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=data.tobytes())
            return numpy_helper.to_array(packed)
        return data.view(dtype).reshape(shape)

    def _external(self, tensor: onnx.TensorProto) -> tuple[Path, int, int]:
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        path = self.external_path(tensor.name, location)
        size = path.stat().st_size
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or size - offset)
        except ValueError as error:
            raise ModelError(
                f"tensor '{tensor.name}': offset or length of its external data is not a number"
            ) from error
        if offset < 0 or length < 0 or offset + length > size:
            wanted = f"bytes {offset} to {offset + length} of '{location}' wanted"
            raise ModelError(f"tensor '{tensor.name}': {wanted}, which has {size}")
        return path, offset, length

    def external_files(self, body: onnx.GraphProto) -> tuple[Path, ...]:
        """The files beside the model that hold its weights, each once, in order of appearance."""
        found: dict[Path, None] = {}
        for tensor in body.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                location = next((e.value for e in tensor.external_data if e.key == "location"), "")
                found[self.external_path(tensor.name, location)] = None
        return tuple(found)

    def external_path(self, name: str, location: str) -> Path:
        """The file that holds a tensor; it must lie in the model's folder, links followed."""
        if self.folder is None:
            raise ModelError(
                f"tensor '{name}' has external data '{location}', but the model has no folder; load it from its file"
            )
        path = Path(location)
        outside = not location or path.is_absolute() or ".." in path.parts or "\\" in location
        folder = os.path.realpath(self.folder)
        real = os.path.realpath(os.path.join(folder, location))
        if outside or os.path.commonpath([folder, real]) != folder:
            raise ModelError(f"tensor '{name}': external data '{location}' lies outside the model's folder; refused")
        if not os.path.isfile(real):
            raise ModelError(f"tensor '{name}': its external data file '{location}' is missing beside the model")
        return Path(real)


def check_nan(array: np.ndarray, name: str) -> None:
    """Weights with NaN are refused; infinities may be masks."""
    if array.dtype.kind != "f" and not array.dtype.name.startswith(("bfloat", "float")):
        return
    flat = array.reshape(-1)
    for start in range(0, flat.size, 1 << 20):  # piece by piece: no second copy of a large weight
        if np.isnan(flat[start : start + (1 << 20)]).any():
            raise ModelError(
                f"weight '{name}' of shape {array.shape} contains NaN; the model was not trained or saved well"
            )
