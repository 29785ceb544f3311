"""Element-wise integer work: requantization, shifts of signedness, tables, sums of pools."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx
from tvm.relax import BlockBuilder, Expr

from tvmcompress.ir import graph


def _clip_cast(value, lo: int, hi: int, dtype: str):
    """Clip in float32, where NaN and overflow cannot reach the conversion."""
    low, high = tirx.const(lo, "float32"), tirx.const(hi, "float32")
    return te.max(te.min(value, high), low).astype("int32").astype(dtype)


def requantize(builder: BlockBuilder, acc: Expr, factor: np.ndarray, zero: int, lo: int, hi: int, dtype: str) -> Expr:
    """clip(round_half_even(float32(acc) * factor) + zero, lo, hi); `factor` a scalar or one value for the last axis."""

    def compute(x, m=None):
        def element(*i):
            scale = tirx.const(float(factor), "float32") if m is None else m[i[-1]]
            return _clip_cast(te.round(x[i].astype("float32") * scale) + tirx.const(zero, "float32"), lo, hi, dtype)

        return te.compute(x.shape, element, name="requantize")

    if factor.ndim == 0:
        return builder.call_te(compute, acc, primfunc_name_hint="requantize")
    return builder.call_te(compute, acc, graph.const(factor), primfunc_name_hint="requantize")


def add(builder: BlockBuilder, a: Expr, b: Expr, factors: tuple, start: float, lo: int, hi: int, fused: bool) -> Expr:
    """clip(round_half_even(a * factors[0] + (b * factors[1] + start)), lo, hi), dtype and shape those of `a` and `b`.

    With `fused` each product is added before it is rounded, by one instruction.
    """
    first, second, start = (tirx.const(float(v), "float32") for v in (*factors, start))
    dtype = graph.dtype(a)

    def compute(x, y):
        def element(*i):
            total = multiply_add(y[i].astype("float32"), second, start, fused)
            return _clip_cast(te.round(multiply_add(x[i].astype("float32"), first, total, fused)), lo, hi, dtype)

        return te.compute(x.shape, element, name="add")

    return builder.call_te(compute, a, b, primfunc_name_hint="quantized_add")


def affine(
    builder: BlockBuilder, q: Expr, scale: float, zero: int, factor: np.ndarray, offset: np.ndarray, out
) -> Expr:
    """quantize(dequantize(q) * factor + offset), each step rounded to float32; vectors of the last axis, or scalars.

    `out` is the scale, zero point, lowest and highest value, and dtype of the result.
    """
    step, z, lo, hi, dtype = out

    def compute(x, m, b):
        def element(*i):
            real = (x[i].astype("int32") - zero).astype("float32") * tirx.const(float(scale), "float32")
            y = multiply_add(real, m[i[-1]], b[i[-1]], False)
            whole = te.round(y / tirx.const(float(step), "float32"))
            return _clip_cast(whole + tirx.const(z, "float32"), lo, hi, dtype)

        return te.compute(x.shape, element, name="affine")

    return builder.call_te(compute, q, graph.const(factor), graph.const(offset), primfunc_name_hint="quantized_affine")


def rescale(builder: BlockBuilder, q: Expr, scale: float, zero: int, out: tuple) -> Expr:
    """quantize(dequantize(q)); `out` as for `affine`."""
    step, z, lo, hi, dtype = out

    def compute(x):
        def element(*i):
            real = (x[i].astype("int32") - zero).astype("float32") * tirx.const(float(scale), "float32")
            whole = te.round(real / tirx.const(float(step), "float32"))
            return _clip_cast(whole + tirx.const(z, "float32"), lo, hi, dtype)

        return te.compute(x.shape, element, name="rescale")

    return builder.call_te(compute, q, primfunc_name_hint="rescale")


def multiply_add(x, y, z, fused: bool):
    """x * y + z, rounded once when `fused`, else twice: LLVM would choose by what is around it."""
    if fused:
        return tirx.call_llvm_pure_intrin("float32", "llvm.fma", x, y, z)
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", x * y) + z


def shift(builder: BlockBuilder, q: Expr, offset: int, dtype: str) -> Expr:
    """q + offset in another dtype: from int8 to uint8 and back."""

    def compute(x):
        return te.compute(
            x.shape, lambda *i: (x[i].astype("int16") + tirx.const(offset, "int16")).astype(dtype), name="shift"
        )

    return builder.call_te(compute, q, primfunc_name_hint="shift")


def look_up(builder: BlockBuilder, q: Expr, table: np.ndarray) -> Expr:
    """table[q - lowest value of q's dtype]; `table` has 256 entries."""
    first = -128 if graph.dtype(q) == "int8" else 0

    def compute(x, entries):
        return te.compute(x.shape, lambda *i: entries[x[i].astype("int32") - first], name="look_up")

    return builder.call_te(compute, q, graph.const(table), primfunc_name_hint="look_up")


def sum_pool(builder: BlockBuilder, q: Expr, kernel: list[int], strides: list[int], shape: tuple[int, ...]) -> Expr:
    """int32 sums over windows, NHWC, no padding."""

    def compute(x):
        ry, rx = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
        return te.compute(
            shape,
            lambda n, h, w, c: te.sum(x[n, h * strides[0] + ry, w * strides[1] + rx, c].astype("int32"), axis=[ry, rx]),
            name="sum_pool",
        )

    return builder.call_te(compute, q, primfunc_name_hint="sum_pool")
