"""Depthwise convolution, channels last: vectors along the channels, a few pixels of a row at a time.

    y[n, h, w, c*m + j] = sum over kh, kw of x[n, h*sh + kh*dh - top, w*sw + kw*dw - left, c] * weight[kh, kw, c*m + j]

In integers the products are formed in int16, where u8 x s8 always fits, and summed in int32; `woven` has those on dot
products, scheduled here too.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, MACS, generic
from tvmcompress.kernels.choices import KEY, Choose, first
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.tile import straight, whole_vectors
from tvmcompress.kernels.tiles import lanes_for, round_up

CACHE_LINE = 64  # bytes
REMOTE = 0.4  # of a line from the cache of another core, more than one of its own; in units of a copy
SPILT = 0.8  # of each copy, when copies fill the second-level cache


def pack(weight: np.ndarray, isa: Isa) -> np.ndarray:
    """(O, 1, KH, KW) to (KH, KW, O), O padded with zeros to whole vectors."""
    oc, _, kh, kw = weight.shape
    packed = np.zeros((kh, kw, round_up(oc, lanes_for(isa, oc))), weight.dtype)
    packed[..., :oc] = weight[:, 0].transpose(1, 2, 0)
    return packed


def strips(isa: Isa, width: int, chunk: int, outputs: int = 1) -> list[tuple[int, int]]:
    """Pixels of a row (of `outputs` results each) by vectors of channels that registers hold, the most pixels first.

    They are divisors, so that nothing hangs over.
    """
    most = max(min(8, isa.registers // 3) // outputs, 1)
    pixels = [p for p in range(most, 0, -1) if width % p == 0]
    vectors = [v for v in (2, 1) if chunk % v == 0]
    return [(p, v) for p in pixels for v in vectors if v == 1 or p * outputs * v + 2 <= isa.registers]


def compute(x: te.Tensor, weight: te.Tensor, conv: Conv2d, isa: Isa, fill: int = 0) -> te.Tensor:
    """x (n, h, w, c), packed weight, result (n, oh, ow, oc) in float32 or int32; `fill` is what padding holds."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
    top, left, _, _ = conv.padding
    oh, ow = conv.out
    multiplier = conv.oc // conv.c
    lanes = lanes_for(isa, conv.oc)
    source, channels = x, round_up(conv.oc, lanes)
    # Narrow floats are made wide once for all taps, in the copy that padding costs anyway.
    read = "float32" if str(x.dtype) in ("bfloat16", "float16") else str(x.dtype)
    if any(conv.padding) or channels != conv.oc:
        cp = round_up(conv.c, lanes) if multiplier == 1 else -(-channels // multiplier)
        rows, cols = (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1

        def padded(n, h, w, c):
            inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
            if cp != conv.c:
                inside = tirx.all(inside, c < conv.c)
            return tirx.if_then_else(inside, x[n, h - top, w - left, c].astype(read), tirx.const(fill, read))

        source = te.compute((conv.n, rows, cols, cp), padded, name="pad")
    ry, rx = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    wide = str(weight.dtype) not in ("int8", "uint8")

    def term(n, h, w, b, v):
        c = b * lanes + v
        data = source[n, h * sh + ry * dh, w * sw + rx * dw, c // multiplier if multiplier > 1 else c]
        taps = weight[ry, rx, c]
        if not str(x.dtype).startswith(("int", "uint")):
            return data.astype("float32") * taps.astype("float32")
        if wide:
            return data.astype("int32") * taps.astype("int32")
        return (data.astype("int16") * taps.astype("int16")).astype("int32")

    y = te.compute(
        (conv.n, oh, ow, channels // lanes, lanes),
        lambda *i: te.sum(term(*i), axis=[ry, rx]),
        name="depthwise",
        attrs={FAMILY: "depthwise", KEY: key(conv, str(x.dtype)), MACS: conv.macs, "stride": sh},
    )
    return te.compute((conv.n, oh, ow, conv.oc), lambda n, h, w, c: y[n, h, w, c // lanes, c % lanes], name="crop")


def bands(
    isa: Isa,
    rows: int,
    chunks: int,
    row_bytes: int,
    line_bytes: int,
    kernel: int,
    stride: int,
    tasks: int,
    shares: int,
) -> list[tuple[int, int]]:
    """Rows of the result and vectors of channels that one task makes from padded copies of its own, the best first.

    There are `chunks` vectors of channels. One of them takes `line_bytes` of a pixel that is read, and `row_bytes` of a
    row of the copies. Rows that two bands share are copied twice, and lines of the cache that two chunks share are read
    twice; copies should stay in the first-level cache, or else in a small part of the second, for what is copied and
    what is made go through that, too. Layers before and behind are divided by rows: with channels for each core it
    reads what others made, line by line, unless bands are a multiple of `shares`. `tasks`: wanted at least.
    """
    found = []
    for height in divisors(rows):
        for chunk in divisors(chunks):
            count = rows // height * (chunks // chunk)
            copied = (height - 1) * stride + kernel
            size = copied * row_bytes * chunk
            cost = copied / (height * stride) + 0.3 * max(CACHE_LINE / (chunk * line_bytes) - 1, 0)
            cost += 0 if size <= isa.l1d * 3 // 4 else 0.1 + max(SPILT * (size / isa.l2 - 1 / 8), 0)
            cost += REMOTE * line_bytes / CACHE_LINE * (rows // height % shares > 0)
            found.append((cost + 4 * max(tasks / count - 1, 0) + 0.02 * count / tasks, (height, chunk)))
    return [band for _, band in sorted(found)]


def divisors(value: int) -> list[int]:
    return [n for n in range(1, value + 1) if value % n == 0]


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Bands of rows in parallel, each with a padded copy of its own; a strip of pixels by one or two vectors of
    channels in registers. For `woven` the copy is of groups, and several results of one group belong to a pixel."""
    before, anchor, after = generic.around_anchor(sch)
    for block in after[:-1]:
        sch.compute_inline(block)
    last = after[-1]
    facts = sch.get(anchor).annotations
    dot = str(facts.get("dot", ""))
    work = generic.extent(sch, sch.get_loops(anchor))
    n, h, w, *several, c, c_inner, kh, kw = sch.get_loops(anchor)
    rows, columns, chunks = (generic.extent(sch, [loop]) for loop in (h, w, c))
    outputs, lanes = generic.extent(sch, several), generic.extent(sch, [c_inner])
    # Loads, and the epilogue, are more work than the few products.
    large = isa.cores > 1 and work >= generic.PARALLEL_MACS // 4
    height, chunk, ragged = 1, chunks, 0
    if before:
        tasks = 4 * isa.cores if large else 1
        shares = isa.cores // math.gcd(isa.cores, generic.extent(sch, [n])) if large else 1
        window = generic.extent(sch, [kh]), int(facts["stride"])
        found = bands(isa, rows, chunks, *copies(sch, before, chunks), *window, tasks, shares)
        ragged = 0 if several else hanging_over(sch, before[0], lanes)
        # Of chunks of a row of them the last one would have to be told from the others.
        found = [band for band in found if band[1] == chunks] if ragged else found
        height, chunk = choose("band", found)
    pixels, vectors = choose("strip", strips(isa, columns, chunk, outputs))
    h_band, h = sch.split(h, [None, height])
    c_band, c = sch.split(c, [None, chunk])
    w_outer, w_inner = sch.split(w, [None, pixels])
    c_outer, c_vector = sch.split(c, [None, vectors])
    sch.reorder(n, h_band, c_band, h, w_outer, c_outer, kh, kw, w_inner, *several, c_vector, c_inner)
    sch.reverse_compute_at(last, c_outer, preserve_unit_loops=True)
    for block in reversed(before):
        sch.compute_at(block, c_band, preserve_unit_loops=True)
    for block in before:
        # Whether a pixel is inside does not depend on its channels: those are the vector.
        widest = generic.vector_lanes(sch, block, isa) // lanes
        loop, width = sch.get_loops(block)[-1], lanes * math.gcd(chunk, widest)
        if ragged:
            whole = generic.extent(sch, [loop]) - lanes
            loop, *tails = sch.loop_partition(loop, [whole, lanes - ragged, None], preserve_unit_iters=False)
            width = lanes
            for tail in tails[1:]:
                sch.vectorize(tail)
        _, inner = sch.split(loop, [None, width])
        sch.vectorize(inner)
    if isa.cores > 1:
        count = choose("tasks", first(3 if large else 0, range(4)))
        if count:
            sch.parallel(sch.fuse(*(n, h_band, c_band)[:count]))
    for loop in (kh, kw, w_inner, *several, c_vector):
        sch.unroll(loop)
    if not dot:
        sch.vectorize(c_inner)
    straight(sch, last, 2, whole_vectors(sch, last, isa, lanes))
    init = sch.decompose_reduction(anchor, kh)
    if dot:
        sch.tensorize(c_inner, dot)
    straight(sch, init, 2 + len(several))


def hanging_over(sch: Schedule, block: SBlockRV, lanes: int) -> int:
    """Channels of a copy that what is copied has not: a vector with a condition on its lanes would become one element
    after the other."""
    read, made = (int(region.source.ty.shape[-1]) for region in (sch.get(block).reads[0], sch.get(block).writes[0]))
    return made - read if made > max(read, lanes) else 0


def copies(sch: Schedule, before: list, chunks: int) -> tuple[int, int]:
    """Bytes that one vector of channels takes of a row of the copies, and of a pixel of what is copied."""

    def size(region) -> int:
        return tvm.DataType(str(region.source.ty.dtype)).bits // 8

    made = [sch.get(block).writes[0] for block in before]
    row = sum(size(region) * math.prod(int(d) for d in region.source.ty.shape[2:]) for region in made)
    source = sch.get(before[0]).reads[0]
    return row // chunks, max(size(source) * int(source.source.ty.shape[-1]) // chunks, 1)
