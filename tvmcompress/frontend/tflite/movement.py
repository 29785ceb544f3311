"""Operators that move data: reshape, transpose, slice, concat, pad, gather …"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import Expr

from tvmcompress.frontend.tflite.context import TO_NCHW, Context
from tvmcompress.frontend.tflite.elementwise import operand
from tvmcompress.frontend.tflite.layers import activation
from tvmcompress.frontend.tflite.reduction import AXIS, placed
from tvmcompress.ir import graph


def reshape(ctx: Context) -> None:
    if ctx.has(1):
        shape = ctx.integers(1)
    else:
        shape = [int(d) for d in ctx.operator.options.NewShapeAsNumpy()]
    ctx.output(ctx.emit(relax.op.reshape(ctx.input(0), shape)))


def squeeze(ctx: Context) -> None:
    options = ctx.operator.options
    shape = ctx.shape(0)
    axes = [int(a) % len(shape) for a in options.SqueezeDimsAsNumpy()] if options.SqueezeDimsLength() else []
    kept = [d for i, d in enumerate(shape) if i not in (axes or [i for i, d in enumerate(shape) if d == 1])]
    ctx.output(ctx.emit(relax.op.reshape(ctx.input(0), kept)))


def expand_dims(ctx: Context) -> None:
    shape = list(ctx.shape(0))
    axis = ctx.integers(1)[0]
    shape.insert(axis if axis >= 0 else axis + len(shape) + 1, 1)
    ctx.output(ctx.emit(relax.op.reshape(ctx.input(0), shape)))


def shape_of(ctx: Context) -> None:
    ctx.define(ctx.operator.outputs[0], np.array(ctx.shape(0)))


def rank_of(ctx: Context) -> None:
    ctx.define(ctx.operator.outputs[0], np.array(ctx.rank(0)))


def transpose(ctx: Context) -> None:
    """A permutation that gives NCHW from NHWC or back costs nothing where the value is kept in that layout."""
    ctx.output(ctx.permute(ctx.input(0, ctx.is_nchw(0)), inner_axes(ctx, ctx.integers(1))))


def inner_axes(ctx: Context, axes: list[int]) -> list[int]:
    axes = [a % len(axes) for a in axes]
    return [AXIS[a] for a in axes] if ctx.is_nchw(0) else axes


def concatenation(ctx: Context) -> None:
    options = ctx.operator.options
    places = range(len(ctx.operator.inputs))
    rank = ctx.rank(0)
    nchw = rank == 4 and any(ctx.is_nchw(p) for p in places)
    axis = options.Axis() % rank
    parts = [operand(ctx, p, nchw) for p in places]
    out = ctx.emit(relax.op.concat(parts, AXIS[axis] if nchw else axis))
    ctx.output(activation(ctx, out), nchw=nchw)


def pack(ctx: Context) -> None:
    axis = ctx.operator.options.Axis()
    axis = axis % (ctx.rank(0) + 1)
    parts = []
    for place in range(len(ctx.operator.inputs)):
        x = ctx.input(place)
        shape = list(graph.shape(x))
        parts.append(ctx.emit(relax.op.reshape(x, [*shape[:axis], 1, *shape[axis:]])))
    ctx.output(ctx.emit(relax.op.concat(parts, axis)))


def unpack(ctx: Context) -> None:
    axis = ctx.operator.options.Axis() % ctx.rank(0)
    x = ctx.input(0)
    shape = list(graph.shape(x))
    for place in range(len(ctx.operator.outputs)):
        part = ctx.emit(relax.op.strided_slice(x, [axis], [place], [place + 1]))
        ctx.output(ctx.emit(relax.op.reshape(part, shape[:axis] + shape[axis + 1 :])), place)


def split_at(ctx: Context, data: int, axis: int, sizes: list[int]) -> None:
    (inner,), nchw = placed(ctx, [axis], data)
    x = ctx.input(data, nchw)
    begin = 0
    for place, size in enumerate(sizes):
        part = ctx.emit(relax.op.strided_slice(x, [inner], [begin], [begin + size]))
        ctx.output(part, place, nchw=nchw)
        begin += size


def split(ctx: Context) -> None:
    axis, count = ctx.integers(0)[0], len(ctx.operator.outputs)
    split_at(ctx, 1, axis, [ctx.shape(1)[axis] // count] * count)


def split_v(ctx: Context) -> None:
    sizes, axis = ctx.integers(1), ctx.integers(2)[0]
    known = sum(s for s in sizes if s >= 0)
    split_at(ctx, 0, axis, [s if s >= 0 else ctx.shape(0)[axis] - known for s in sizes])


def slice_(ctx: Context) -> None:
    begin, sizes = ctx.integers(1), ctx.integers(2)
    axes, nchw = placed(ctx, list(range(len(begin))))
    ends = [b + s if s >= 0 else d for b, s, d in zip(begin, sizes, ctx.shape(0))]
    ctx.output(ctx.emit(relax.op.strided_slice(ctx.input(0, nchw), axes, begin, ends)), nchw=nchw)


def strided_slice(ctx: Context) -> None:
    """As NumPy's x[b:e:s, …, None, i]; the masks say which entry is which."""
    begin, end, strides = (ctx.integers(i) for i in (1, 2, 3))
    options = ctx.operator.options
    if options.Offset():
        end = [b + e for b, e in zip(begin, end)]
    shape = list(ctx.shape(0))
    added = sum(options.NewAxisMask() >> i & 1 for i in range(len(begin)))
    key: list[Any] = []
    for i, (b, e, s) in enumerate(zip(begin, end, strides)):
        if options.EllipsisMask() >> i & 1:
            key += [slice(None)] * (len(shape) - (len(begin) - 1 - added))
        elif options.NewAxisMask() >> i & 1:
            key.append(None)
        elif options.ShrinkAxisMask() >> i & 1:
            key.append(b)
        else:
            no_begin, no_end = options.BeginMask() >> i & 1, options.EndMask() >> i & 1
            key.append(slice(None if no_begin else b, None if no_end else e, s))
    x = ctx.input(0)
    axis, result, cuts, flips = 0, [], [], []
    for entry in [*key, *[slice(None)] * (len(shape) - sum(k is not None for k in key))]:
        if entry is None:
            result.append(1)
            continue
        if isinstance(entry, int):
            at = entry % shape[axis]
            cuts.append((axis, at, at + 1, 1))
        else:
            steps = range(*entry.indices(shape[axis]))
            result.append(len(steps))
            low, high = (min(steps[0], steps[-1]), max(steps[0], steps[-1]) + 1) if len(steps) else (0, 0)
            cuts.append((axis, low, high, abs(steps.step)))
            flips += [axis] if steps.step < 0 else []
        axis += 1
    cuts = [c for c in cuts if c[1:] != (0, shape[c[0]], 1)]
    if cuts:
        axes, lows, highs, steps_ = (list(v) for v in zip(*cuts))
        x = ctx.emit(relax.op.strided_slice(x, axes, lows, highs, steps_))
    for flipped in flips:
        x = ctx.emit(relax.op.flip(x, flipped))
    if list(graph.shape(x)) != result:
        x = ctx.emit(relax.op.reshape(x, result))
    ctx.output(x)


