"""Integer execution of what moves values or averages them; see `integer`.

A handler takes (rewriter, variable, expression) and returns the new expression, or None where floats have to do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmcompress.ir import attrs, constants, graph
from tvmcompress.ir.graph import Expr, op_name
from tvmcompress.kernels import quantized
from tvmcompress.lower.quantized_form import LIMITS, Quantized, byte, make, read

MOVES = {
    f"relax.{name}"
    for name in [
        "nn.max_pool1d",
        "nn.max_pool2d",
        "nn.max_pool3d",
        "nn.pixel_shuffle",
        "max",
        "min",
        "take",
        "gather_elements",
        "gather_nd",
        "reshape",
        "permute_dims",
        "squeeze",
        "expand_dims",
        "strided_slice",
        "flip",
        "tile",
        "repeat",
        "broadcast_to",
        "flatten",
        "nn.batch_flatten",
    ]
}
RESHAPES = {"relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten", "relax.nn.batch_flatten"}


def move(rw, var, expr):
    if graph.is_const(expr.args[0]) and graph.has_static_shape(var):
        return move_constant(expr, graph.shape(var))
    found = byte(rw, expr.args[0])
    if found is None:
        return move_weights(rw, var, expr)
    return make(rw, relax.Call(expr.op, [found.q, *expr.args[1:]], expr.attrs, expr.ty_args), found, var)


def move_constant(expr, dims: tuple[int, ...]) -> Expr | None:
    """An imported bias on its way to `add`: reshaped and permuted now."""
    value, name = graph.value(expr.args[0]), op_name(expr)
    if name == "relax.permute_dims" and expr.attrs.axes is not None:
        return graph.const(value.transpose([int(axis) for axis in expr.attrs.axes]))
    return graph.const(value.reshape(dims)) if name in RESHAPES else None


def move_weights(rw, var, expr):
    """permute_dims of quantized weights: done at compile time, the axis of the scales moved along.

    Weights that are stored in fewer bits are permuted when they are unpacked.
    """
    found = read(rw, expr.args[0])
    if op_name(expr) != "relax.permute_dims" or found is None or not found.constant:
        return None
    axes = attrs.order(expr)
    axis = None if found.axis is None else axes.index(found.axis)
    if graph.is_const(found.q):
        q = graph.const(np.ascontiguousarray(graph.value(found.q).transpose(axes)))
    elif constants.known(found.q, rw.definition) is not None:
        q = rw.emit(relax.op.permute_dims(found.q, axes))
    else:
        return None
    return make(rw, q, Quantized(q, found.scale, found.zero, axis), var)


def pad(rw, var, expr):
    found = byte(rw, expr.args[0])
    if found is None or str(expr.attrs.pad_mode) not in ("constant", "reflect", "replicate"):
        return None
    steps = float(expr.attrs.pad_value) / float(found.scale)
    low, high = LIMITS[graph.dtype(found.q)]
    filled = round(steps) + int(found.zero)
    if str(expr.attrs.pad_mode) == "constant" and (abs(steps - round(steps)) > 1e-4 or not low <= filled <= high):
        return None
    return make(rw, attrs.changed(expr, [found.q], pad_value=float(filled)), found, var)


def split(rw, var, expr):
    found = byte(rw, expr.args[0])
    if found is None:
        return None
    parts = rw.emit(relax.Call(expr.op, [found.q], expr.attrs))
    return relax.Tuple([make(rw, rw.emit(relax.TupleGetItem(parts, i)), found) for i in range(len(parts.ty.fields))])


def concat(rw, var, expr):
    if not isinstance(expr.args[0], relax.Tuple):
        return None
    found = [byte(rw, f) for f in expr.args[0].fields]
    if not found or any(f is None for f in found):
        return None
    first = found[0]
    if any(f.scale != first.scale or f.zero != first.zero or graph.dtype(f.q) != graph.dtype(first.q) for f in found):
        return None
    return make(rw, relax.op.concat([f.q for f in found], expr.attrs.axis), first, var)


def resize2d(rw, var, expr):
    found = byte(rw, expr.args[0])
    if found is None or expr.attrs.method != "nearest_neighbor":
        return None
    return make(rw, relax.Call(expr.op, [found.q, *expr.args[1:]], expr.attrs, expr.ty_args), found, var)


def averaged(rw, var, found: Quantized, acc: Expr, count: int) -> Expr:
    acc = rw.emit(acc)
    if int(found.zero):
        steps = np.full((graph.shape(acc)[-1],), -int(found.zero) * count, np.int32)
        acc = rw.emit(relax.op.add(acc, graph.const(steps)))
    scale = np.float32(np.float64(found.scale) / count)
    return make(rw, acc, Quantized(acc, np.asarray(scale), np.zeros((), np.int64), None), var)


def mean(rw, var, expr):
    found = byte(rw, expr.args[0])
    if found is None or expr.attrs.axis is None:
        return None
    dims = graph.shape(found.q)
    axes = [int(a) % len(dims) for a in expr.attrs.axis]
    count = int(np.prod([dims[a] for a in axes]))
    wide = rw.emit(relax.op.astype(found.q, "int32"))
    total = relax.op.sum(wide, axes, bool(expr.attrs.keepdims))
    if not graph.shape(var) or count > 2**22:
        return None
    return averaged(rw, var, found, total, count)


def adaptive_avg_pool2d(rw, var, expr):
    found = byte(rw, expr.args[0])
    if found is None or expr.attrs.layout != "NHWC" or graph.shape(var)[1:3] != (1, 1):
        return None
    _, h, w, _ = graph.shape(found.q)
    wide = rw.emit(relax.op.astype(found.q, "int32"))
    return averaged(rw, var, found, relax.op.sum(wide, [1, 2], True), h * w)


def avg_pool2d(rw, var, expr):
    found, a = byte(rw, expr.args[0]), expr.attrs
    if found is None or a.layout != "NHWC" or a.ceil_mode or [int(d) for d in a.dilation] != [1, 1]:
        return None
    padding, x = [int(p) for p in a.padding], found.q
    if any(padding):
        if not a.count_include_pad:
            return None
        top, left, bottom, right = padding
        x = rw.emit(relax.op.nn.pad(x, [0, 0, top, bottom, left, right, 0, 0], "constant", float(found.zero)))
    kernel, strides = [int(k) for k in a.pool_size], [int(s) for s in a.strides]
    acc = quantized.sum_pool(rw.builder, x, kernel, strides, graph.shape(var))
    return averaged(rw, var, found, acc, kernel[0] * kernel[1])


HANDLERS: dict[str, Callable] = dict.fromkeys(MOVES, move) | {
    "relax.nn.pad": pad,
    "relax.split": split,
    "relax.concat": concat,
    "relax.image.resize2d": resize2d,
    "relax.mean": mean,
    "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
    "relax.nn.avg_pool2d": avg_pool2d,
}
