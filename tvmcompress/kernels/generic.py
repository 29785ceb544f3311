"""Schedules for everything without a family: parallel outside, vectors inside, as few passes over memory as can be."""

from __future__ import annotations

from collections.abc import Iterable

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY
from tvmcompress.kernels.choices import Choose, first

# Starting threads costs a few microseconds, and far more when another process has their core: below about ten
# microseconds of work one thread is enough. In elements of memory-bound work, and in multiply-adds of products.
PARALLEL_WORK = 1 << 15
PARALLEL_MACS = 1 << 18
SHORT = 4  # elements of an innermost axis that are better no vector
GATHER = 8  # elements of other work that a looked up one costs, and how many are looked up in a row


def blocks_of(sch: Schedule) -> list[SBlockRV]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def extent(sch: Schedule, loops: Iterable[LoopRV]) -> int:
    """The product of the loops' extents; open extents count as large."""
    total = 1
    for loop in loops:
        size = sch.get(loop).extent
        total *= int(size) if isinstance(size, tirx.IntImm) else 1024
    return total


def is_static(sch: Schedule, loop: LoopRV) -> bool:
    return isinstance(sch.get(loop).extent, tirx.IntImm)


def is_reduction(sch: Schedule, block: SBlockRV) -> bool:
    return any(iv.iter_type == tirx.IterVar.CommReduce for iv in sch.get(block).iter_vars)


def around_anchor(sch: Schedule) -> tuple[list[SBlockRV], SBlockRV, list[SBlockRV]]:
    """The blocks before the anchor, the anchor, and the blocks after it in order.

    What comes before it without being read by it, such as the other operand of a sum, is computed where it is used.
    """
    blocks = blocks_of(sch)
    at = next(i for i, b in enumerate(blocks) if FAMILY in sch.get(b).annotations)
    before = []
    for block in blocks[:at]:
        if leads_to(sch, block, blocks[at]):
            before.append(block)
        else:
            sch.compute_inline(block)
    return before, blocks[at], blocks[at + 1 :]


def leads_to(sch: Schedule, block: SBlockRV, other: SBlockRV) -> bool:
    """Whether `other` reads, by way of further blocks or not, what a block writes."""
    goal = sch.get(other)
    return any(sch.get(reader).same_as(goal) or leads_to(sch, reader, other) for reader in sch.get_consumers(block))


