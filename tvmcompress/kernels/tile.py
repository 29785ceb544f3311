"""The register tile: what convolutions and matrix products have in common.

    y[outer…, p, b, v] += x[outer…, p, k…] * w[b, k…, v]    p: pixels or rows, b: blocks of channels, v: channels of one

`pixels` rows by `vectors` vector registers of sums stay in registers over the whole reduction. The extents of p and v
are multiples of the tile: what hangs over the edge is computed on padding and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from tvmcompress.isa import BF16_BITS, Isa
from tvmcompress.kernels import FAMILY, MACS, generic
from tvmcompress.kernels.choices import KEY, Choose, first
from tvmcompress.kernels.tiles import Tile

PART = "part"  # the block that stands for some channels of an array
GROUP = "group"  # the block that takes a group's channels out of a tile
FEW_STEPS = 32  # elements of a reduction


@dataclass(frozen=True)
class Plan:
    """Decisions for one product: the tile, the depth of the dot product (1: none), its name and its rows."""

    tile: Tile
    depth: int
    dot: str
    data: str  # dtype in which the kernel reads its activations
    rows: int = 1

    @property
    def sums(self) -> str:
        """The dtype of the sums."""
        return "int32" if self.data in ("int8", "uint8", "int16") else "float32"

    def blocks(self, channels: int) -> int:
        """Blocks that so many channels make."""
        return -(-channels // self.tile.block)


def attributes(key: str, macs: int, plan: Plan, outer: int, apart: bool = False) -> dict:
    """Annotations of the anchor block of the kernel `key`; `outer` is the number of loops before p.

    `apart`: the blocks of a group hang over into the next one's channels, so that the epilogue is a pass by itself.
    """
    tile = plan.tile
    size = [tile.pixels, tile.vectors, tile.lanes, outer]
    product = {"dot": plan.dot, "depth": plan.depth, "rows": plan.rows}
    return {FAMILY: "tile", KEY: key, MACS: macs, "tile": size, **product, "apart": apart}


def product(data: te.TensorSlice, weight: te.TensorSlice, sums: str) -> tirx.Expr:
    """data * weight in the dtype of the sums; bits of bfloat16 are read as such."""

    def wide(x: te.TensorSlice) -> tirx.Expr:
        bits = sums == "float32" and str(x.dtype) == BF16_BITS
        return (tirx.reinterpret("bfloat16", x) if bits else x).astype(sums)

    return wide(data) * wide(weight)


def bits(x: te.Tensor) -> te.Tensor:
    """x as bfloat16, rounded half to even, in its bits: element by element, so fused with what makes `x`."""
    word = lambda value: tirx.const(value, "uint32")  # noqa: E731

    def element(*i):
        real = x[i].astype("float32")
        whole = tirx.reinterpret("uint32", real)
        even = (whole >> word(16)) & word(1)
        rounded = (whole + word(0x7FFF) + even) >> word(16)
        nan = (whole & word(0x7FFFFFFF)) > word(0x7F800000)
        return tirx.Select(nan, word(0x7FC0), rounded).astype(BF16_BITS)

    return te.compute(x.shape, element, name="bits")


def part(x: te.Tensor, begin: int, channels: int) -> te.Tensor:
    """`channels` of the last axis, from `begin` on: nothing is copied."""
    *outer, all_ = x.shape
    if int(all_) == channels:
        return x
    return te.compute((*outer, channels), lambda *i: x[(*i[:-1], i[-1] + begin)], name=PART)


def real(x: te.Tensor) -> te.Tensor:
    """float32 of bfloat16's bits."""
    word = lambda *i: x[i].astype("uint32") << tirx.const(16, "uint32")  # noqa: E731
    return te.compute(x.shape, lambda *i: tirx.reinterpret("float32", word(*i)), name="real")


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Keep each tile's sums in registers, its epilogue right behind, tiles in parallel.

    Works on a program after fusion: blocks before the anchor are padding or packing, blocks after it the epilogue.
    """
    before, anchor, after = generic.around_anchor(sch)
    for block in before[:1]:
        if sch.get(block).name_hint == PART:
            sch.compute_inline(block)
            before = before[1:]
    facts = sch.get(anchor).annotations
    pixels, vectors, lanes, outer = (int(v) for v in facts["tile"])
    dot, depth, rows = str(facts["dot"]), int(facts["depth"]), int(facts["rows"])
    after, larger = broadcast_from(sch, after)
    kept = [block for block in after[:-1] if sch.get(block).name_hint == GROUP]
    for block in [*after[:-1], *larger[:-1]]:
        if block not in kept:
            sch.compute_inline(block)
    last = after[-1]
    apart = bool(facts["apart"])

    loops = sch.get_loops(anchor)
    work = generic.extent(sch, loops)
    heads, (p, b, v), reduction = loops[:outer], loops[outer : outer + 3], loops[outer + 3 :]
    p_outer, p_inner = sch.split(p, [None, pixels])
    v_outer, v_inner = sch.split(v, [vectors * rows, lanes // rows])
    steps, inner = (reduction[:-1], reduction[-1:]) if depth > 1 else (reduction, [])
    taken = [v_inner]  # by the instruction
    if rows > 1:
        p_inner, p_taken = sch.split(p_inner, [None, rows])
        taken = [p_taken, v_inner]
        interleave(sch, anchor, rows, lanes // rows)
    blocks = generic.extent(sch, [b])
    # Channels outermost among what is parallel: a thread keeps one block of weights while it walks the rows.
    by_rows = rows_first(sch, anchor, blocks, isa)
    if choose("outermost", ("rows", "channels") if by_rows else ("channels", "rows")) == "channels":
        parallel = [*heads[:1], b, *heads[1:], p_outer]
    else:
        parallel = [*heads, p_outer, b]
    unroll = choose("unroll", [n for n in (1, 2, 4) if generic.extent(sch, steps[-1:]) % n == 0])
    if unroll > 1:
        *others, long = steps
        long, short = sch.split(long, [None, unroll])
        sch.unroll(short)
        steps = [*others, long, short]
    sch.reorder(*parallel, *steps, p_inner, v_outer, *taken, *inner)
    for block in [*kept, *([] if apart else [last])]:
        sch.reverse_compute_at(block, parallel[-1], preserve_unit_loops=True)

    if isa.cores > 1:
        # Rows of tiles are one task as long as that leaves enough tasks; else single tiles are.
        fused = len(parallel) - (generic.extent(sch, parallel[:-1]) >= 4 * isa.cores)
        small = work < generic.PARALLEL_MACS * (4 if dot else 1)
        count = choose("tasks", first(0 if small else fused, range(len(parallel) + 1)))
        if count:
            sch.parallel(sch.fuse(*parallel[:count]))
    for loop in (p_inner, v_outer):
        sch.unroll(loop)
    if not dot:
        sch.vectorize(v_inner)

    if apart:
        generic.schedule_elementwise(sch, last, isa, choose)
    else:
        straight(sch, last, 2, whole_vectors(sch, last, isa, lanes))
    for block in kept:
        straight(sch, block, 3, lanes)

    start = sch.get_loops(anchor)
    first_reduction = start[-(len(steps) + 2 + len(taken) + len(inner))]
    init = sch.decompose_reduction(anchor, first_reduction)
    if rows > 1:
        sch.fuse(*sch.get_loops(init)[-2:])
    *_, init_rows, init_outer, init_lanes = sch.get_loops(init)
    sch.unroll(init_rows)
    sch.unroll(init_outer)
    sch.vectorize(init_lanes)
    if dot:
        sch.tensorize(taken[0], dot)
        kind = dot.rpartition("_")[0]
        for code in {d.code for d in isa.dots if d.intrinsic.rpartition("_")[0] == kind and d.code}:
            sch.annotate(start[0], "pragma_import_llvm", code)
    for block in before:
        generic.schedule_padding(sch, block, isa, choose)
    for block in larger[-1:]:
        generic.schedule_elementwise(sch, block, isa, choose)


def rows_first(sch: Schedule, anchor: SBlockRV, blocks: int, isa: Isa) -> bool:
    """Whether rows are outermost: a thread then writes whole rows, which the next kernel's same thread reads again.

    With channels outermost threads write neighbouring blocks, of bytes even parts of one line of the cache. But rows
    read all weights for each tile: not where these are too much for the cache, the first one for a short reduction.
    """
    weight = sch.get(anchor).reads[1].source.ty
    _, vectors, lanes, *_ = (int(v) for v in sch.get(anchor).annotations["tile"])
    element, count = tvm.DataType(str(weight.dtype)).bits // 8, math.prod(int(d) for d in weight.shape)
    steps = count // (blocks * vectors * lanes)
    few = isa.l1d // 2 if steps < FEW_STEPS else isa.l2 * 3 // 4
    return blocks > 1 and count * element <= few


def broadcast_from(sch: Schedule, after: list[SBlockRV]) -> tuple[list[SBlockRV], list[SBlockRV]]:
    """The blocks behind the anchor of its own size, and those from the first that is larger.

    Such is the product of an image and its channels' gates: there is more to do than in the anchor.
    """
    sizes = [generic.extent(sch, sch.get_loops(block)) for block in after]
    larger = next((i for i in range(1, len(after)) if sizes[i] > sizes[0]), len(after))
    return after[:larger], after[larger:]


def interleave(sch: Schedule, anchor, rows: int, lanes: int) -> None:
    """The sums of `rows` by `lanes` beside each other, as an instruction keeps them: taken apart by what reads them."""

    def index(*i):
        *heads, p, b, v = i
        return [*heads, p // rows, b, v // lanes, p % rows, v % lanes]

    sch.transform_layout(anchor, ("write", 0), index)


def whole_vectors(sch: Schedule, block, isa: Isa, lanes: int = 0) -> int:
    """The lanes of the vectors that a block writes: as many as make whole ones of the channels where that matters.

    Floats may be written under a mask. Of narrower integers LLVM makes one element after the other instead. Vectors
    that lie across two of the sums' are put together in memory: then rather those of half the lanes.
    """
    lanes = lanes or isa.lanes
    written = sch.get(block).writes[0].source.ty
    channels = int(written.shape[-1])
    if isa.masked and str(written.dtype) == "float32":
        return lanes
    found = generic.whole_vector(channels, lanes) or lanes
    return lanes // 2 if lanes % found and channels > lanes and channels % (lanes // 2) == 0 else found


def straight(sch: Schedule, block, loops: int, lanes: int = 0) -> None:
    """The innermost loop in vectors (of `lanes`, when it is longer), `loops` around them unrolled."""
    if lanes:
        sch.split(sch.get_loops(block)[-1], [None, lanes])
    *_, inner = sch.get_loops(block)
    sch.vectorize(inner)
    for loop in sch.get_loops(block)[-1 - loops : -1]:
        sch.unroll(loop)


def crop(y: te.Tensor, shape: Sequence[int], block: int, group: int = 0, blocks: int = 0) -> te.Tensor:
    """y[outer…, p, b, v] without what hangs over: (outer…, rows, channels).

    With groups, each of `group` channels starts a new run of `blocks` blocks.
    """
    *outer, channels = shape
    if not group:
        return te.compute(shape, lambda *i: y[(*i[:-1], i[-1] // block, i[-1] % block)], name="crop")
    if blocks == 1 and group != block:
        # A step of its own: seen from a channel of the whole, a tile would seem to reach into the next group.
        tiles = y
        y = te.compute((*outer, channels // group, group), lambda *i: tiles[i], name=GROUP)

    def element(*i):
        *head, c = i
        return y[(*head, (c // group) * blocks + (c % group) // block, (c % group) % block)]

    return te.compute(shape, element, name="crop")
