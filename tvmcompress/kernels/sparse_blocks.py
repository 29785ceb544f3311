"""Block-sparse convolution and matrix product, channels last: the register tile, over a list of blocks.

    y[n, pixel, p, v] = sum over blocks j of panel p, d of x[n, pixel + offset[j] + d] * values[j, v, d]

A panel is `width` neighbouring output channels, whole vectors of sums; a block is a panel by one input, or by as many
as a dot product takes. `pixels` of a tile by a panel of sums stay in registers over the whole list: a broadcast element
of x for each multiply-add, as in the dense kernel, so that a block costs what it costs there.

Other lists run in the same loop: those of `sparse_nm`, whose lanes pick elements of x by places of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tvm
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import CODE, MACS, code_blocks, generic
from tvmcompress.kernels.choices import Choices, Choose, first, untuned
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import (
    BITS,
    SPARSE_MACS,
    Product,
    Streams,
    as_read,
    attributes,
    by_depth,
    called,
    coarse,
    narrow,
    result_axes,
    wide,
)
from tvmcompress.kernels.tile import broadcast_from, straight, whole_vectors
from tvmcompress.kernels.tiles import round_up

NAME = "sparse_blocks"
COPY, COPIED = 4000, 3  # cycles of a pass over an image, and of each of its vectors
LATENCY = 8  # multiply-adds in flight that keep two ports busy


@dataclass(frozen=True)
class Plan:
    """`rows` by `columns` pixels are a tile; `vectors` of sums a panel, one where elements are `picked`."""

    product: Product
    rows: int
    columns: int
    vectors: int
    picked: code_blocks.Picked | None = None

    @property
    def width(self) -> int:
        """Output channels of a panel."""
        return self.vectors * self.product.lanes

    def panels(self, conv: Conv2d) -> int:
        return -(-conv.oc // self.width)


@dataclass(frozen=True)
class Source:
    """The image that is read: rows and columns with padding, and what hangs over the last tile."""

    rows: int
    columns: int

    def padded(self, conv: Conv2d) -> bool:
        return any(conv.padding) or self.rows > conv.h or self.columns > conv.w


def source(conv: Conv2d, p: Plan) -> Source:
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = conv.kernel, conv.strides, conv.dilation, conv.out
    rows = (round_up(oh, p.rows) - 1) * sh + (kh - 1) * dh + 1
    columns = (round_up(ow, p.columns) - 1) * sw + (kw - 1) * dw + 1
    if any(conv.padding):
        return Source(rows, columns)
    return Source(max(rows, conv.h), max(columns, conv.w))


def plan(
    conv: Conv2d, isa: Isa, product: Product, vectors: int, density: float, choices: Choices = untuned,
    picked: code_blocks.Picked | None = None,
) -> Plan:  # fmt: skip
    """`vectors`: of a panel, as the blocks of the weights are, of which the share `density` is not zero."""
    (oh, ow), others = conv.out, picked.pick.registers if picked else 1  # for neither sums nor weights
    found = []
    for rows in range(1, min(oh, 8) + 1):
        for columns in [ow] if rows > 1 else range(1, min(ow, isa.registers) + 1):
            if (rows * columns + 1) * vectors + others <= isa.registers:
                p = Plan(product, rows, columns, vectors, picked)
                found.append((cost(conv, p, isa, density), rows, columns))
    tiles = [(rows, columns) for _, rows, columns in sorted(found)]
    rows, columns = choices(name_of(conv, product, vectors, picked))("tile", tiles)
    return Plan(product, rows, columns, vectors, picked)


def estimate(conv: Conv2d, p: Plan, isa: Isa, density: float) -> float:
    """Cycles of the tile that is thought the fastest, whichever a tuner chose: what it measures is not estimated."""
    return cost(conv, plan(conv, isa, p.product, p.vectors, density, picked=p.picked), isa, density)


def cost(conv: Conv2d, p: Plan, isa: Isa, density: float) -> float:
    """Estimated cycles of the slowest thread at a `density` of blocks.

    A block takes `pixels` times `vectors` multiply-adds on two ports, at least as many as hide the latency of one; and
    a broadcast for each pixel, the weights and the offset on two ports. Copies for the sake of padding come before.
    Where elements are picked a permutation comes with each multiply-add, and one step widens the places.
    """
    oh, ow = conv.out
    pixels = p.rows * p.columns
    block = max(pixels * p.vectors, pixels + p.vectors + 1, LATENCY) / 2
    if p.picked:
        block = max(pixels * (1 + p.picked.pick.effort), pixels + 3, LATENCY) / 2 + 1
    blocks = density * -(-conv.c // p.product.depth) * conv.kernel[0] * conv.kernel[1]
    tasks = conv.n * math.ceil(oh / p.rows) * math.ceil(ow / p.columns) * p.panels(conv)
    each = blocks * block + 10 + pixels * p.vectors
    image = source(conv, p)
    copied = COPY + COPIED * image.rows * image.columns * conv.c / p.product.lanes if image.padded(conv) else 0
    return (tasks * each + conv.n * copied) / min(isa.cores, tasks)


def name_of(conv: Conv2d, product: Product, vectors: int, picked: code_blocks.Picked | None) -> str:
    """What the kernel is known by."""
    return f"{'picked' if picked else 'blocks'} {vectors * product.lanes}x{product.depth} {key(conv, product.data)}"


def pack(weight: np.ndarray, conv: Conv2d, p: Plan) -> Streams:
    """(O, C, KH, KW) as the blocks that are not zero, panel by panel in the order of the reduction."""
    product, (dh, dw) = p.product, conv.dilation
    taps = by_depth(weight, product.depth)
    o, kh, kw, steps, depth = taps.shape
    taps = np.pad(taps, ((0, -o % p.width), *((0, 0),) * 4)).reshape(p.panels(conv), p.width, -1, depth)
    there = taps.any((1, 3))
    panel, at = np.nonzero(there)
    pixel = round_up(conv.c, depth)  # channels of the image, of which the last may have no weights
    row = source(conv, p).columns * pixel
    where = np.arange(kh)[:, None, None] * dh * row + np.arange(kw)[:, None] * dw * pixel
    where = (where + np.arange(steps) * depth).reshape(-1)
    values = np.zeros((coarse(max(len(at), 1)), p.width * depth), weight.dtype)
    values[: len(at)] = taps.transpose(0, 2, 1, 3)[panel, at].reshape(len(at), p.width * depth)
    offsets = np.zeros(len(values), np.int64)
    offsets[: len(at)] = where[at]
    pointers = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
    values = np.ascontiguousarray(values)
    return Streams(as_read(values, product), narrow(offsets), pointers)


PROGRAM = """
@T.prim_func(private=True, s_tir=True)
def sparse_blocks(
    x: T.Buffer((n, length), data),
    values: T.Buffer((count, width * depth), weight),
    offsets: T.Buffer((count,), index),
    pointers: T.Buffer((panels + 1,), "int32"),
{places}    out: T.Buffer(shape, sums),
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 4}})
    y = T.sblock_alloc_buffer((n, heights * rows, widths * columns, panels, width), sums)
    for i, h, w, b in T.grid(n, heights, widths, panels):
        with T.sblock("sparse_blocks"):
            vi, vh, vw, vb = T.axis.remap("SSSS", [i, h, w, b])
            T.reads(
                x[vi, 0:length], values[0:count, 0 : width * depth], offsets[0:count], pointers[vb : vb + 2], {read}
            )
            T.writes(
                y[vi, vh * rows : vh * rows + rows, vw * columns : vw * columns + columns, vb, 0:width]
            )
            T.sblock_attr(facts)
            T.evaluate(call(
                name, T.address_of(x[vi, vh * rows * down + vw * columns * right]),
                T.address_of(values[pointers[vb], 0]), T.address_of(offsets[pointers[vb]]), {given}
                pointers[vb + 1] - pointers[vb], T.address_of(y[vi, vh * rows, vw * columns, vb, 0]),
                T.address_of(y[vi, vh * rows, vw * columns + 1, vb, 0]),
                T.address_of(y[vi, vh * rows + 1, vw * columns, vb, 0]),
                T.address_of(y[vi, vh * rows + (rows - 1), vw * columns + (columns - 1), vb, width - 1]),
            ))
    for {indices} in T.grid({extents}):
        with T.sblock("crop"):
            {axes} = T.axis.remap("{kinds}", [{indices}])
            out[{axes}] = y[{image}, {across}, {last} // width, {last} % width]
"""
PICKED = {
    "places": '    places: T.Buffer((count, width * depth), "uint8"),\n',
    "read": "places[0:count, 0 : width * depth]",
    "given": "T.address_of(places[pointers[vb], 0]),",
}


def program(conv: Conv2d, p: Plan, streams: Streams, shape: Sequence[int]) -> PrimFunc:
    """See `written`."""
    values = streams.values
    return written(conv, p, len(values), str(values.dtype), str(streams.offsets.dtype), tuple(shape))


@lru_cache(256)
def written(conv: Conv2d, p: Plan, count: int, weight: str, index: str, shape: tuple[int, ...]) -> PrimFunc:
    """x (n, elements of an image), then `Streams.arrays`; `shape` is that of the result: (n, oh, ow, oc), or of a
    matrix product (…, ow, oc) with at most one axis before that is not 1."""
    product, (oh, ow), (sh, sw), image = p.product, conv.out, conv.strides, source(conv, p)
    channels = round_up(conv.c, product.depth)
    down, right, size = sh * image.columns * channels, sw * channels, product.bytes // product.depth
    pixels = [(r, q) for r in range(p.rows) for q in range(p.columns)]
    function = code_blocks.blocks(
        product.words, pixels, p.vectors, right * size, down * size, BITS[index], size, p.picked
    )
    names = {
        "T": T, "n": conv.n, "length": image.rows * image.columns * channels, "data": product.data,
        "count": count, "width": p.width, "depth": product.depth, "weight": weight,
        "index": index, "panels": p.panels(conv), "shape": [*shape], "sums": product.sums,
        "heights": -(-oh // p.rows), "widths": -(-ow // p.columns), "rows": p.rows, "columns": p.columns,
        "down": down, "right": right, "name": function.name, "call": called,
        "facts": attributes(NAME, name_of(conv, product, p.vectors, p.picked), conv, product, [function]),
    }  # fmt: skip
    axes, more = result_axes(shape, (conv.n, oh, ow, conv.oc)), PICKED if p.picked else dict.fromkeys(PICKED, "")
    return script.program(PROGRAM.format(**axes, **more), wide(names))


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Tiles in parallel, what is fused behind right after each."""
    _, anchor, after = generic.around_anchor(sch)
    after, larger = broadcast_from(sch, after)
    for block in [*after[:-1], *larger[:-1]]:
        sch.compute_inline(block)
    last = after[-1]
    i, h, w, b = sch.get_loops(anchor)
    # Panels outermost: a thread keeps its weights in the cache while it walks the pixels. Where the cache has room for
    # all of them a thread reads and writes whole pixels, which the next kernel's same thread reads again.
    values = sch.get(anchor).reads[1].source.ty
    nbytes = math.prod(int(d) for d in values.shape) * tvm.DataType(str(values.dtype)).bits // 8
    by_panels = generic.extent(sch, [h, w]) > 4 and nbytes > isa.l2 * 3 // 4
    panels_first = choose("outermost", ("panels", "pixels") if by_panels else ("pixels", "panels")) == "panels"
    parallel = [i, b, h, w] if panels_first else [i, h, w, b]
    sch.reorder(*parallel)
    sch.reverse_compute_at(last, parallel[-1], preserve_unit_loops=True)
    if isa.cores > 1:
        fused = len(parallel) - (generic.extent(sch, parallel[:-1]) >= 4 * isa.cores)
        small = int(sch.get(anchor).annotations[MACS]) < SPARSE_MACS
        count = choose("tasks", first(0 if small else fused, range(len(parallel) + 1)))
        if count:
            sch.parallel(sch.fuse(*parallel[:count]))
    straight(sch, last, 2, whole_vectors(sch, last, isa))
    sch.annotate(sch.get_loops(anchor)[0], "pragma_import_llvm", sch.get(anchor).annotations[CODE])
    for block in larger[-1:]:
        generic.schedule_elementwise(sch, block, isa, choose)
