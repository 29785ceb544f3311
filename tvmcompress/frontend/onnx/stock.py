"""Falling back to the converters that come with TVM."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.values import Known
from tvmcompress.ir import graph

# These answer with a wrong result, abort inside TVM, or speak of another operator than their name says.
BROKEN: set[str] = {"Scan", "Optional", "MatMulInteger16"}


@functools.cache
def table() -> dict[str, Any]:
    from tvm.relax.frontend.onnx import onnx_frontend

    return dict(onnx_frontend._get_convert_map())


def has(op: str, domain: str) -> bool:
    if domain not in ("", "ai.onnx", "com.microsoft"):
        return False
    contrib = op in ("FastGelu", "BiasGelu", "SkipLayerNormalization", "EmbedLayerNormalization", "Gelu")
    return op in table() and op not in BROKEN and (domain != "com.microsoft" or contrib)


class _Named:
    """A BlockBuilder whose `emit` calls variables after the node."""

    def __init__(self, builder: relax.BlockBuilder, name: str):
        self._builder, self._name = builder, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def emit(self, expr: relax.Expr, name_hint: str = "") -> relax.Expr:
        return self._builder.emit(expr, name_hint=name_hint or f"{self._name}_part")


def convert(node: Node) -> list[Any]:
    """Run the stock converter on a node; the results are normalised expressions."""
    from tvm.relax.frontend.onnx.onnx_frontend import onnx_input

    builder = node.importer.builder
    inputs = onnx_input(None if v is None else node.as_expr(v) for v in node.inputs)
    attrs: dict[str, Any] = {a.name: _attribute(a) for a in node.proto.attribute if not a.ref_attr_name}
    outputs = len(node.proto.output)
    attrs["tvm_custom"] = {"name": node.name, "num_outputs": outputs}
    converter = table()[node.op].get_converter(node.opset)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        result = converter(_Named(builder, node.name), inputs, attrs, [{}, {}])
        if isinstance(result, relax.Tuple):
            fields = [_settled(node, f) for f in result.fields]
        else:
            result = builder.normalize(result)
            if isinstance(result.ty, relax.TupleType):
                whole = node.emit(result, "all")
                fields = [relax.TupleGetItem(whole, i) for i in range(len(result.ty.fields))]
            else:
                fields = [_settled(node, result)]
    if len(fields) < len([o for o in node.proto.output if o]):
        raise ModelError(f"only {len(fields)} of its outputs can be computed")
    return fields


def _settled(node: Node, expr: relax.Expr) -> Any:
    """A shape becomes a known array where it is static, and a tensor where not; the rest is normalised."""
    if graph.is_const(expr):
        return Known(graph.value(expr))
    expr = node.importer.builder.normalize(expr)
    if isinstance(expr.ty, relax.ShapeType):
        values = expr.ty.values
        if values is not None and all(isinstance(v, tvm.tirx.IntImm) for v in values):
            return np.array([int(v) for v in values], "int64")
        return relax.op.shape_to_tensor(expr)
    return expr


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    listed = (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)
    return tuple(value) if attribute.type in listed else value