def pad(ctx: Context) -> None:
    """PAD, PADV2: with real zero, or the value given."""
    widths = np.array(ctx.integers(1)).reshape(-1, 2)
    nchw = ctx.is_nchw(0)
    widths = widths[list(TO_NCHW)] if nchw else widths
    number = float(ctx.const(2).floats().reshape(-1)[0]) if ctx.has(2) else 0.0
    x = ctx.input(0, nchw)
    ctx.output(ctx.emit(relax.op.nn.pad(x, [int(w) for w in widths.reshape(-1)], "constant", number)), nchw=nchw)


def mirror_pad(ctx: Context) -> None:
    """MIRROR_PAD by an index along each padded axis; the edge itself is repeated in the symmetric mode."""
    widths = np.array(ctx.integers(1)).reshape(-1, 2)
    symmetric = ctx.operator.options.Mode() == 1
    axes, nchw = placed(ctx, list(range(len(widths))))
    x = ctx.input(0, nchw)
    for axis, (before, after), size in zip(axes, widths.tolist(), ctx.shape(0)):
        if before or after:
            rows = np.arange(size, dtype=np.int32)
            index = np.pad(rows, (before, after), "symmetric" if symmetric else "reflect")
            x = ctx.emit(relax.op.take(x, graph.const(index), axis, mode="clip"))
    ctx.output(x, nchw=nchw)


