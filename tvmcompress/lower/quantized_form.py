"""The quantized form of a program, as the steps of `integer` read and write it: dequantize(q, scale, zero point)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name

BYTES = ("int8", "uint8")
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


@dataclass(frozen=True)
class Quantized:
    """What a dequantize reads: the integer expression, its scale and zero point, and their axis (None: one for all).

    `scale` and `zero` are NumPy arrays, or expressions when they are computed at run time.
    """

    q: Expr
    scale: np.ndarray | Expr
    zero: np.ndarray | Expr
    axis: int | None

    @property
    def constant(self) -> bool:
        return isinstance(self.scale, np.ndarray) and isinstance(self.zero, np.ndarray)

    @property
    def per_tensor(self) -> bool:
        return self.axis is None


def read(rw: Rewriter, expr: Expr) -> Quantized | None:
    """The Quantized behind an expression, None when it is not a dequantize into float32."""
    call = rw.definition(expr)
    if call is None or op_name(call) != "relax.dequantize" or graph.dtype(expr) != "float32":
        return None
    q, scale, zero = call.args
    if not graph.is_const(scale) or not graph.is_const(zero):
        return Quantized(q, scale, zero, None) if graph.shape(scale) in ((), (1,)) else None
    s, z = graph.value(scale).astype(np.float32), graph.value(zero).astype(np.int64)
    if s.size == 1 and z.size == 1:
        return Quantized(q, s.reshape(()), z.reshape(()), None)
    rank = len(q.ty.shape)
    axis = int(call.attrs.axis) % rank
    size = graph.shape(q)[axis]
    return Quantized(q, np.broadcast_to(s, (size,)), np.broadcast_to(z, (size,)), axis)


def byte(rw: Rewriter, expr: Expr) -> Quantized | None:
    """Like `read`, for one scale and an 8-bit integer known at compile time."""
    found = read(rw, expr)
    if found is None or not found.per_tensor or not found.constant or graph.dtype(found.q) not in BYTES:
        return None
    return found


def sums_of(rw: Rewriter, expr: Expr) -> Quantized | None:
    """Like `read`, for int32 sums with zero point 0, along the last axis."""
    found = read(rw, expr)
    if found is None or not found.constant or graph.dtype(found.q) != "int32" or np.any(found.zero):
        return None
    return found if found.axis is None or found.axis == len(found.q.ty.shape) - 1 else None


def make(rw: Rewriter, q: Expr, like: Quantized, var: Var | None = None) -> Expr:
    """dequantize(q) with the parameters of `like`."""
    dtype = graph.dtype(rw.emit(q))
    q = rw.emit(q)
    scale = graph.const(like.scale.astype(np.float32)) if isinstance(like.scale, np.ndarray) else like.scale
    zero = graph.const(like.zero.astype(dtype)) if isinstance(like.zero, np.ndarray) else like.zero
    axis = -1 if like.axis is None else like.axis
    return rw.emit(relax.op.dequantize(q, scale, zero, axis), "" if var is None else var.name)


def greatest(rw: Rewriter, q: Expr) -> np.ndarray:
    """The greatest magnitude that bytes and a product's int32 sums can have, whatever the activations: of the sums one
    for each value of the last axis; infinite where it is not known."""
    if graph.dtype(q) in LIMITS:
        return np.asarray(max(map(abs, LIMITS[graph.dtype(q)])), np.float64)
    call = rw.definition(q)
    name = op_name(call) if call is not None else ""
    if name == "relax.add" and graph.is_const(call.args[1]) and graph.value(call.args[1]).ndim <= 1:
        return greatest(rw, call.args[0]) + np.abs(graph.value(call.args[1]).astype(np.float64))
    if name not in ("relax.nn.conv2d", "relax.matmul") or not graph.is_const(call.args[1]):
        return np.asarray(np.inf)
    weights = np.abs(graph.value(call.args[1]).astype(np.float64))
    return greatest(rw, call.args[0]) * (weights.sum((1, 2, 3)) if name == "relax.nn.conv2d" else weights.sum(-2))
