"""Schedules for everything without a family: parallel outside, vectors inside, no pass over memory that fusion can save."""

from __future__ import annotations

from collections.abc import Iterable

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import PrimFunc

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY

PARALLEL_WORK = 16384  # multiply-adds or elements below which starting threads costs more than it saves


def blocks_of(sch: Schedule) -> list[SBlockRV]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def extent(sch: Schedule, loops: Iterable[LoopRV]) -> int:
    """The product of the loops' extents; open extents count as large."""
    total = 1
    for loop in loops:
        size = sch.get(loop).extent
        total *= int(size) if isinstance(size, tirx.IntImm) else 1024
    return total


def is_reduction(sch: Schedule, block: SBlockRV) -> bool:
    return any(iv.iter_type == tirx.IterVar.CommReduce for iv in sch.get(block).iter_vars)


def around_anchor(sch: Schedule) -> tuple[list[SBlockRV], SBlockRV, list[SBlockRV]]:
    """The blocks before the anchor, the anchor, and the blocks after it in order."""
    blocks = blocks_of(sch)
    at = next(i for i, b in enumerate(blocks) if FAMILY in sch.get(b).annotations)
    return blocks[:at], blocks[at], blocks[at + 1 :]


def schedule_elementwise(sch: Schedule, block: SBlockRV, isa: Isa) -> None:
    """Outer loops parallel, the innermost in vectors."""
    loops = sch.get_loops(block)
    if not loops:
        return
    inner = loops[-1]
    size = sch.get(inner).extent
    outer = loops[:-1]
    if isinstance(size, tirx.IntImm) and int(size) <= 4 * isa.lanes and int(size) % isa.lanes and outer:
        # A short odd row: vectors over the rows as one run of memory.
        inner = sch.fuse(*loops)
        outer = []
    work = extent(sch, [*outer, inner])
    lanes = isa.lanes
    if isinstance(sch.get(inner).extent, tirx.IntImm) and int(sch.get(inner).extent) >= lanes:
        rest, vector = sch.split(inner, [None, lanes])
        sch.vectorize(vector)
        outer = [*outer, rest]
    elif isinstance(sch.get(inner).extent, tirx.IntImm):
        sch.vectorize(inner)
    if not outer:
        return
    if work >= PARALLEL_WORK and isa.cores > 1:
        _parallel(sch, outer, isa)


def _parallel(sch: Schedule, outer: list[LoopRV], isa: Isa) -> None:
    """Fuse just enough outer loops to have a few tasks for each core, so that indices stay cheap inside."""
    count = 1
    while count < len(outer) and extent(sch, outer[:count]) < 4 * isa.cores:
        count += 1
    fused = sch.fuse(*outer[:count]) if count > 1 else outer[0]
    sch.parallel(fused)


def schedule_reduction(sch: Schedule, block: SBlockRV, isa: Isa) -> None:
    """Vectors along the last spatial axis where the reduction leaves it; else along the reduction, by partial sums."""
    ivs = sch.get(block).iter_vars
    loops = sch.get_loops(block)
    spatial = [loop for loop, iv in zip(loops, ivs) if iv.iter_type == tirx.IterVar.DataPar]
    reduce = [loop for loop, iv in zip(loops, ivs) if iv.iter_type == tirx.IterVar.CommReduce]
    if len(loops) != len(ivs):
        return
    along_spatial = bool(spatial) and extent(sch, spatial[-1:]) >= isa.lanes
    if along_spatial:
        work = extent(sch, loops)
        outer, inner = spatial[:-1], spatial[-1]
        rest, vector = sch.split(inner, [None, isa.lanes])
        sch.reorder(*outer, rest, *reduce, vector)
        sch.vectorize(vector)
        if work >= PARALLEL_WORK and isa.cores > 1 and extent(sch, [*outer, rest]) > 1:
            _parallel(sch, [*outer, rest], isa)
        start = sch.get_loops(block)[-(len(reduce) + 1)]
        init = sch.decompose_reduction(block, start)
        sch.vectorize(sch.get_loops(init)[-1])
        return
    size = sch.get(reduce[-1]).extent
    if (
        isinstance(size, tirx.IntImm)
        and int(size) >= 2 * isa.lanes
        and int(size) % isa.lanes == 0
        and len(sch.get(block).writes) == 1
    ):
        rest, lane = sch.split(reduce[-1], [None, isa.lanes])
        partial = sch.rfactor(lane, len(spatial))
        sch.reverse_compute_at(
            block, sch.get_loops(partial)[len(spatial) - 1], preserve_unit_loops=True
        ) if spatial else None
        *_, lane = sch.get_loops(partial)
        loops = sch.get_loops(partial)
        lane_at = len(spatial) + len(reduce) - 1
        lanes = [loop for loop in loops if extent(sch, [loop]) == isa.lanes and loop is not None]
        del lane_at, lanes
        rows = loops[: len(spatial)]
        if rows and extent(sch, loops) >= PARALLEL_WORK and isa.cores > 1 and extent(sch, rows) > 1:
            _parallel(sch, rows, isa)
        return
    if spatial and extent(sch, loops) >= PARALLEL_WORK and isa.cores > 1 and extent(sch, spatial) > 1:
        _parallel(sch, spatial, isa)


def schedule(func: PrimFunc, isa: Isa) -> Schedule:
    """Inline element-wise work into its only reader, then schedule each remaining block by itself."""
    sch = Schedule(func)
    inline(sch)
    for block in blocks_of(sch):
        if is_reduction(sch, block):
            schedule_reduction(sch, block, isa)
        else:
            schedule_elementwise(sch, block, isa)
    return sch


def inline(sch: Schedule) -> None:
    """Inline every element-wise block whose result exactly one other block reads."""
    for block in blocks_of(sch):
        if is_reduction(sch, block) or not sch.get_consumers(block):
            continue
        if len(sch.get_consumers(block)) > 1 and len(sch.get_producers(block)) > 0:
            continue
        try:
            sch.compute_inline(block)
        except Exception:
            continue