def vector_lanes(sch: Schedule, block: SBlockRV, isa: Isa) -> int:
    """Elements of the widest dtype that the block touches in one vector register."""
    regions = [*sch.get(block).reads, *sch.get(block).writes]
    bits = max((tvm.DataType(str(r.source.ty.dtype)).bits for r in regions), default=32)
    return max(isa.lanes * 32 // max(bits, 8), 1)


def spread(sch: Schedule, block: SBlockRV, outer: list[LoopRV], work: int, isa: Isa, choose: Choose) -> None:
    """Outer loops in parallel when there is enough to do.

    Just enough of them are fused to have a few tasks for each core, so that indices stay cheap inside.
    """
    if not outer or isa.cores == 1 or work == 0:
        return
    count = 1
    while count < len(outer) and extent(sch, outer[:count]) < 4 * isa.cores:
        count += 1
    best = count if work >= PARALLEL_WORK and extent(sch, outer) > 1 else 0
    count = choose(f"{name(sch, block)}.tasks", first(best, range(len(outer) + 1)))
    if count:
        sch.parallel(sch.fuse(*outer[:count]) if count > 1 else outer[0])


def name(sch: Schedule, block: SBlockRV) -> str:
    return str(sch.get(block).name_hint)


def reads_alike(sch: Schedule, block: SBlockRV) -> bool:
    """Whether every operand is a single element or has the result's shape: then all loops are one run of memory."""
    record = sch.get(block)
    if len(record.writes) != 1:
        return False
    shape = [str(d) for d in record.writes[0].source.ty.shape]
    for region in record.reads:
        dims = [str(d) for d in region.source.ty.shape]
        if dims != shape and any(d != "1" for d in dims):
            return False
        if dims == shape and [str(r.min) for r in region.region] != [str(r.min) for r in record.writes[0].region]:
            return False
    return True


def schedule_elementwise(sch: Schedule, block: SBlockRV, isa: Isa, choose: Choose) -> None:
    """Outer loops parallel, the innermost in vectors; a short innermost axis is unrolled around vectors of the next."""
    loops = sch.get_loops(block)
    if not loops:
        return
    lanes, work = vector_lanes(sch, block, isa), extent(sch, loops)
    if work == 0:  # an empty tensor: nothing to do, and LLVM refuses vectors of no element
        return
    if len(loops) > 1 and all(is_static(sch, loop) for loop in loops) and reads_alike(sch, block):
        # One run of memory; but TVM no longer sees that of a vector that reaches into the next row.
        row = whole_vector(extent(sch, loops[-1:]), lanes)
        if row in (0, lanes):
            loops = [sch.fuse(*loops)]
        else:
            lanes = row
    *outer, inner = loops
    size = extent(sch, [inner])
    if gathers(sch, block):
        # One element at a time is what it comes to anyway, and vectors would be taken apart for it.
        work *= GATHER
        if size % GATHER == 0:
            rest, few = sch.split(inner, [None, GATHER])
            sch.unroll(few)
            outer.append(rest)
        else:
            outer.append(inner)
    elif not is_static(sch, inner):
        pass
    elif size <= SHORT and outer and is_static(sch, outer[-1]) and extent(sch, outer[-1:]) >= 4:
        rows = outer.pop()
        rows_outer, rows_vector = sch.split(rows, [None, min(lanes, power_of_two(extent(sch, [rows])))])
        sch.reorder(rows_outer, inner, rows_vector)
        sch.unroll(inner)
        sch.vectorize(rows_vector)
        outer.append(rows_outer)
    else:
        outer += _vectorize(sch, block, inner, lanes, isa, choose)
    spread(sch, block, outer, work, isa, choose)


def whole_vector(size: int, lanes: int) -> int:
    """The most lanes, at most `lanes` and a multiple of 4, that divide `size`; 0 when there are none."""
    return next((n for n in range(lanes, 3, -1) if n % 4 == 0 and size % n == 0), 0)


def gathers(sch: Schedule, block: SBlockRV) -> bool:
    """Whether the block is a table looked up element by element."""
    return name(sch, block) == "look_up"


def schedule_padding(sch: Schedule, block: SBlockRV, isa: Isa, choose: Choose) -> None:
    """A copy into a padded buffer: whether a pixel is inside does not depend on its channels: those are the vector."""
    loops = sch.get_loops(block)
    lanes, work = vector_lanes(sch, block, isa), extent(sch, loops)
    *outer, inner = loops
    outer += _vectorize(sch, block, inner, lanes, isa, choose)
    spread(sch, block, outer, work, isa, choose)


def _vectorize(sch: Schedule, block: SBlockRV, loop: LoopRV, lanes: int, isa: Isa, choose: Choose) -> list[LoopRV]:
    """Make vectors of a loop; what remains outside of them. Tails are masked where that is free, else avoided."""
    size = extent(sch, [loop])
    if size <= lanes:
        sch.vectorize(loop)
        return []
    lanes = choose(f"{name(sch, block)}.vector", [n for n in (lanes, 2 * lanes) if size % n == 0] or [lanes])
    if size % lanes and not isa.masked:
        while lanes > 4 and size % lanes:
            lanes //= 2
    rest, vector = sch.split(loop, [None, lanes])
    sch.vectorize(vector)
    return [rest]


def power_of_two(value: int) -> int:
    """The largest one that is not above `value`."""
    return 1 << (max(value, 1).bit_length() - 1)


def schedule_reduction(sch: Schedule, block: SBlockRV, isa: Isa, choose: Choose) -> None:
    """Vectors along the last spatial axis where the reduction leaves it; else along the reduction, by partial sums."""
    ivs = sch.get(block).iter_vars
    loops = sch.get_loops(block)
    if len(loops) != len(ivs):
        return
    spatial = [loop for loop, iv in zip(loops, ivs) if iv.iter_type == tirx.IterVar.DataPar]
    reduce = [loop for loop, iv in zip(loops, ivs) if iv.iter_type == tirx.IterVar.CommReduce]
    if not all(is_static(sch, loop) for loop in loops):
        return
    work, lanes = extent(sch, loops), vector_lanes(sch, block, isa)
    contiguous = bool(spatial) and varies_last(sch, block, ivs, spatial, loops)
    if contiguous and extent(sch, spatial[-1:]) >= min(lanes, 8):
        *outer, inner = spatial
        size = extent(sch, [inner])
        # Narrower vectors rather than a last one that hangs over, which would be taken apart.
        widths = [width for width in (lanes, lanes // 2, lanes // 4) if width > 1 and size % width == 0]
        width = choose(f"{name(sch, block)}.vector", widths or [min(lanes, power_of_two(size))])
        rest, vector = sch.split(inner, [None, width])
        sch.reorder(*outer, rest, *reduce, vector)
        sch.vectorize(vector)
        spread(sch, block, [*outer, rest], work, isa, choose)
        init = sch.decompose_reduction(block, sch.get_loops(block)[-(len(reduce) + 1)])
        sch.vectorize(sch.get_loops(init)[-1])
        return
    rows = spatial
    size = extent(sch, reduce[-1:])
    if size >= lanes and len(sch.get(block).writes) == 1 and size % lanes == 0:
        rest, lane = sch.split(reduce[-1], [None, lanes])
        partial = sch.rfactor(lane, len(spatial))
        loops = sch.get_loops(partial)
        rows = loops[: len(spatial)]
        if rows:
            # Before the initialisation is split off: after that TVM no longer sees a reduction.
            spread(sch, block, rows, work, isa, choose)
            loops = sch.get_loops(partial)
            rows = loops[: -1 - len(reduce)]
            sch.reverse_compute_at(block, rows[-1], preserve_unit_loops=True)
        # The partial sums: lanes innermost, initialised and summed as vectors.
        sch.vectorize(loops[-1])
        init = sch.decompose_reduction(partial, loops[-1 - len(reduce)])
        sch.vectorize(sch.get_loops(init)[-1])
        return
    spread(sch, block, rows, work, isa, choose)


def varies_last(sch: Schedule, block: SBlockRV, ivs, spatial: list[LoopRV], loops: list[LoopRV]) -> bool:
    """Whether the operands' last axis is the last spatial axis, not one that is reduced."""
    last = next(iv for iv, loop in zip(reversed(list(ivs)), reversed(loops)) if loop.same_as(spatial[-1]))
    for region in sch.get(block).reads:
        if not region.region:
            continue
        used = str(region.region[-1].min)
        reduced = any(str(iv.var) in used for iv in ivs if iv.iter_type == tirx.IterVar.CommReduce)
        if reduced and str(last.var) not in used:
            return False
    return True


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Inline element-wise work into its only reader, then schedule each remaining block by itself."""
    inline(sch)
    for block in blocks_of(sch):
        if is_reduction(sch, block):
            schedule_reduction(sch, block, isa, choose)
        else:
            schedule_elementwise(sch, block, isa, choose)


def inline(sch: Schedule) -> None:
    """Inline every element-wise block whose result exactly one other block reads."""
    for block in blocks_of(sch):
        consumers = sch.get_consumers(block)
        if is_reduction(sch, block) or not consumers:
            continue
        if len(consumers) > 1 and len(sch.get_producers(block)) > 0:
            continue
        try:
            sch.compute_inline(block)
        except Exception:  # TVM's way to say that a block is not a plain expression
            continue
