"""Quantized operators, brought to the one internal form: quantize and dequantize around float operators."""

from __future__ import annotations

import math

import numpy as np
import onnx
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import scalar
from tvmcompress.frontend.onnx.operators.layers import convolve
from tvmcompress.frontend.onnx.values import Known
from tvmcompress.ir import graph, ops

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")
FOUR_BITS = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}


def vector(node: Node, index: int) -> graph.Expr:
    """A scale or zero point: a scalar, or a vector along the axis. (1,) becomes a scalar."""
    known = node.known(index)
    if known is not None:
        value = (
            known.reshape(())
            if known.size == 1
            else known.reshape(-1)
            if known.ndim > 1 and max(known.shape) == known.size
            else known
        )
        return Known(value).expr()
    x = node.x(index)
    dims = graph.shape(x)
    if dims == ():
        return x
    return node.emit(relax.op.reshape(x, () if math.prod(dims) == 1 else (math.prod(dims),)), "vector")


def zero_like(node: Node, scale: graph.Expr, kind: str) -> graph.Expr:
    return graph.const(np.zeros(graph.shape(scale), kind))


def axis_of(node: Node, rank: int) -> int:
    axis = node.attr("axis", 1)
    axis += rank if axis < 0 else 0
    return min(axis, max(rank - 1, 0))


def quantize_linear(node: Node) -> graph.Expr:
    x, rank = node.x(0), len(node.shape(0))
    kind = node.dtype(2) if node.has(2) else "uint8"
    if not node.has(2) and node.attr("output_dtype", 0):
        kind = onnx.helper.tensor_dtype_to_np_dtype(node.attr("output_dtype")).name
    if kind not in ("int8", "uint8", "int16", "uint16"):
        return NotImplemented if kind not in FOUR_BITS else quantize_plain(node, x, kind)
    if graph.dtype(x) == "int32":
        x = node.emit(relax.op.astype(x, "float32"), "float")
    if blocked(node, rank) or node.attr("precision", 0):
        return quantize_plain(node, x, kind)
    scale = vector(node, 1)
    zero = vector(node, 2) if node.has(2) else zero_like(node, scale, kind)
    if graph.dtype(x) != "float32":  # relax computes in the input's dtype; half precision would round twice
        x = node.emit(relax.op.astype(x, "float32"), "float")
    if graph.dtype(scale) != "float32":
        scale = to_float(node, scale)
    return relax.op.quantize(x, scale, zero, axis_of(node, rank), kind)


def to_float(node: Node, x: graph.Expr) -> graph.Expr:
    if graph.is_const(x):
        return graph.const(graph.value(x).astype("float32"))
    return node.emit(relax.op.astype(x, "float32"), "float")


def blocked(node: Node, rank: int) -> bool:
    return bool(node.attr("block_size", 0)) and len(node.shape(1)) == rank and rank > 0


def spread(node: Node, index: int, dims: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], graph.Expr]:
    """For plain arithmetic: the shape that splits blocks apart, and input `index` shaped to go with it."""
    axis = axis_of(node, rank)
    x = node.x(index)
    if blocked(node, rank):
        groups = node.shape(1)[axis]
        size = node.attr("block_size")
        if groups * size != dims[axis]:
            raise ModelError(f"{dims[axis]} elements along axis {axis} are not {groups} blocks of {size}")
        split = (*dims[:axis], groups, size, *dims[axis + 1 :])
        return split, node.emit(relax.op.expand_dims(x, axis + 1), "per_block")
    if len(graph.shape(x)) == 1 and graph.shape(x)[0] != 1:
        shape = [1] * rank
        shape[axis] = graph.shape(x)[0]
        return dims, node.emit(relax.op.reshape(x, shape), "per_channel")
    return dims, x


