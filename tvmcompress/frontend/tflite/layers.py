"""Convolutions, matrix products, pooling and resizing: operators that work on NCHW or on rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import Expr

from tvmcompress.frontend.tflite.context import TO_NCHW, Constant, Context
from tvmcompress.ir import graph

SAME = 0  # of tflite.Padding


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Before and after; the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def padding(ctx: Context, x: Expr, window: tuple[int, int], strides: tuple[int, int]) -> list[int]:
    """top, left, bottom, right."""
    if ctx.operator.options.Padding() != SAME:
        return [0, 0, 0, 0]
    (top, bottom), (left, right) = (same_padding(s, w, d) for s, w, d in zip(graph.shape(x)[2:], window, strides))
    return [top, left, bottom, right]


def activation(ctx: Context, x: Expr) -> Expr:
    """The fused activation of the operator's options."""
    options = ctx.operator.options
    kind = options.FusedActivationFunction() if options is not None else 0
    if kind == 0:
        return x
    if kind not in ACTIVATIONS:
        raise ctx.fail(f"fused activation {kind} is not supported")
    return ctx.emit(ACTIVATIONS[kind](x))


ACTIVATIONS: dict[int, Any] = {
    1: relax.op.nn.relu,
    2: lambda x: relax.op.clip(x, -1, 1),
    3: lambda x: relax.op.clip(x, 0, 6),
    4: relax.op.tanh,
}


def add_bias(ctx: Context, x: Expr, place: int, channels_second: bool) -> Expr:
    """Bias is a constant nearly always; then it takes the shape that adding it needs."""
    if not ctx.has(place):
        return x
    if ctx.is_const(place):
        bias = narrow(ctx, ctx.const(place))
        if bias.quantization is None and not bias.array.any():
            return x
        bias_shape = [1, bias.array.size, 1, 1] if channels_second else [bias.array.size]
        return ctx.emit(relax.op.add(x, ctx.weight(bias, None, bias_shape)))
    bias_expr = ctx.input(place)
    if channels_second:
        bias_expr = ctx.emit(relax.op.reshape(bias_expr, [1, -1, 1, 1]))
    return ctx.emit(relax.op.add(x, bias_expr))


def narrow(ctx: Context, bias: Constant) -> Constant:
    """The int64 biases of models with 16-bit activations, as int32 where they fit, else as floats."""
    if bias.array.dtype != np.int64:
        return bias
    fits = np.abs(bias.array).max(initial=0) < 2**31
    return Constant(bias.array.astype(np.int32), bias.quantization) if fits else Constant(bias.floats())


def weight(ctx: Context, place: int, axes: tuple[int, ...]) -> Expr:
    """A weight, constant or computed, permuted."""
    if ctx.is_const(place):
        return ctx.weight(ctx.const(place), axes)
    return ctx.permute(ctx.input(place), axes)