def gather(ctx: Context) -> None:
    options = ctx.operator.options
    axis = options.Axis() % ctx.rank(0)
    if options.BatchDims():
        raise ctx.fail(f"batch_dims={options.BatchDims()} is not supported")
    ctx.output(ctx.emit(relax.op.take(ctx.input(0), ctx.input(1), axis, mode="clip")))


def gather_nd(ctx: Context) -> None:
    index = ctx.input(1)
    ctx.output(ctx.emit(relax.op.gather_nd(ctx.input(0), ctx.emit(relax.op.astype(index, "int64")))))


def embedding_lookup(ctx: Context) -> None:
    ctx.output(ctx.emit(relax.op.take(ctx.input(1), ctx.input(0), 0, mode="clip")))


def tile(ctx: Context) -> None:
    ctx.output(ctx.emit(relax.op.tile(ctx.input(0), ctx.integers(1))))


def broadcast_to(ctx: Context) -> None:
    ctx.output(ctx.emit(relax.op.broadcast_to(ctx.input(0), ctx.integers(1))))


def reverse(ctx: Context) -> None:
    x = ctx.input(0)
    for axis in ctx.integers(1):
        x = ctx.emit(relax.op.flip(x, axis % ctx.rank(0)))
    ctx.output(x)


def fill(ctx: Context) -> None:
    value = ctx.input(1)
    ctx.output(ctx.emit(relax.op.broadcast_to(value, ctx.integers(0))))


def range_(ctx: Context) -> None:
    start, limit, delta = (ctx.const(i).array.reshape(-1)[0] for i in range(3))
    ctx.define(ctx.operator.outputs[0], np.arange(start, limit, delta))


def one_hot(ctx: Context) -> None:
    depth = ctx.integers(1)[0]
    on, off = (ctx.const(i).floats().reshape(-1)[0] for i in (2, 3))
    dtype = ctx.graph.tensors[ctx.operator.outputs[0]].dtype
    values = (relax.prim_value(float(v)) if dtype.startswith("float") else relax.prim_value(int(v)) for v in (on, off))
    ctx.output(ctx.emit(relax.op.one_hot(ctx.input(0), *values, depth, ctx.operator.options.Axis())))


def depth_to_space(ctx: Context) -> None:
    """(n, h, w, b·b·c) -> (n, h·b, w·b, c)."""
    block = ctx.operator.options.BlockSize()
    n, h, w, c = ctx.shape(0)
    c //= block * block
    blocks = ctx.emit(relax.op.reshape(ctx.input(0), [n, h, w, block, block, c]))
    blocks = ctx.emit(relax.op.permute_dims(blocks, [0, 1, 3, 2, 4, 5]))
    ctx.output(ctx.emit(relax.op.reshape(blocks, [n, h * block, w * block, c])))


