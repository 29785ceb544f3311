"""Operators that are other operators in disguise, so that one kernel family serves them all.

conv1d            -> conv2d of height 1
conv3d            -> conv2d of each depth, with the depths that a window reads as channels
conv2d_transpose  -> conv2d with one set of output channels per phase of the stride, then depth to space
batch_norm        -> x * scale + shift
adaptive pooling  -> average pooling, where windows are equal
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import constants, graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name


def ints(values) -> list[int]:
    return [int(v) for v in values]


def conv1d(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
    a = expr.attrs
    if a.data_layout != "NCW" or a.kernel_layout != "OIW":
        return None
    n, c, w = graph.shape(expr.args[0])
    x = rw.emit(relax.op.reshape(expr.args[0], (n, c, 1, w)))
    weight = insert_axis(rw, expr.args[1], 2)
    (stride,), (dilation,), (left, right) = ints(a.strides), ints(a.dilation), ints(a.padding)
    sums = relax.op.nn.conv2d(
        x, weight, [1, stride], [0, left, 0, right], [1, dilation], a.groups, out_dtype=out_dtype(var, x)
    )
    y = rw.emit(sums, var.name)
    return relax.op.reshape(y, graph.shape(var))


def conv3d(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
    a = expr.attrs
    if a.data_layout != "NCDHW" or a.kernel_layout != "OIDHW":
        return None
    (x, weight), groups = expr.args, int(a.groups)
    (n, c, d, h, w), (o, each, taps, kh, kw) = graph.shape(x), graph.shape(weight)
    (stride, *strides), (dilation, *dilations) = ints(a.strides), ints(a.dilation)
    front, top, left, back, bottom, right = ints(a.padding)
    depth = graph.shape(var)[2]
    x = rw.emit(relax.op.permute_dims(x, [0, 2, 1, 3, 4]))
    if front or back:
        x = rw.emit(relax.op.nn.pad(x, [0, 0, front, back, 0, 0, 0, 0, 0, 0]))
    reads = []
    for tap in range(taps):
        first = tap * dilation
        read = relax.op.strided_slice(x, [1], [first], [first + (depth - 1) * stride + 1], [stride])
        whole = (first, stride, depth) == (0, 1, d + front + back)
        part = x if whole else rw.emit(read)
        reads.append(rw.emit(relax.op.reshape(part, (n * depth, c, 1, h, w))))
    x = rw.emit(relax.op.concat(reads, 2)) if taps > 1 else reads[0]
    x = rw.emit(relax.op.reshape(x, (n * depth, c * taps, h, w)))
    weight = reshaped(rw, weight, (o, each * taps, kh, kw), [0, None, None, 2, 3])
    sums = relax.op.nn.conv2d(
        x, weight, strides, [top, left, bottom, right], dilations, groups, out_dtype=out_dtype(var, x)
    )
    y = rw.emit(sums, var.name)
    y = rw.emit(relax.op.reshape(y, (n, depth, *graph.shape(y)[1:])))
    return relax.op.permute_dims(y, [0, 2, 1, 3, 4])


def out_dtype(var: graph.Var, x: Expr) -> str | None:
    """The attribute of a layer whose result is `var`: none where that is of its operands' dtype."""
    return None if graph.dtype(var) == graph.dtype(x) else graph.dtype(var)


def insert_axis(rw: Rewriter, weight: Expr, at: int) -> Expr:
    """A weight with one more axis of length one."""
    dims = graph.shape(weight)
    return reshaped(rw, weight, (*dims[:at], 1, *dims[at:]), [axis + (axis >= at) for axis in range(len(dims))])


def reshaped(rw: Rewriter, weight: Expr, dims: tuple[int, ...], places: Sequence[int | None]) -> Expr:
    """A weight in another shape, still constant or a dequantize of a constant; `places`: where each axis went, None
    where it is a part of another one."""
    if graph.is_const(weight):
        return graph.const(graph.value(weight).reshape(dims))
    call = rw.definition(weight)
    if op_name(call) == "relax.dequantize":
        q, scale, zero = call.args
        place = places[int(call.attrs.axis)] if graph.shape(scale) else 0
        if place is not None:
            q = graph.const(graph.value(q).reshape(dims)) if graph.is_const(q) else rw.emit(relax.op.reshape(q, dims))
            return rw.emit(relax.op.dequantize(q, scale, zero, place))
    return rw.emit(relax.op.reshape(weight, dims))