def quantize_plain(node: Node, x: graph.Expr, kind: str) -> graph.Expr:
    """Block-wise and 4-bit: written as divide, round, add, clip. 4-bit results are held in 8 bits."""
    dims = graph.shape(x)
    split, scale = spread(node, 1, dims, len(dims))
    scale = node.emit(relax.op.astype(scale, "float32"), "scale") if graph.dtype(scale) != "float32" else scale
    x = node.emit(relax.op.astype(node.emit(relax.op.reshape(x, split), "blocks"), "float32"), "float")
    q = node.emit(relax.op.round(relax.op.divide(x, scale)), "rounded")
    if node.has(2):
        zero = spread(node, 2, dims, len(dims))[1]
        q = node.emit(relax.op.add(q, relax.op.astype(zero, "float32")), "shifted")
    low, high = FOUR_BITS.get(kind) or (np.iinfo(kind).min, np.iinfo(kind).max)
    q = node.emit(relax.op.clip(q, relax.prim_value(float(low)), relax.prim_value(float(high))), "clipped")
    store = kind if kind not in FOUR_BITS else ("int8" if kind.startswith("int") else "uint8")
    return relax.op.reshape(node.emit(relax.op.astype(q, store), "narrow"), dims)


def dequantize_linear(node: Node) -> graph.Expr:
    """Weights stay integers: a constant is never multiplied out, but who must know its value may ask."""
    kind, dims = node.dtype(0), node.shape(0)
    rank = len(dims)
    if kind not in INTEGERS and kind not in FOUR_BITS:
        return NotImplemented
    out = graph.dtype(node.x(1))
    if node.attr("output_dtype", 0):
        out = onnx.helper.tensor_dtype_to_np_dtype(node.attr("output_dtype")).name
    known = [node.known(i) for i in range(3)]
    data = node.inputs[0]
    if isinstance(data, Known) and known[1] is not None and (not node.has(2) or known[2] is not None):
        result = node.emit(known_dequantize(node, data.array, known[1], known[2], out))
        array, scale, zero, axis = data.array, known[1], known[2], axis_of(node, rank)
        size = node.attr("block_size", 0) if blocked(node, rank) else 0
        node.importer.remember_dequantized(result, lambda: multiplied(array, scale, zero, axis, size))
        return result
    if blocked(node, rank) or out != "float32":
        return dequantize_plain(node, out)
    scale = vector(node, 1)
    zero = vector(node, 2) if node.has(2) else zero_like(node, scale, graph.dtype(node.x(0)))
    return relax.op.dequantize(node.x(0), scale, zero, axis_of(node, rank), "float32")


def dequantize_plain(node: Node, out: str) -> graph.Expr:
    dims = node.shape(0)
    split, scale = spread(node, 1, dims, len(dims))
    x = node.emit(relax.op.astype(node.emit(relax.op.reshape(node.x(0), split), "blocks"), "float32"), "float")
    if node.has(2):
        x = node.emit(relax.op.subtract(x, relax.op.astype(spread(node, 2, dims, len(dims))[1], "float32")), "centred")
    x = node.emit(relax.op.multiply(x, relax.op.astype(scale, "float32")), "scaled")
    x = node.emit(relax.op.reshape(x, dims), "whole")
    return relax.op.astype(x, out) if out != "float32" else x


def multiplied(array: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int, block: int) -> np.ndarray:
    def along(v: np.ndarray) -> np.ndarray:
        v = v.astype("float32")
        if block:
            return np.repeat(v, block, axis)
        return v.reshape([-1 if i == axis else 1 for i in range(array.ndim)]) if v.size > 1 else v.reshape(())

    centred = array.astype("float32") - (along(zero) if zero is not None else 0)
    return (centred * along(scale)).astype(scale.dtype)


