"""Weights as integers: which scale, and how they are written in a program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmcompress.ir import graph, ops

SHRINK = np.linspace(1.0, 0.4, 25)  # candidates of the search for the scale of least squared error
CHUNK = 1 << 22  # elements worked on at a time, so that a big layer does not need many times its size


def symmetric_scales(rows: np.ndarray, bits: int, search: bool) -> np.ndarray:
    """The float32 scale of each row of `rows` (R, C), for integers -limit … limit, limit = 2^(bits-1) - 1.

    With `search` the scale has the least squared error among clipped ranges; else it covers the greatest magnitude.
    A row of zeros gets scale 1.
    """
    limit = 2 ** (bits - 1) - 1
    step = max(1, CHUNK // max(rows.shape[1], 1))
    parts = [scales_of(rows[i : i + step], limit, search) for i in range(0, len(rows), step)]
    return np.concatenate(parts).astype(np.float32)


def scales_of(rows: np.ndarray, limit: int, search: bool) -> np.ndarray:
    greatest = np.abs(rows).max(axis=1, initial=0).astype(np.float32) / limit
    greatest[greatest < np.finfo(np.float32).tiny] = 1
    if not search:
        return greatest
    best, least = greatest.copy(), np.full(len(rows), np.inf)
    for factor in SHRINK:
        scale = greatest * np.float32(factor)
        q = np.clip(np.rint(rows / scale[:, None]), -limit, limit)
        error = np.square(q * scale[:, None] - rows).sum(axis=1, dtype=np.float64)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def to_integers(rows: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """int8 (R, C): rows / scales, rounded half to even and clipped."""
    limit = 2 ** (bits - 1) - 1
    return np.clip(np.rint(rows / scales[:, None]), -limit, limit).astype(np.int8)


def per_channel(weight: np.ndarray, axis: int, search: bool) -> tuple[np.ndarray, np.ndarray]:
    """int8 integers in the shape of `weight`, and one float32 scale for each index of `axis` (a scalar if axis < 0)."""
    if axis < 0:
        scales = symmetric_scales(weight.reshape(1, -1), 8, search)
        return to_integers(weight.reshape(1, -1), scales, 8).reshape(weight.shape), scales.reshape(())
    moved = np.moveaxis(weight, axis, 0)
    rows = moved.reshape(len(moved), -1)
    scales = symmetric_scales(rows, 8, search)
    integers = to_integers(rows, scales, 8).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(integers, 0, axis)), scales


def emit_per_channel(
    rewriter: graph.Rewriter, name: str, integers: np.ndarray, scales: np.ndarray, axis: int
) -> graph.Expr:
    """dequantize(int8 constant, scales, 0), bound to `name`_w."""
    return rewriter.emit(ops.dequantize(graph.const(integers), scales, 0, max(axis, 0)), f"{name}_w")


@dataclass(frozen=True)
class Grouping:
    """Rows of `columns` weights in `count` groups of `size`; zeros pad the last when they do not divide."""

    columns: int
    count: int
    size: int

    @property
    def padded(self) -> int:
        return self.count * self.size


def grouping(columns: int, wanted: int) -> Grouping:
    """Groups of about `wanted` columns: exactly dividing ones when one of half to all that size exists.

    Sizes are even, since two 4-bit values share a byte.
    """
    for size in range(wanted, wanted // 2, -1):
        if size % 2 == 0 and columns % size == 0:
            return Grouping(columns, columns // size, size)
    count = max(1, round(columns / wanted))
    size = -(-columns // count)
    return Grouping(columns, count, size + size % 2)


def emit_groups(
    rewriter: graph.Rewriter, name: str, weight: np.ndarray, rows: int, groups: Grouping, bits: int, half_scales: bool
) -> graph.Expr:
    """The weight as groups along its rows, bound to `name`_w.

    weight -> reshape(dequantize(unpack_int4(packed (G, size/2)), scale (G,), 0, axis=0), shape of weight)

    With padding a reshape to (rows, padded) and a slice come before the last reshape; 8 bits need no unpacking.
    """
    matrix = weight.reshape(rows, groups.columns)
    if groups.padded != groups.columns:
        matrix = np.pad(matrix, ((0, 0), (0, groups.padded - groups.columns)))
    matrix = matrix.reshape(-1, groups.size)
    scales = symmetric_scales(matrix, bits, search=True)
    half = np.finfo(np.float16)
    if half_scales and scales.min() >= half.smallest_normal and scales.max() <= half.max:
        # Rounded first, so that the integers are chosen for the scale that will be used.
        scales = scales.astype(np.float16)
    integers = to_integers(matrix, scales.astype(np.float32), bits)
    if bits == 4:
        stored = rewriter.emit(ops.unpack_int4(graph.const(ops.pack_int4(integers))), f"{name}_w4")
    else:
        stored = graph.const(integers)
    zero = graph.const(0, "int8")
    real = rewriter.emit(relax.op.dequantize(stored, graph.const(scales), zero, 0, "float32"), f"{name}_wg")
    if groups.padded != groups.columns:
        real = rewriter.emit(relax.op.reshape(real, (rows, groups.padded)), f"{name}_wp")
        real = rewriter.emit(relax.op.strided_slice(real, [1], [0], [groups.columns]), f"{name}_ws")
    return rewriter.emit(relax.op.reshape(real, weight.shape), f"{name}_w")