def conv2d(ctx: Context) -> None:
    """CONV_2D: x NHWC, w OHWI -> conv2d NCHW, OIHW; groups when w has fewer input channels than x."""
    options = ctx.operator.options
    x = ctx.input(0, nchw=True)
    _, height, width, channels = ctx.shape(1)
    strides = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    window = ((height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1)
    pads = padding(ctx, x, window, strides)
    groups = graph.shape(x)[1] // channels
    out = ctx.emit(relax.op.nn.conv2d(x, weight(ctx, 1, TO_NCHW), strides, pads, dilation, groups))
    ctx.output(activation(ctx, add_bias(ctx, out, 2, True)), nchw=True)


def depthwise(ctx: Context) -> None:
    """DEPTHWISE_CONV_2D: w (1, h, w, channels * multiplier) -> conv2d with as many groups as channels."""
    options = ctx.operator.options
    x = ctx.input(0, nchw=True)
    _, height, width, _ = ctx.shape(1)
    strides = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    window = ((height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1)
    pads = padding(ctx, x, window, strides)
    kernel = weight(ctx, 1, (3, 0, 1, 2))
    out = ctx.emit(relax.op.nn.conv2d(x, kernel, strides, pads, dilation, graph.shape(x)[1]))
    ctx.output(activation(ctx, add_bias(ctx, out, 2, True)), nchw=True)


def transpose_conv(ctx: Context) -> None:
    """TRANSPOSE_CONV: output shape, w OHWI, x NHWC -> conv2d_transpose NCHW, IOHW."""
    options = ctx.operator.options
    x = ctx.input(2, nchw=True)
    wanted = ctx.integers(0)[1:3]
    strides = (options.StrideH(), options.StrideW())
    pads, more = [], []
    for size, window, stride, out in zip(graph.shape(x)[2:], ctx.shape(1)[1:3], strides, wanted):
        full = (size - 1) * stride + window
        total = max(full - out, 0)
        pads.append((total // 2, total - total // 2))
        more.append(out - (full - total))
    sides = [pads[0][0], pads[1][0], pads[0][1], pads[1][1]]
    kernel = weight(ctx, 1, (3, 0, 1, 2))
    out = ctx.emit(relax.op.nn.conv2d_transpose(x, kernel, strides, sides, tuple(more)))
    ctx.output(activation(ctx, add_bias(ctx, out, 3, True)), nchw=True)


def fully_connected(ctx: Context) -> None:
    """FULLY_CONNECTED: x (…, i), w (o, i) -> matmul(x, wᵀ)."""
    options = ctx.operator.options
    if options is not None and options.WeightsFormat() != 0:
        raise ctx.fail("shuffled weights are not supported")
    x = ctx.input(0)
    width = ctx.shape(1)[1]
    shape = graph.shape(x)
    keep = options is not None and options.KeepNumDims()
    if not keep and (len(shape) != 2 or shape[-1] != width):
        x = ctx.emit(relax.op.reshape(x, [int(np.prod(shape)) // width, width]))
    out = ctx.emit(relax.op.matmul(x, weight(ctx, 1, (1, 0))))
    ctx.output(activation(ctx, add_bias(ctx, out, 2, False)))


def batch_matmul(ctx: Context) -> None:
    options = ctx.operator.options
    sides = []
    for place, turned in ((0, options.AdjX()), (1, options.AdjY())):
        rank = ctx.rank(place)
        axes = (*range(rank - 2), rank - 1, rank - 2) if turned else tuple(range(rank))
        sides.append(weight(ctx, place, axes) if turned else ctx.input(place))
    ctx.output(ctx.emit(relax.op.matmul(*sides)))


def pool(op: Any) -> Any:
    def convert(ctx: Context) -> None:
        options = ctx.operator.options
        x = ctx.input(0, nchw=True)
        window = (options.FilterHeight(), options.FilterWidth())
        strides = (options.StrideH(), options.StrideW())
        pads = padding(ctx, x, window, strides)
        ctx.output(activation(ctx, ctx.emit(op(x, window, strides, pads))), nchw=True)

    return convert


def resize(method: str) -> Any:
    def convert(ctx: Context) -> None:
        options = ctx.operator.options
        if options.AlignCorners():
            mode, rounding = "align_corners", "round_prefer_ceil"  # half away from zero
        elif options.HalfPixelCenters():
            # TFLite's nearest takes floor((i + 0.5) * scale), which is the half pixel position rounded half up.
            mode, rounding = "half_pixel", "round_prefer_ceil"
        else:
            mode, rounding = "asymmetric", "floor"
        out = relax.op.image.resize2d(
            ctx.input(0, nchw=True),
            tuple(ctx.integers(1)),
            layout="NCHW",
            method=method,
            coordinate_transformation_mode=mode,
            rounding_method=rounding if method == "nearest_neighbor" else "",
        )
        ctx.output(ctx.emit(out), nchw=True)

    return convert


CONVERTERS = {
    "CONV_2D": conv2d,
    "DEPTHWISE_CONV_2D": depthwise,
    "TRANSPOSE_CONV": transpose_conv,
    "FULLY_CONNECTED": fully_connected,
    "BATCH_MATMUL": batch_matmul,
    "AVERAGE_POOL_2D": pool(relax.op.nn.avg_pool2d),
    "MAX_POOL_2D": pool(relax.op.nn.max_pool2d),
    "RESIZE_BILINEAR": resize("linear"),
    "RESIZE_NEAREST_NEIGHBOR": resize("nearest_neighbor"),
}
