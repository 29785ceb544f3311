"""Reductions, softmax, normalization, argmax: operators along axes, which are mapped when a value is kept as NCHW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax
from tvm.relax import Expr

from tvmcompress.frontend.tflite.context import TO_NHWC, Context
from tvmcompress.ir import graph

# Where each NHWC axis is in NCHW.
AXIS = (0, 2, 3, 1)
assert TO_NHWC == AXIS


def placed(ctx: Context, axes: list[int], place: int = 0) -> tuple[list[int], bool]:
    """Axes of the file, which may be negative, as axes of the value in the layout it is kept in."""
    rank, nchw = ctx.rank(place), ctx.is_nchw(place)
    axes = [a % rank for a in axes]
    return [AXIS[a] if nchw else a for a in axes], nchw


def reduce(op: Any) -> Callable[[Context], None]:
    def convert(ctx: Context) -> None:
        axes, nchw = placed(ctx, ctx.integers(1))
        keep = bool(ctx.operator.options is not None and ctx.operator.options.KeepDims())
        if nchw and not keep and sorted(axes) not in ([2, 3], [1, 2, 3], [0, 1, 2, 3]):
            axes, nchw = [a % 4 for a in ctx.integers(1)], False  # what is left would be in another order
        out = ctx.emit(op(ctx.input(0, nchw), axis=axes, keepdims=keep))
        ctx.output(out, nchw=nchw and keep)

    return convert


def softmax(ctx: Context) -> None:
    (axis,), nchw = placed(ctx, [-1])
    x = ctx.input(0, nchw)
    beta = ctx.operator.options.Beta()
    if beta != 1:
        x = ctx.emit(relax.op.multiply(x, graph.const(beta, "float32")))
    ctx.output(ctx.emit(relax.op.nn.softmax(x, axis)), nchw=nchw)


def log_softmax(ctx: Context) -> None:
    (axis,), nchw = placed(ctx, [-1])
    ctx.output(ctx.emit(relax.op.nn.log_softmax(ctx.input(0, nchw), axis)), nchw=nchw)


def l2_normalization(ctx: Context) -> None:
    """x / max(√(Σ x² over channels), 1e-6)."""
    (axis,), nchw = placed(ctx, [-1])
    x = ctx.input(0, nchw)
    norm = ctx.emit(relax.op.sqrt(relax.op.sum(relax.op.square(x), [axis], keepdims=True)))
    ctx.output(ctx.emit(relax.op.divide(x, relax.op.maximum(norm, graph.const(1e-6, "float32")))), nchw=nchw)


def arg(op: Any) -> Callable[[Context], None]:
    def convert(ctx: Context) -> None:
        axis = ctx.integers(1)[0] % ctx.rank(0)
        ctx.output(ctx.emit(op(ctx.input(0), axis)))

    return convert


def cumsum(ctx: Context) -> None:
    axis = ctx.integers(1)[0] % ctx.rank(0)
    options = ctx.operator.options
    x: Expr = ctx.input(0)
    if options.Reverse():
        x = ctx.emit(relax.op.flip(x, axis))
    out = ctx.emit(relax.op.cumsum(x, axis, exclusive=bool(options.Exclusive())))
    ctx.output(ctx.emit(relax.op.flip(out, axis)) if options.Reverse() else out)


def top_k(ctx: Context) -> None:
    both = ctx.emit(relax.op.topk(ctx.input(0), ctx.integers(1)[0], -1, "both", True, "int32"))
    for place in range(2):
        ctx.output(ctx.emit(relax.TupleGetItem(both, place)), place)


CONVERTERS = {
    "MEAN": reduce(relax.op.mean),
    "SUM": reduce(relax.op.sum),
    "REDUCE_MAX": reduce(relax.op.max),
    "REDUCE_MIN": reduce(relax.op.min),
    "REDUCE_PROD": reduce(relax.op.prod),
    "SOFTMAX": softmax,
    "LOG_SOFTMAX": log_softmax,
    "L2_NORMALIZATION": l2_normalization,
    "ARG_MAX": arg(relax.op.argmax),
    "ARG_MIN": arg(relax.op.argmin),
    "CUMSUM": cumsum,
    "TOPK_V2": top_k,
}
