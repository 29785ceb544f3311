"""Reading tensors: from the model file, which is mapped and not read, or from files beside it."""

from __future__ import annotations

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
    """Reads TensorProtos. `blobs` holds the bytes of those left in the mapped file, by name; `folder` is the model's."""

    blobs: dict[str, memoryview] = field(default_factory=dict)
    folder: Path | None = None
    files: dict[str, np.memmap] = field(default_factory=dict)

    def read(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The tensor as an array, mapped where it can be. Raises ModelError for NaN, bad sizes and bad locations."""
        where = f"tensor '{tensor.name}'"
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{where} holds strings, which cannot be compiled")
        dtype_name(tensor.data_type, where)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            array = self._array(tensor, self._external(tensor))
        elif tensor.name in self.blobs:
            array = self._array(tensor, self.blobs[tensor.name])
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

    def _array(self, tensor: onnx.TensorProto, data) -> np.ndarray:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        count = int(np.prod(shape, dtype=np.int64))
        bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}.get(dtype.name, dtype.itemsize * 8)
        wanted = (count * bits + 7) // 8
        if len(data) < wanted or count < 0:
            raise ModelError(f"tensor '{tensor.name}': {wanted} bytes wanted for shape {shape}, got {len(data)}")
        if bits < 8:
            packed = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=bytes(data[:wanted]))
            return numpy_helper.to_array(packed)
        return np.frombuffer(data, dtype, count).reshape(shape)

    def _external(self, tensor: onnx.TensorProto):
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        path = self.external_path(tensor.name, location)
        try:
            if location not in self.files:
                self.files[location] = np.memmap(path, np.uint8, "r")
            offset = int(entries.get("offset", 0) or 0)
            length = int(entries["length"]) if entries.get("length") else None
        except (OSError, ValueError) as error:
            raise ModelError(f"tensor '{tensor.name}': external data '{location}' cannot be read: {error}") from error
        mapped = self.files[location]
        end = len(mapped) if length is None else offset + length
        if offset < 0 or end > len(mapped):
            raise ModelError(
                f"tensor '{tensor.name}': bytes {offset} to {end} wanted of '{location}', which has {len(mapped)}"
            )
        return mapped[offset:end]

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
