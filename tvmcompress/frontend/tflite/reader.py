"""A `.tflite` file (a flatbuffer) as plain Python values. Weights are views of the file, which is mapped."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvmcompress.errors import MissingDependencyError, ModelError

# What reading a damaged flatbuffer can raise: offsets that lead out of the file, counts that do not fit.
DAMAGE = (
    struct.error,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
    UnicodeDecodeError,
)
DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
    "INT4": "int4",
}


@dataclass(frozen=True)
class Quantization:
    """real = (q - zero) * scale, `scale` float32 (n,) and `zero` int64 (n,), n > 1 along `axis`."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # -1 where the file leaves a dimension open
    dtype: str
    data: np.ndarray | None  # of weights
    quantization: Quantization | None
    sparse: bool = False
    variable: bool = False  # a state, zero at the start


@dataclass(frozen=True)
class Operator:
    kind: str  # CONV_2D …, or the name of a custom operator
    inputs: tuple[int, ...]  # -1 for an optional one that is absent
    outputs: tuple[int, ...]
    options: Any  # the flatbuffer's options object, or None
    custom: bool = False


@dataclass(frozen=True)
class Graph:
    path: str
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    names: Mapping[int, str] = field(default_factory=dict)  # from a signature, by tensor number


def read(path: str | os.PathLike) -> Graph:
    """The first subgraph of a file. Raises ModelError when it is damaged or no TFLite file."""
    try:
        import tflite
    except ImportError as error:
        raise MissingDependencyError(
            "TFLite models need the package tflite: pip install 'tvmcompress[tflite]'"
        ) from error
    path = Path(path)
    try:
        with open(path, "rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise ModelError(f"{path}: cannot be read ({error})") from error
    content = memoryview(buffer)
    if content[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a TFLite file (wanted the mark TFL3 in bytes 4 to 7)")
    try:
        return read_graph(str(path), tflite.Model.GetRootAsModel(content, 0), content, tflite)
    except DAMAGE as error:
        raise ModelError(f"{path}: damaged TFLite file ({type(error).__name__}: {error})") from error


def read_graph(path: str, model: Any, content: memoryview, tflite: Any) -> Graph:
    if not model.SubgraphsLength():
        raise ModelError(f"{path}: holds no subgraph")
    subgraph = model.Subgraphs(0)
    tensors = [read_tensor(path, subgraph.Tensors(i), model, content, tflite) for i in range(subgraph.TensorsLength())]
    operators = [read_operator(subgraph.Operators(i), model, tflite) for i in range(subgraph.OperatorsLength())]
    inputs, outputs = integers(subgraph.InputsAsNumpy()), integers(subgraph.OutputsAsNumpy())
    for numbers in (inputs, outputs, *(o.inputs for o in operators), *(o.outputs for o in operators)):
        if any(not -1 <= n < len(tensors) for n in numbers):
            raise ModelError(f"{path}: damaged TFLite file (a tensor number outside 0 to {len(tensors) - 1})")
    return Graph(path, tensors, operators, inputs, outputs, signature_names(model, {*inputs, *outputs}))


def signature_names(model: Any, wanted: set[int]) -> dict[int, str]:
    """Names by tensor number, from the only signature of the main subgraph when it covers all of `wanted`."""
    if model.SignatureDefsLength() != 1 or model.SignatureDefs(0).SubgraphIndex() != 0:
        return {}
    signature = model.SignatureDefs(0)
    maps = [signature.Inputs(i) for i in range(signature.InputsLength())]
    maps += [signature.Outputs(i) for i in range(signature.OutputsLength())]
    names = {int(m.TensorIndex()): m.Name().decode() for m in maps}
    return names if set(names) >= wanted and len(set(names.values())) == len(names) else {}


def read_tensor(path: str, tensor: Any, model: Any, content: memoryview, tflite: Any) -> Tensor:
    name = (tensor.Name() or b"").decode()
    kinds = {number: text for text, number in vars(tflite.TensorType).items() if isinstance(number, int)}
    kind = kinds.get(tensor.Type(), str(tensor.Type()))
    shape = integers(tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
    dtype = DTYPES.get(kind, kind.lower())
    quantization = read_quantization(tensor.Quantization())
    data = None
    if kind in DTYPES:
        data = read_data(f"{path}: tensor '{name}'", model.Buffers(tensor.Buffer()), shape, dtype, content)
        dtype = "int8" if dtype == "int4" else dtype
    return Tensor(name, shape, dtype, data, quantization, tensor.Sparsity() is not None, bool(tensor.IsVariable()))


def read_data(what: str, buffer: Any, shape: tuple[int, ...], dtype: str, content: memoryview) -> np.ndarray | None:
    raw = None
    if buffer.DataLength():
        raw = buffer.DataAsNumpy()
    elif buffer.Offset() > 1:  # files over 2 GB keep weights behind the flatbuffer
        raw = np.frombuffer(content[buffer.Offset() : buffer.Offset() + buffer.Size()], np.uint8)
    if raw is None or any(d < 0 for d in shape):
        return None
    size = int(np.prod(shape, dtype=np.int64))
    if dtype == "int4":
        low, high = (raw << 4).view(np.int8) >> 4, raw.view(np.int8) >> 4
        return np.stack([low, high], 1).reshape(-1)[:size].reshape(shape)
    if raw.nbytes != size * np.dtype(dtype).itemsize:
        raise ModelError(f"{what}: wanted {size} x {dtype} for shape {shape}, got {raw.nbytes} bytes")
    return raw.view(dtype).reshape(shape)


def read_quantization(parameters: Any) -> Quantization | None:
    if parameters is None or not parameters.ScaleLength():
        return None
    scale = np.array(parameters.ScaleAsNumpy(), np.float32)
    zero = np.array(parameters.ZeroPointAsNumpy(), np.int64) if parameters.ZeroPointLength() else np.zeros(1, np.int64)
    return Quantization(scale, np.broadcast_to(zero, scale.shape), int(parameters.QuantizedDimension()))


def read_operator(operator: Any, model: Any, tflite: Any) -> Operator:
    code = model.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    kinds = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
    kind = kinds.get(number, f"builtin {number}")
    custom = kind == "CUSTOM"
    if custom:
        kind = (code.CustomCode() or b"?").decode()
    inputs = integers(operator.InputsAsNumpy()) if operator.InputsLength() else ()
    outputs = integers(operator.OutputsAsNumpy()) if operator.OutputsLength() else ()
    return Operator(kind, inputs, outputs, read_options(operator, tflite), custom)


def read_options(operator: Any, tflite: Any) -> Any:
    table = operator.BuiltinOptions()
    if table is None:
        return None
    names = {value: name for name, value in vars(tflite.BuiltinOptions).items() if isinstance(value, int)}
    options = getattr(tflite, names.get(operator.BuiltinOptionsType(), ""), None)
    if options is None:
        return None
    options = options()
    options.Init(table.Bytes, table.Pos)
    return options


def integers(array: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in array)
