"""Weights in the form that layers read them: no data movement between a constant and its layer.

permute_dims(const)                         -> const, permuted
permute_dims(dequantize(const, s, z, axis)) -> dequantize(const, permuted, s, z, where the axis went)
reshape, expand_dims, squeeze (const)       -> const, reshaped
astype(scalar or vector const)              -> const
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.model import numpy_dtype

RESHAPES = ("relax.reshape", "relax.expand_dims", "relax.squeeze")
SMALL = 65536  # elements; a larger cast may be there to keep a compact weight compact


def fold_movement(rewriter: graph.Rewriter, var: relax.Var, expr: relax.Expr) -> relax.Expr | None:
    """A visitor for `graph.rewrite`."""
    name = graph.op_name(expr)
    if name in RESHAPES and graph.is_const(expr.args[0]) and graph.has_static_shape(var):
        return graph.const(graph.value(expr.args[0]).reshape(graph.shape(var)))
    if name == "relax.astype" and graph.is_const(expr.args[0]):
        value = graph.value(expr.args[0])
        return graph.const(value.astype(numpy_dtype(graph.dtype(var)))) if value.size <= SMALL else None
    if name != "relax.permute_dims":
        return None
    source = expr.args[0]
    axes = attrs.order(expr)
    if graph.is_const(source):
        return graph.const(np.ascontiguousarray(graph.value(source).transpose(axes)))
    inner = rewriter.definition(source)
    if inner is None or graph.op_name(inner) != "relax.dequantize" or not graph.is_const(inner.args[0]):
        return None
    q, scale, zero = inner.args
    axis = axes.index(int(inner.attrs.axis) % len(axes)) if graph.shape(scale) else -1
    permuted = graph.const(np.ascontiguousarray(graph.value(q).transpose(axes)))
    return relax.op.dequantize(permuted, scale, zero, axis, graph.dtype(var))