def known_dequantize(node: Node, array: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, out: str) -> graph.Expr:
    """A constant under its dequantize. Blocks and 4 bits become the group-wise form: (groups, group size), axis 0."""
    kind, rank = array.dtype.name, array.ndim
    axis = axis_of(node, rank)
    block = blocked(node, rank)
    four = kind in ("int4", "uint4")
    if kind in FOUR_BITS:
        array = array.astype("int8" if kind.startswith("int") else "uint8")
        zero = None if zero is None else zero.astype(array.dtype)
        if kind == "uint4":  # centred, so that one signed storage serves both
            zero = np.full(scale.shape, -8, "int8") if zero is None else zero.astype("int8") - np.int8(8)
            array = array.astype("int8") - np.int8(8)
    if zero is None:
        zero = np.zeros(scale.shape, array.dtype)
    scale = scale.astype("float32")
    result_kind = out if out in ("float32", "float16") else "float32"
    if block:
        last = np.moveaxis(array, axis, -1)
        groups = last.reshape(-1, node.attr("block_size"))
        flat_scale, flat_zero = (np.moveaxis(v, axis, -1).reshape(-1) for v in (scale, zero))
        result = grouped(node, groups, flat_scale, flat_zero, four, result_kind)
        result = node.emit(relax.op.reshape(result, last.shape), "groups")
        if axis != rank - 1:
            order = [*range(axis), rank - 1, *range(axis, rank - 1)]
            result = node.emit(relax.op.permute_dims(result, order), "ordered")
        return result if out == result_kind else relax.op.astype(result, out)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    if (
        four
        and array.size % 2 == 0
        and rank > 0
        and (scale.size == 1 or (axis == 0 and array.size // len(scale) % 2 == 0))
    ):
        rows = len(scale) if scale.ndim else 1
        flat_scale, flat_zero = scale.reshape(-1), zero.reshape(-1)
        result = grouped(node, array.reshape(rows, -1), flat_scale, flat_zero, True, result_kind)
        result = relax.op.reshape(result, array.shape)
    else:
        result = relax.op.dequantize(graph.const(array), graph.const(scale), graph.const(zero), axis, result_kind)
    return result if out == result_kind else relax.op.astype(node.emit(result, "float"), out)


def grouped(node: Node, groups: np.ndarray, scale: np.ndarray, zero: np.ndarray, four: bool, out: str) -> graph.Expr:
    """dequantize(groups (G, g), scale (G,), zero (G,), axis=0), stored two to a byte where 4 bits allow."""
    if four and groups.shape[1] % 2 == 0:
        data = node.emit(ops.unpack_int4(graph.const(ops.pack_int4(groups))), "unpacked")
    else:
        data = graph.const(groups)
    return node.emit(relax.op.dequantize(data, graph.const(scale), graph.const(zero), 0, out), "dequantized")


def dequantized(node: Node, data: int, scale: int, zero: int, axis: int = -1) -> graph.Expr:
    """Input `data` under the scale and zero point in the inputs of those numbers."""
    x = node.x(data)
    s = vector(node, scale)
    s = s if graph.dtype(s) == "float32" else to_float(node, s)
    z = vector(node, zero) if node.has(zero) else zero_like(node, s, graph.dtype(x))
    if graph.shape(s) and not graph.shape(z):
        z = graph.const(np.full(graph.shape(s), graph.value(z), graph.dtype(z))) if graph.is_const(z) else z
    rank = max(len(graph.shape(x)), 1)
    return node.emit(relax.op.dequantize(x, s, z, axis % rank, "float32"), f"input{data}")


def requantized(node: Node, y: graph.Expr, scale: int, zero: int, kind: str, axis: int = -1) -> graph.Expr:
    s = vector(node, scale)
    s = s if graph.dtype(s) == "float32" else to_float(node, s)
    z = vector(node, zero) if node.has(zero) else zero_like(node, s, kind)
    y = node.emit(y)
    return node.emit(relax.op.quantize(y, s, z, axis % max(len(graph.shape(y)), 1), kind), "quantized")


def out_kind(node: Node, zero: int, like: int = 0) -> str:
    return node.dtype(zero) if node.has(zero) else node.dtype(like)


def int_bias(node: Node, index: int, x_scale: int, w_scale: int, shape: tuple[int, ...], axis: int) -> graph.Expr:
    """An int32 bias in units of x_scale * w_scale."""
    known, a, b = (node.known(i) for i in (index, x_scale, w_scale))
    if known is not None and a is not None and b is not None:
        unit = a.astype("float32").reshape(-1) * b.astype("float32").reshape(-1)
        unit = unit.reshape(()) if unit.size == 1 else unit
        bias = known.astype("int32").reshape(shape)
        zero = np.zeros(unit.shape, "int32")
        return node.emit(
            relax.op.dequantize(graph.const(bias), graph.const(unit), graph.const(zero), axis, "float32"), "bias_float"
        )
    unit = node.emit(relax.op.multiply(vector(node, x_scale), vector(node, w_scale)), "unit")
    bias = node.emit(relax.op.multiply(relax.op.astype(node.x(index), "float32"), unit), "bias_float")
    return node.emit(relax.op.reshape(bias, shape), "bias_shape")


def qlinear_conv(node: Node) -> graph.Expr:
    """x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias (int32)."""
    x, w = dequantized(node, 0, 1, 2), dequantized(node, 3, 4, 5, axis=0)
    y = convolve(node, x, w, None)
    if node.has(8):
        channels, rank = graph.shape(w)[0], len(graph.shape(x))
        bias = int_bias(node, 8, 1, 4, (1, channels, *[1] * (rank - 2)), 1)
        y = node.emit(relax.op.add(y, bias), "bias")
    return requantized(node, y, 6, 7, out_kind(node, 7))


def qlinear_matmul(node: Node) -> graph.Expr:
    """a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero; a by row, b by column."""
    a, b = dequantized(node, 0, 1, 2, axis=-2), dequantized(node, 3, 4, 5, axis=-1)
    return requantized(node, relax.op.matmul(a, b), 6, 7, out_kind(node, 7), axis=-2)


def centred(node: Node, data: int, zero: int, axis: int) -> graph.Expr:
    """An integer input minus its zero point, as a dequantize with scale 1."""
    x = node.x(data)
    z = vector(node, zero) if node.has(zero) else graph.const(np.zeros((), graph.dtype(x)))
    s = graph.const(np.ones(graph.shape(z), "float32"))
    return node.emit(relax.op.dequantize(x, s, z, axis % max(len(graph.shape(x)), 1), "float32"), f"input{data}")


def conv_integer(node: Node) -> graph.Expr:
    y = convolve(node, centred(node, 0, 2, 1), centred(node, 1, 3, 0), None)
    return node.emit(relax.op.astype(y, "int32"), "int32")


def matmul_integer(node: Node) -> graph.Expr:
    y = node.emit(relax.op.matmul(centred(node, 0, 2, -2), centred(node, 1, 3, -1)))
    return node.emit(relax.op.astype(y, "int32"), "int32")


def dynamic_quantize(node: Node) -> list[graph.Expr]:
    """uint8 with scale and zero point from this tensor's own range, which is widened to hold 0."""
    q, scale, zero = dynamic(node, node.x(0))
    return [q, scale, zero]


def dynamic(node: Node, x: graph.Expr) -> tuple[graph.Expr, graph.Expr, graph.Expr]:
    op, nought = relax.op, scalar(0.0, "float32")
    high = node.emit(op.maximum(op.max(x), nought), "max")
    low = node.emit(op.minimum(op.min(x), nought), "min")
    scale = node.emit(op.divide(op.subtract(high, low), scalar(255.0, "float32")), "scale")
    # All zeros: any scale will do, 0 / 0 will not.
    divisor = node.emit(op.where(op.equal(scale, nought), scalar(1.0, "float32"), scale), "divisor")
    shifted = node.emit(op.round(op.divide(op.negative(low), divisor)), "shifted")
    shifted = op.minimum(op.maximum(shifted, nought), scalar(255.0, "float32"))
    zero = node.emit(op.astype(node.emit(shifted, "clipped"), "uint8"), "zero")
    return node.emit(op.quantize(x, divisor, zero, -1, "uint8"), "quantized"), scale, zero


TABLE: dict = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "DynamicQuantizeLinear": dynamic_quantize,
}
