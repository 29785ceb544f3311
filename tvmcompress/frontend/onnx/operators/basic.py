"""Operators that carry values through, or know their result from shapes alone."""

from __future__ import annotations

import numpy as np
import onnx
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.tensors import check_nan, dtype_name
from tvmcompress.frontend.onnx.values import Known, Value
from tvmcompress.ir import graph


def constant(node: Node) -> np.ndarray:
    for attribute in node.proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            dtype_name(value.data_type, "it")
            array = onnx.numpy_helper.to_array(value)
            check_nan(array, node.name)
            node.importer.look_for_infinity(array)
            return array
        if attribute.name in ("value_float", "value_floats"):
            node.importer.look_for_infinity(np.array(value, "float32"))
            return np.array(value, "float32")
        if attribute.name in ("value_int", "value_ints"):
            return np.array(value, "int64")
    raise ModelError("only numeric dense constants are supported")


def identity(node: Node) -> Value:
    return node.inputs[0]


def shape(node: Node) -> np.ndarray:
    dims = node.shape(0)
    start, end = node.attr("start", 0), node.attr("end", len(dims))
    return np.array(dims[slice(start, end)], "int64")


def size(node: Node) -> np.ndarray:
    return np.array(int(np.prod(node.shape(0), dtype=np.int64)), "int64")


def dropout(node: Node) -> list[Value]:
    """Inference only, as the default says: the input, and a mask of ones. Training with ratio 0 is the same."""
    if node.has(2):
        training, ratio = node.known(2), node.known(1) if node.has(1) else np.array(0.5)
        if (training is None or bool(training)) and (ratio is None or float(ratio) != 0):
            raise ModelError("training mode is not supported; export the model for inference")
    mask = np.ones(node.shape(0), bool) if len(node.proto.output) > 1 else None
    return [node.inputs[0], Known(mask) if mask is not None else None]


def optional_has_element(node: Node) -> np.ndarray:
    """Inputs that are optional are given, so only an absent value is empty."""
    return np.array(node.has(0))


def cast(node: Node) -> graph.Expr | Value:
    kind = node.attr("to") or onnx.helper.np_dtype_to_tensor_dtype(onnx_dtype(node.dtype(1)))
    wanted = dtype_name(kind, "its result")
    return to_dtype(node, wanted)


def onnx_dtype(name: str) -> np.dtype:
    from tvmcompress.spec import numpy_dtype

    return numpy_dtype(name)


def to_dtype(node: Node, wanted: str) -> graph.Expr | Value:
    given = node.dtype(0)
    if wanted == given:
        return node.inputs[0]
    plain = (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "bfloat16",
    )
    if wanted not in plain or given not in plain:
        return NotImplemented
    x = node.x()
    if given.startswith(("float", "bfloat")) and wanted in ("uint8", "uint16", "int8", "int16"):
        # As C and NumPy on common hardware do: through a wide integer, then the low bits.
        return relax.op.astype(node.emit(relax.op.astype(x, "int32"), "wide"), wanted)
    return relax.op.astype(x, wanted)


TABLE = {
    "Constant": constant,
    "Identity": identity,
    "Shape": shape,
    "Size": size,
    "Dropout": dropout,
    "OptionalGetElement": identity,
    "OptionalHasElement": optional_has_element,
    "Cast": cast,
    "CastLike": cast,
}
