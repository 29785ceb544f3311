"""Reductions, whose axes may come as a value, and the operators built like them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import scalar
from tvmcompress.frontend.onnx.operators.shapes import axes_of
from tvmcompress.ir import graph
from tvmcompress.spec import numpy_dtype

Step = Callable[[graph.Expr], graph.Expr]


def reduced_axes(node: Node) -> list[int]:
    """The axes to reduce. Unknown ones are read off the stated shape: an axis of length 1 may count either way."""
    dims = node.shape(0)
    rank = len(dims)
    if node.has(1) and node.known(1) is None:
        if node.shape(1) == (0,):
            return [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
        stated = node.declared()
        found = None if stated is None else axes_between(dims, stated, bool(node.attr("keepdims", 1)))
        if found is None:
            raise node.unknown(1, "axes")
        return found
    axes = axes_of(node, 1, rank)
    if not axes:
        return [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return axes


def axes_between(dims: tuple[int, ...], stated: tuple[int, ...], keepdims: bool) -> list[int] | None:
    """The axes whose reduction turns `dims` into `stated`, or None where several choices differ in their result."""
    if keepdims:
        return [i for i, (d, s) in enumerate(zip(dims, stated)) if d != s]
    options = set()
    for axes in itertools.combinations(range(len(dims)), len(dims) - len(stated)):
        if tuple(d for i, d in enumerate(dims) if i not in axes) == stated:
            options.add(tuple(i for i in axes if dims[i] != 1))
    return _filled(dims, stated, options.pop()) if len(options) == 1 else None


def _filled(dims: tuple[int, ...], stated: tuple[int, ...], must: tuple[int, ...]) -> list[int]:
    missing = len(dims) - len(stated) - len(must)
    ones = [i for i, d in enumerate(dims) if d == 1]
    for more in itertools.combinations(ones, missing):
        axes = sorted((*must, *more))
        if tuple(d for i, d in enumerate(dims) if i not in axes) == stated:
            return axes
    return list(must)


def reduction(op: Callable, before: Step | None = None, after: Step | None = None, empty: float = 0.0) -> Callable:
    """A converter: `before` on each element, `op` over the axes, `after` on the result; `empty` over nothing."""

    def convert(node: Node) -> graph.Expr | np.ndarray:
        x, dims, axes, keep = node.x(0), node.shape(0), reduced_axes(node), bool(node.attr("keepdims", 1))
        kind = graph.dtype(x)
        if kind == "bool":
            x = node.emit(relax.op.astype(x, "int8"), "int8")
        if axes and 0 in [dims[a] for a in axes]:
            left = [(1 if keep else None) if i in axes else d for i, d in enumerate(dims)]
            value = empty if kind.startswith(("float", "bfloat")) or abs(empty) != np.inf else limit(kind, empty)
            return np.full([d for d in left if d is not None], value, numpy_dtype(kind))
        if before is not None:
            x = node.emit(before(x), "before")
        x = extreme(node, op, x, axes, keep) if axes else x
        if after is not None:
            x = after(node.emit(x, "reduced"))
        return relax.op.astype(node.emit(x, "int8_result"), kind) if kind == "bool" else x

    return convert


def extreme(node: Node, op: Callable, x: graph.Expr, axes: list[int], keep: bool) -> graph.Expr:
    """`op`, where TVM's own max and min are right: they start from the largest finite number, not from infinity.

    So a row of infinities would come out finite. Only models that speak of infinity pay for looking.
    """
    if op not in (relax.op.max, relax.op.min) or not node.importer.infinite or not graph.dtype(x).startswith("float"):
        return op(x, axes, keep)
    result = node.emit(op(x, axes, keep), "finite")
    infinity = scalar(-np.inf if op is relax.op.max else np.inf, graph.dtype(x))
    other = node.emit(relax.op.astype(node.emit(relax.op.not_equal(x, infinity), "differs"), "int8"), "int8")
    any_other = node.emit(relax.op.max(other, axes, keep), "any")
    return relax.op.where(relax.op.equal(any_other, graph.const(0, "int8")), infinity, result)


def limit(kind: str, sign: float) -> float:
    if kind == "bool":
        return 0 if sign < 0 else 1
    info = np.iinfo(kind)
    return info.min if sign < 0 else info.max


def square(x: graph.Expr) -> graph.Expr:
    return relax.op.multiply(x, x)


def log_sum_exp(node: Node) -> graph.Expr | np.ndarray:
    """max + log(sum(exp(x - max))), the maximum taken as 0 where it is infinite."""
    x, dims, axes, keep = node.x(0), node.shape(0), reduced_axes(node), bool(node.attr("keepdims", 1))
    kind = graph.dtype(x)
    if not axes:
        return x
    left = [(1 if keep else None) if i in axes else d for i, d in enumerate(dims)]
    if 0 in [dims[a] for a in axes]:
        return np.full([d for d in left if d is not None], -np.inf, numpy_dtype(kind))
    top = node.emit(relax.op.max(x, axes, True), "max")
    finite = relax.op.isfinite(top)
    top = node.emit(relax.op.where(finite, top, scalar(0.0, kind)), "finite")
    total = node.emit(relax.op.sum(node.emit(relax.op.exp(relax.op.subtract(x, top)), "exp"), axes, True), "sum")
    result = node.emit(relax.op.add(relax.op.log(total), top), "kept")
    return result if keep else relax.op.reshape(result, [d for d in left if d is not None])


def cumulative(op: Callable) -> Callable:
    """CumSum and CumProd. An unknown axis is unambiguous for vectors only."""

    def convert(node: Node) -> graph.Expr:
        x, dims = node.x(0), node.shape(0)
        known = node.known(1)
        if known is None and len(dims) != 1:
            raise node.unknown(1, "axis")
        axis = 0 if known is None else int(known.reshape(-1)[0]) % len(dims)
        exclusive, reverse = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
        if reverse:
            x = node.emit(relax.op.flip(x, axis), "reversed")
        kind = graph.dtype(x)
        result = node.emit(op(x, axis, kind, exclusive), "forward")
        return relax.op.flip(result, axis) if reverse else result

    return convert


TABLE = {
    "ReduceSum": reduction(relax.op.sum),
    "ReduceMean": reduction(relax.op.mean, empty=float("nan")),
    "ReduceMax": reduction(relax.op.max, empty=-np.inf),
    "ReduceMin": reduction(relax.op.min, empty=np.inf),
    "ReduceProd": reduction(relax.op.prod, empty=1.0),
    "ReduceL1": reduction(relax.op.sum, before=relax.op.abs),
    "ReduceL2": reduction(relax.op.sum, before=square, after=relax.op.sqrt),
    "ReduceSumSquare": reduction(relax.op.sum, before=square),
    "ReduceLogSum": reduction(relax.op.sum, after=relax.op.log, empty=-np.inf),
    "ReduceLogSumExp": log_sum_exp,
    "CumSum": cumulative(relax.op.cumsum),
    "CumProd": cumulative(relax.op.cumprod),
}
