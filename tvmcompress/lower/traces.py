"""Products without a family, such as convolutions in three dimensions: their schedule may be a trace of TVM's own.

A trace is a list of schedule instructions as JSON, found by tuning in MetaSchedule's generic space. It fits one program
exactly, so such a kernel's key says all of the program. Without one the generic schedule is taken.
"""

from __future__ import annotations

from math import prod

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlockRealize, Schedule
from tvm.s_tir.schedule import SBlockRV, Trace
from tvm.tirx import PrimFunc

from tvmcompress.kernels import FAMILY, generic
from tvmcompress.kernels.choices import Choose, Open

DECISION = "trace"
LEAST = 1 << 20  # steps of a sum, below which no trial is worth its time
REUSE = 8  # steps for each element that is read or written: with fewer, memory is what it waits for


def steps(func: PrimFunc) -> int:
    """How many steps the largest sum of a program has whose schedule may be a trace; 0 for every other program."""
    if not isinstance(func.body, SBlockRealize) or "tirx.is_scheduled" in (func.attrs or {}):
        return 0
    sch = Schedule(func)
    blocks = generic.blocks_of(sch)
    if any(FAMILY in sch.get(block).annotations for block in blocks):
        return 0
    return max((_steps(sch, block) for block in blocks), default=0)


def _steps(sch: Schedule, block: SBlockRV) -> int:
    node, loops = sch.get(block), sch.get_loops(block)
    if not generic.is_reduction(sch, block) or not all(generic.is_static(sch, loop) for loop in loops):
        return 0
    shapes = [region.source.ty.shape for region in (*node.reads, *node.writes)]
    if not all(isinstance(dim, tirx.IntImm) for shape in shapes for dim in shape):
        return 0
    count, elements = generic.extent(sch, loops), sum(prod(int(dim) for dim in shape) for shape in shapes)
    return count if count >= LEAST and count >= REUSE * elements else 0


def key(func: PrimFunc) -> str:
    """What such a program is known by: its sums, the shapes of its arguments, and a hash of all that it says."""
    sch = Schedule(func)
    sums = [generic.name(sch, block) for block in generic.blocks_of(sch) if generic.is_reduction(sch, block)]
    shapes = ", ".join(f"{param.ty.dtype} {'x'.join(str(int(dim)) for dim in param.ty.shape)}" for param in func.params)
    names = ".".join(generic.name(sch, block) for block in generic.blocks_of(sch))
    bare = PrimFunc(func.params, func.body, func.ret_type)
    said = tvm_ffi.structural_hash(bare) % 2**64
    return f"{' '.join(sums)[:80]} {shapes[:200]}, {names[:80]}, {said:016x}"


def apply(func: PrimFunc, choose: Choose) -> Schedule | None:
    """The program as a chosen trace has it; None where none is chosen."""
    trace = choose(DECISION, Open([None]))
    if trace is None:
        return None
    sch = Schedule(func)
    Trace.apply_json_to_schedule(trace, sch)
    return sch
