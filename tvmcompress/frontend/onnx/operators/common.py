"""Small words that several families of operators use."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.frontend.onnx.node import Node
from tvmcompress.ir import graph
from tvmcompress.spec import numpy_dtype


def take(x: graph.Expr, index: graph.Expr, axis: int) -> graph.Expr:
    """Elements of `x` along an axis; an index out of range is clipped, so that no wrong memory can be read."""
    return relax.op.take(x, index, axis, "clip")


def scalar(value: float, kind: str) -> graph.Expr:
    """A constant without dimensions."""
    return graph.const(np.asarray(value).astype(numpy_dtype(kind)))


def integer(value: int) -> graph.Expr:
    return graph.const(value, "int64")


def clipped(x: graph.Expr, low: int, high: int) -> graph.Expr:
    return relax.op.minimum(relax.op.maximum(x, integer(low)), integer(high))


def int64(node: Node, index: int) -> graph.Expr:
    x = node.x(index)
    return x if graph.dtype(x) == "int64" else node.emit(relax.op.astype(x, "int64"), "int64")


def element(node: Node, vector: graph.Expr, position: int) -> graph.Expr:
    """One element of a runtime vector, as a scalar."""
    return node.emit(take(vector, integer(position), 0), "element")
