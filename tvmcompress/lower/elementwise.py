"""Sums and batch norms of 8-bit tensors, rounded as ONNX Runtime rounds them, and sums of these with what a product
gives: kernels for what `quantize` ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.kernels import quantized
from tvmcompress.lower.quantized_form import byte, greatest, sums_of


@dataclass(frozen=True)
class Out:
    """The result: its scale, zero point, least and greatest value, and dtype."""

    scale: np.float32
    zero: int
    low: int
    high: int
    dtype: str


def add(rw: Rewriter, x: Expr, out: Out, fused: bool) -> Expr | None:
    """a + b and a - b of two tensors of one shape, bytes or a product's sums; None where `x` is something else.

    Of bytes the formula of ONNX Runtime's QLinearAdd, bit by bit: with the ratios of the scales, and zero points in one
    number.
    """
    call = rw.definition(x)
    if call is None or op_name(call) not in ("relax.add", "relax.subtract"):
        return None
    a, b = (byte(rw, operand) or sums_of(rw, operand) for operand in call.args)
    if a is None or b is None or graph.shape(a.q) != graph.shape(b.q):
        return None
    sign = np.float32(1 if op_name(call) == "relax.add" else -1)
    factors = (np.asarray(a.scale / out.scale, np.float32), np.asarray(sign * b.scale / out.scale, np.float32))
    if graph.dtype(a.q) == graph.dtype(b.q) == out.dtype:
        far = factors[1] * np.float32(b.zero)
        # With `fused` the first product is not rounded before it is added.
        both = float(factors[0]) * int(a.zero) + float(far) if fused else factors[0] * np.float32(a.zero) + far
        start, zero = float(np.float32(out.zero) - np.float32(both)), 0
    elif "int32" in (graph.dtype(a.q), graph.dtype(b.q)):  # whose zero points are 0
        parts = [float(f) * int(part.zero) for f, part in zip(factors, (a, b)) if part.per_tensor]
        start, zero = float(np.float32(-sum(parts))), out.zero
    else:
        return None
    most = greatest(rw, a.q) * abs(factors[0]) + greatest(rw, b.q) * abs(factors[1]) + abs(start)
    small = bool(np.all(most <= quantized.LARGEST))
    terms = [(part.q, factor) for part, factor in zip((a, b), factors)]
    return quantized.add(rw.builder, terms, start, zero, out.low, out.high, out.dtype, fused, small)


def affine(rw: Rewriter, x: Expr, out: Out) -> Expr | None:
    """A batch norm that could not be folded: a factor and an offset for each channel; None for something else."""
    total = rw.definition(x)
    product = rw.definition(total.args[0]) if total is not None and op_name(total) == "relax.add" else None
    if product is None or op_name(product) != "relax.multiply":
        return None
    found = byte(rw, product.args[0])
    if found is None:
        return None
    factor, offset = (channel_vector(found.q, operand) for operand in (product.args[1], total.args[1]))
    if factor is None or offset is None:
        return None
    return quantized.affine(
        rw.builder,
        found.q,
        float(found.scale),
        int(found.zero),
        np.ascontiguousarray(factor, np.float32),
        np.ascontiguousarray(offset, np.float32),
        (out.scale, out.zero, out.low, out.high, out.dtype),
    )


def channel_vector(x: Expr, other: Expr) -> np.ndarray | None:
    """A constant that varies at most along x's last axis, as one value a channel."""
    if not graph.is_const(other):
        return None
    value, rank = graph.value(other), len(x.ty.shape)
    channels = graph.shape(x)[-1]
    if value.ndim > rank:
        return None
    if value.size == 1:
        return np.broadcast_to(value.reshape(()), (channels,))
    if value.size != channels or value.shape[-1] != channels:
        return None
    return value.reshape(channels)