def conv1d_transpose(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
    a = expr.attrs
    if a.data_layout != "NCW" or a.kernel_layout != "IOW":
        return None
    n, c, w = graph.shape(expr.args[0])
    x = rw.emit(relax.op.reshape(expr.args[0], (n, c, 1, w)))
    weight = insert_axis(rw, expr.args[1], 2)
    (stride,), (dilation,), (left, right), (extra,) = (
        ints(a.strides),
        ints(a.dilation),
        ints(a.padding),
        ints(a.output_padding),
    )
    wide = relax.op.nn.conv2d_transpose(
        x, weight, [1, stride], [0, left, 0, right], [0, extra], [1, dilation], a.groups, "NCHW", "IOHW"
    )
    n, oc, ow = graph.shape(var)
    y = phases(rw, var, wide, (n, oc, 1, ow))
    return relax.op.reshape(rw.emit(y, var.name), graph.shape(var)) if y is not None else None


def phase_weights(weight: np.ndarray, strides: list[int], padding: list[int], groups: int):
    """Weights of a transposed convolution (I, O/groups, KH, KW) as ordinary ones (phases * O, I/groups, RH, RW).

    Output pixel s*q + f takes input q + d with weight k = s*d' + ..., so each phase f of the stride is a convolution of
    its own with kernel ceil(K / s). Returns the weights (phases outermost inside each group's outputs are last), and
    (before, after) input padding per axis.
    """
    ic, og, kh, kw = weight.shape
    (sh, sw), (top, left) = strides, padding[:2]
    w = weight.reshape(groups, ic // groups, og, kh, kw)
    rows, before_h = _phase_taps(kh, sh, top)
    cols, before_w = _phase_taps(kw, sw, left)
    rh, rw_ = len(rows[0]), len(cols[0])
    out = np.zeros((groups, og, sh, sw, ic // groups, rh, rw_), weight.dtype)
    for fh in range(sh):
        for fw in range(sw):
            for i, y in enumerate(rows[fh]):
                for j, x in enumerate(cols[fw]):
                    if y is not None and x is not None:
                        out[:, :, fh, fw, :, i, j] = w[:, :, :, y, x].transpose(0, 2, 1)
    return out.reshape(groups * og * sh * sw, ic // groups, rh, rw_), (before_h, before_w)


def _phase_taps(k: int, s: int, pad: int) -> tuple[list[list[int | None]], int]:
    """For each phase f: which tap multiplies input q + d, for d from the lowest to the highest needed; and -lowest d.

    Output o = s*i - pad + tap, so with o = s*q + f: tap = f + pad - s*(i - q).
    """
    pairs = [(f, (f + pad - tap) // s, tap) for f in range(s) for tap in range(k) if (f + pad - tap) % s == 0]
    low, high = min(d for _, d, _ in pairs), max(d for _, d, _ in pairs)
    taps: list[list[int | None]] = [[None] * (high - low + 1) for _ in range(s)]
    for f, d, tap in pairs:
        taps[f][d - low] = tap
    return taps, -low


def phase_taps(
    rw: Rewriter, weight: Expr, strides: list[int], padding: list[int], groups: int
) -> tuple[Expr, tuple[int, int]]:
    """`phase_weights` of an expression: by NumPy when it is a constant, else, for what is unpacked later, by operators.

    Along each axis the taps, zeros around them, are steps of the stride: step r, phase f is what input -r is times.
    """
    if graph.is_const(weight):
        packed, before = phase_weights(graph.value(weight), strides, padding, groups)
        return graph.const(packed), before
    ic, og, kh, kw = graph.shape(weight)
    (sh, sw), found = strides, [_phase_taps(k, s, pad) for k, s, pad in zip((kh, kw), strides, padding)]
    width, steps = [0, 0, 0, 0], []
    for (taps, before), k, s, pad in zip(found, (kh, kw), strides, padding):
        first = pad - s * (len(taps[0]) - 1 - before)  # the tap of phase 0 at the highest input
        width += [-first, first + s * len(taps[0]) - k]
        steps.append(len(taps[0]))
    e = rw.emit(relax.op.nn.pad(weight, width))
    e = rw.emit(relax.op.reshape(e, (groups, ic // groups, og, steps[0], sh, steps[1], sw)))
    e = rw.emit(relax.op.flip(rw.emit(relax.op.flip(e, 3)), 5))
    e = rw.emit(relax.op.permute_dims(e, (0, 2, 4, 6, 1, 3, 5)))
    e = rw.emit(relax.op.reshape(e, (groups * og * sh * sw, ic // groups, *steps)))
    return e, (found[0][1], found[1][1])


def conv2d_transpose(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
    return phases(rw, var, expr, graph.shape(var))


def phases(rw: Rewriter, var: graph.Var, expr: Expr, out: tuple[int, ...]) -> Expr | None:
    """conv2d_transpose with result shape `out` as one convolution; None where its weights are not constant."""
    a = expr.attrs
    if a.data_layout != "NCHW" or a.kernel_layout != "IOHW" or ints(a.dilation) != [1, 1]:
        return None
    strides, padding, groups = ints(a.strides), ints(a.padding), int(a.groups)
    weight, scales = expr.args[1], None
    call = rw.definition(weight)
    if op_name(call) == "relax.dequantize" and all(graph.is_const(x) for x in call.args[1:]):
        if np.any(graph.value(call.args[2])):
            return None
        weight, scales = call.args[0], graph.value(call.args[1]).reshape(-1)
        axis = int(call.attrs.axis) % 4
        if scales.size > 1 and (axis != 1 or (groups > 1 and scales.size != graph.shape(weight)[1])):
            return None
    if constants.known(weight, rw.definition) is None:
        return None
    n, _, h, w = graph.shape(expr.args[0])
    _, oc, oh, ow = out
    new_weight, (before_h, before_w) = phase_taps(rw, weight, strides, padding, groups)
    sh, sw = strides
    rh, rw_ = graph.shape(new_weight)[2:]
    qh, qw = -(-oh // sh), -(-ow // sw)  # input-sized steps of the result
    after_h, after_w = qh - h + rh - 1 - before_h, qw - w + rw_ - 1 - before_w
    x = expr.args[0]
    pads = [before_h, before_w, after_h, after_w]
    if min(pads) < 0:
        begin, end = [max(0, -before_h), max(0, -before_w)], [h - max(0, -after_h), w - max(0, -after_w)]
        x = rw.emit(relax.op.strided_slice(x, [2, 3], begin, end))
        pads = [max(0, p) for p in pads]
    if scales is not None:
        per = np.tile(np.repeat(scales, sh * sw), groups) if scales.size > 1 else scales.reshape(())
        zero = np.zeros(per.shape, graph.dtype(new_weight))
        new_weight = rw.emit(relax.op.dequantize(new_weight, graph.const(per.astype(np.float32)), graph.const(zero), 0))
    y = rw.emit(relax.op.nn.conv2d(x, new_weight, 1, pads, 1, groups, out_dtype=out_dtype(var, x)), var.name)
    y = rw.emit(relax.op.reshape(y, (n, oc, sh, sw, qh, qw)))
    y = rw.emit(relax.op.permute_dims(y, (0, 1, 4, 2, 5, 3)))
    y = rw.emit(relax.op.reshape(y, (n, oc, qh * sh, qw * sw)))
    if (qh * sh, qw * sw) != (oh, ow):
        y = relax.op.strided_slice(y, [2, 3], [0, 0], [oh, ow])
    return y


def batch_norm(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
    """Inference only: the moving statistics are passed through."""
    x, *parameters = expr.args
    values = [value for value in (vector(rw, p) for p in parameters) if value is not None]
    if len(values) < len(parameters):
        return None
    # In float32 and in the order of ONNX Runtime: behind a quantized tensor the last bit decides at ties.
    gamma, beta, mean, variance = (value.astype(np.float32) for value in values)
    a, one = expr.attrs, np.float32(1)
    factor = (gamma if a.scale else one) * (one / np.sqrt(variance + np.float32(a.epsilon)))
    shift = (beta if a.center else np.float32(0)) - mean * factor
    rank, axis = len(x.ty.shape), int(a.axis)
    form = [1] * rank
    form[axis % rank] = -1
    y = rw.emit(relax.op.multiply(x, graph.const(factor.reshape(form).astype(np.float32))), var.name)
    y = rw.emit(relax.op.add(y, graph.const(shift.reshape(form).astype(np.float32))))
    return relax.Tuple([y, parameters[2], parameters[3]])


def vector(rw: Rewriter, expr: Expr) -> np.ndarray | None:
    """The value of a constant, or of one that was quantized as a whole: some quantizers do that to batch norms."""
    call = rw.definition(expr)
    if op_name(call) != "relax.dequantize":
        return graph.value(expr) if graph.is_const(expr) else None
    if not all(graph.is_const(argument) for argument in call.args):
        return None
    q, scale, zero = (graph.value(argument) for argument in call.args)
    if scale.size > 1 or zero.size > 1:
        return None
    return (q.astype(np.float32) - zero.astype(np.float32)) * scale


def adaptive_avg_pool2d(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
    if expr.attrs.layout != "NCHW":
        return None
    (_, _, h, w), (_, _, oh, ow) = graph.shape(expr.args[0]), graph.shape(var)
    if (oh, ow) == (1, 1):
        return relax.op.mean(expr.args[0], [2, 3], True)
    if h % oh or w % ow:
        return None
    size = [h // oh, w // ow]
    return relax.op.nn.avg_pool2d(expr.args[0], size, size)


HANDLERS: dict[str, Callable] = {
    "relax.nn.conv1d": conv1d,
    "relax.nn.conv3d": conv3d,
    "relax.nn.conv1d_transpose": conv1d_transpose,
    "relax.nn.conv2d_transpose": conv2d_transpose,
    "relax.nn.batch_norm": batch_norm,
    "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
}


def decompose(mod: tvm.IRModule) -> tvm.IRModule:
    def visit(rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        handler = HANDLERS.get(op_name(expr))
        if handler is None or not graph.has_static_shape(expr.args[0]):
            return None
        return handler(rw, var, expr)

    return graph.rewrite(mod, visit)
