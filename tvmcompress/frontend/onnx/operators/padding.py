"""Pad, in every mode, with widths that are known or not."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import clipped, element, int64, integer, take
from tvmcompress.frontend.onnx.operators.shapes import axes_of
from tvmcompress.ir import graph


def pad(node: Node) -> graph.Expr:
    dims, mode = node.shape(0), node.attr("mode", "constant")
    rank = len(dims)
    fill: graph.Expr | None = None
    if node.opset < 11:
        pads = node.attr("pads") or node.attr("paddings")
        fill = graph.const(np.asarray(node.attr("value", 0.0)).astype(node.dtype(0)))
        axes = list(range(rank))
    else:
        axes = (axes_of(node, 3, rank) if node.has(3) else None) or list(range(rank))
        known = node.known(1)
        pads = None if known is None else known.reshape(-1).tolist()
        fill = node.x(2) if node.has(2) else None
    n = len(axes)
    befores: list[int | graph.Expr]
    if pads is None:
        stated = node.declared()
        if stated is None:
            raise node.unknown(1, "pads")
        runtime = int64(node, 1)
        befores, sizes = [element(node, runtime, i) for i in range(n)], [stated[a] for a in axes]
    else:
        befores, sizes = list(pads[:n]), [dims[a] + pads[i] + pads[n + i] for i, a in enumerate(axes)]
    constant = fill is None or graph.is_const(fill)
    if mode == "constant" and pads is not None and constant and min(pads, default=0) >= 0:
        widths = [0] * 2 * rank
        for i, a in enumerate(axes):
            widths[2 * a], widths[2 * a + 1] = pads[i], pads[n + i]
        value = 0 if fill is None else graph.value(fill).reshape(-1)[0].item()
        kind = node.dtype(0)
        if kind != "bool":
            return relax.op.nn.pad(node.x(0), widths, "constant", value)
    return pad_by_gather(node, mode, axes, befores, sizes, fill)


def pad_by_gather(
    node: Node, mode: str, axes: list[int], befores: list, sizes: list[int], fill: graph.Expr | None
) -> graph.Expr:
    """Every mode, runtime widths and negative widths: along each axis, gather by computed indices, then mask."""
    x = node.x(0)
    kind = graph.dtype(x)
    value = fill if fill is not None else graph.const(np.zeros((), kind))
    if graph.shape(value):
        value = node.emit(relax.op.reshape(value, ()), "value")
    for axis, before, size in zip(axes, befores, sizes):
        length = graph.shape(x)[axis]
        if isinstance(before, int) and before == 0 and size == length:
            continue
        shift = integer(before) if isinstance(before, int) else before
        position = node.emit(relax.op.subtract(graph.const(np.arange(size, dtype="int64")), shift), "position")
        last = integer(length - 1)
        if mode == "wrap":
            index = relax.op.floor_mod(position, integer(length))
        elif mode == "reflect":
            period = max(2 * (length - 1), 1)
            wrapped = node.emit(relax.op.floor_mod(position, integer(period)), "wrapped")
            index = (
                relax.op.minimum(wrapped, relax.op.subtract(integer(period), wrapped))
                if length > 1
                else relax.op.multiply(wrapped, integer(0))
            )
        else:
            index = clipped(position, 0, length - 1)
        taken = node.emit(take(x, node.emit(index, "index"), axis), f"axis{axis}")
        if mode == "constant":
            inside = relax.op.logical_and(
                relax.op.greater_equal(position, integer(0)), relax.op.less_equal(position, last)
            )
            shape = [1] * len(graph.shape(x))
            shape[axis] = size
            inside = node.emit(relax.op.reshape(node.emit(inside, "inside"), shape), "mask")
            taken = node.emit(relax.op.where(inside, taken, value), f"filled{axis}")
        x = taken
    return x


TABLE = {"Pad": pad}
