"""Element-wise integer work: requantization, shifts of signedness, tables, sums of pools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx
from tvm.relax import BlockBuilder, Expr

from tvmcompress.ir import graph

# Added to a float of a magnitude up to LARGEST, it leaves no bits for a fraction: the sum is rounded half to even, and
# its own bits count in steps of 1.
ROUNDING = 3 << 22
LARGEST = 1 << 21


def _quantized(value, zero: int, lo: int, hi: int, dtype: str, small: bool):
    """clip(round_half_even(value) + zero, lo, hi) of a float32.

    `small`, of a magnitude up to LARGEST: rounded by an addition, and what follows is done on integers, which takes
    three instructions fewer. Else clipped in float32, where NaN and overflow cannot reach the conversion.
    """
    if not small:
        low, high = tirx.const(lo, "float32"), tirx.const(hi, "float32")
        whole = te.round(value) + tirx.const(zero, "float32")
        return te.max(te.min(whole, high), low).astype("int32").astype(dtype)
    bits = int(np.float32(ROUNDING).view(np.int32))
    whole = tirx.reinterpret("int32", value + tirx.const(ROUNDING, "float32")) - tirx.const(bits - zero, "int32")
    return te.min(te.max(whole, tirx.const(lo, "int32")), tirx.const(hi, "int32")).astype(dtype)


def requantize(
    builder: BlockBuilder, acc: Expr, factor: np.ndarray, zero: int, lo: int, hi: int, dtype: str, small: bool = False
) -> Expr:
    """clip(round_half_even(float32(acc) * factor) + zero, lo, hi); `factor` a scalar or one value for the last axis.

    `small`: no product is larger than LARGEST, whatever the input.
    """

    def compute(x, m=None):
        def element(*i):
            scale = tirx.const(float(factor), "float32") if m is None else m[i[-1]]
            return _quantized(fence(x[i].astype("float32") * scale), zero, lo, hi, dtype, small)

        return te.compute(x.shape, element, name="requantize")

    if factor.ndim == 0:
        return builder.call_te(compute, acc, primfunc_name_hint="requantize")
    return builder.call_te(compute, acc, graph.const(factor), primfunc_name_hint="requantize")


def add(
    builder: BlockBuilder, terms: Sequence[tuple[Expr, np.ndarray]], start: float, zero: int, lo: int, hi: int,
    dtype: str, fused: bool, small: bool,
) -> Expr:  # fmt: skip
    """clip(round_half_even(a * fa + (b * fb + start)) + zero, lo, hi) of two `terms`, integers of one shape, each with
    its factor: a scalar or one value for the last axis.

    With `fused` each product is added before it is rounded, by one instruction. `small` as for `requantize`.
    """
    (a, first), (b, second) = terms
    vectors = [graph.const(factor) for factor in (first, second) if factor.ndim]

    def compute(x, y, *given):
        tables = list(given)
        factors = [tables.pop(0) if f.ndim else tirx.const(float(f), "float32") for f in (first, second)]

        def term(index, q, factor, more):
            by = factor[index[-1]] if isinstance(factor, te.Tensor) else factor
            return multiply_add(q[index].astype("float32"), by, more, fused)

        def element(*i):
            total = term(i, x, factors[0], term(i, y, factors[1], tirx.const(start, "float32")))
            return _quantized(total, zero, lo, hi, dtype, small)

        return te.compute(x.shape, element, name="add")

    return builder.call_te(compute, a, b, *vectors, primfunc_name_hint="quantized_add")


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
            return _quantized(y / tirx.const(float(step), "float32"), z, lo, hi, dtype, False)

        return te.compute(x.shape, element, name="affine")

    return builder.call_te(compute, q, graph.const(factor), graph.const(offset), primfunc_name_hint="quantized_affine")


def rescale(builder: BlockBuilder, q: Expr, scale: float, zero: int, out: tuple) -> Expr:
    """quantize(dequantize(q)); `out` as for `affine`."""
    step, z, lo, hi, dtype = out
    small = 2**8 * float(scale) / float(step) <= LARGEST

    def compute(x):
        def element(*i):
            real = (x[i].astype("int32") - zero).astype("float32") * tirx.const(float(scale), "float32")
            return _quantized(real / tirx.const(float(step), "float32"), z, lo, hi, dtype, small)

        return te.compute(x.shape, element, name="rescale")

    return builder.call_te(compute, q, primfunc_name_hint="rescale")


def multiply_add(x, y, z, fused: bool):
    """x * y + z, rounded once when `fused`, else twice: LLVM would choose by what is around it."""
    if fused:
        return tirx.call_llvm_pure_intrin("float32", "llvm.fma", x, y, z)
    return fence(x * y) + z


def fence(x):
    """x, rounded before it is part of anything else."""
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", x)


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