def space_to_depth(ctx: Context) -> None:
    """(n, h·b, w·b, c) -> (n, h, w, b·b·c)."""
    block = ctx.operator.options.BlockSize()
    n, h, w, c = ctx.shape(0)
    h, w = h // block, w // block
    blocks = ctx.emit(relax.op.reshape(ctx.input(0), [n, h, block, w, block, c]))
    blocks = ctx.emit(relax.op.permute_dims(blocks, [0, 1, 3, 2, 4, 5]))
    ctx.output(ctx.emit(relax.op.reshape(blocks, [n, h, w, block * block * c])))


def space_to_batch(ctx: Context) -> None:
    """(n, …s, c), padded -> (n · ∏b, …s/b, c)."""
    blocks, pads = ctx.integers(1), np.array(ctx.integers(2)).reshape(-1, 2)
    rank, spatial = ctx.rank(0), len(blocks)
    widths = [(0, 0), *((int(a), int(b)) for a, b in pads), *[(0, 0)] * (rank - 1 - spatial)]
    x: Expr = ctx.emit(relax.op.nn.pad(ctx.input(0), [w for pair in widths for w in pair]))
    n, *sizes = graph.shape(x)
    rest = sizes[spatial:]
    apart = [n, *(v for s, b in zip(sizes, blocks) for v in (s // b, b)), *rest]
    x = ctx.emit(relax.op.reshape(x, apart))
    inner, outer = [2 + 2 * i for i in range(spatial)], [1 + 2 * i for i in range(spatial)]
    x = ctx.emit(relax.op.permute_dims(x, [*inner, 0, *outer, *range(1 + 2 * spatial, len(apart))]))
    ctx.output(
        ctx.emit(relax.op.reshape(x, [n * int(np.prod(blocks)), *(s // b for s, b in zip(sizes, blocks)), *rest]))
    )


def batch_to_space(ctx: Context) -> None:
    """(n · ∏b, …s, c) -> (n, …s·b, c), cropped."""
    blocks, crops = ctx.integers(1), np.array(ctx.integers(2)).reshape(-1, 2)
    n, *sizes = ctx.shape(0)
    spatial = len(blocks)
    n //= int(np.prod(blocks))
    rest = sizes[spatial:]
    x: Expr = ctx.emit(relax.op.reshape(ctx.input(0), [*blocks, n, *sizes]))
    order = [spatial, *(v for i in range(spatial) for v in (spatial + 1 + i, i))]
    x = ctx.emit(relax.op.permute_dims(x, [*order, *range(2 * spatial + 1, 2 * spatial + 1 + len(rest))]))
    full = [s * b for s, b in zip(sizes, blocks)]
    x = ctx.emit(relax.op.reshape(x, [n, *full, *rest]))
    if crops.any():
        ends = [int(f - c) for f, c in zip(full, crops[:, 1])]
        x = ctx.emit(relax.op.strided_slice(x, list(range(1, spatial + 1)), [int(c) for c in crops[:, 0]], ends))
    ctx.output(x)


CONVERTERS: dict[str, Callable[[Context], None]] = {
    "RESHAPE": reshape,
    "SQUEEZE": squeeze,
    "EXPAND_DIMS": expand_dims,
    "SHAPE": shape_of,
    "RANK": rank_of,
    "TRANSPOSE": transpose,
    "CONCATENATION": concatenation,
    "PACK": pack,
    "UNPACK": unpack,
    "SPLIT": split,
    "SPLIT_V": split_v,
    "SLICE": slice_,
    "STRIDED_SLICE": strided_slice,
    "PAD": pad,
    "PADV2": pad,
    "MIRROR_PAD": mirror_pad,
    "GATHER": gather,
    "GATHER_ND": gather_nd,
    "EMBEDDING_LOOKUP": embedding_lookup,
    "TILE": tile,
    "BROADCAST_TO": broadcast_to,
    "REVERSE_V2": reverse,
    "FILL": fill,
    "RANGE": range_,
    "ONE_HOT": one_hot,
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_DEPTH": space_to_depth,
    "SPACE_TO_BATCH_ND": space_to_batch,
    "BATCH_TO_SPACE_ND": batch_to_space,
}
