"""A schedule for every tensor program: its family's, else the generic one, else (and then it is reported) none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import tvm
from tvm import relax, tirx
from tvm.ir import GlobalVar
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.tirx import PrimFunc

from tvmcompress.ir import graph
from tvmcompress.isa import BF16_BITS, Isa
from tvmcompress.kernels import (
    CODE,
    FAMILY,
    MACS,
    depthwise,
    generic,
    lookup,
    normalization,
    sparse_blocks,
    sparse_rows,
    sparse_winograd,
    tile,
    winograd,
)
from tvmcompress.kernels.choices import KEY, Choices, Choose
from tvmcompress.lower import traces
from tvmcompress.lower.shared import Found

DOT_FLOATS = {BF16_BITS: "bfloat16", "float16": "float16"}  # what dot products of floats read
WORK = "tvmcompress.work"  # an attribute of functions: family, multiply-accumulates, arithmetic, key
FAMILIES: dict[str, Callable[[Schedule, Isa, Choose], None]] = {
    "tile": tile.schedule,
    "depthwise": depthwise.schedule,
    "winograd": winograd.schedule,
    "layer_norm": normalization.schedule,
    sparse_blocks.NAME: sparse_blocks.schedule,
    sparse_rows.NAME: sparse_rows.schedule,
    sparse_winograd.NAME: sparse_winograd.schedule,
    "ready": lambda _sch, _isa, _choose: None,  # written with its schedule
}


@dataclass
class Scheduled:
    """The module with schedules applied; `fallbacks` names the programs left without one, and why."""

    module: tvm.IRModule
    fallbacks: dict[str, str] = field(default_factory=dict)


def anchor_of(sch: Schedule) -> tuple[str, str]:
    """The family of the anchor block and the kernel's key, or empty strings."""
    for block in generic.blocks_of(sch):
        annotations = sch.get(block).annotations
        if FAMILY in annotations:
            return str(annotations[FAMILY]), str(annotations.get(KEY, ""))
    return "", ""


def work(func: PrimFunc) -> list | None:
    """Family, MACs, arithmetic and key of a program that multiplies."""
    sch = Schedule(func)
    for block in generic.blocks_of(sch):
        node = sch.get(block)
        if MACS in node.annotations:
            read, written = ({str(r.source.ty.dtype) for r in regions} for regions in (node.reads, node.writes))
            arithmetic = "int8" if written == {"int32"} else "float32"
            if node.annotations.get("dot"):
                arithmetic = next((DOT_FLOATS[dtype] for dtype in read if dtype in DOT_FLOATS), arithmetic)
            key = str(node.annotations.get(KEY, ""))
            return [str(node.annotations[FAMILY]), int(node.annotations[MACS]), arithmetic, key]
    return None


def kernels(programs: Mapping[str, PrimFunc]) -> list[dict]:
    """A row for each scheduled program that multiplies: name, family, macs of one call, arithmetic and key.

    The arithmetic is what its instructions are for: float32, float16, bfloat16 or int8. The key is what the kernel is
    known by to those who make its decisions, empty where there are none.
    """
    rows = []
    for name, func in programs.items():
        if func.attrs and WORK in func.attrs:
            family, macs, arithmetic, key = func.attrs[WORK]
            row = {"family": str(family), "macs": int(macs), "arithmetic": str(arithmetic), "key": str(key)}
            rows.append({"name": name, **row})
    return rows


def schedule(mod: tvm.IRModule, isa: Isa, choices: Choices, done: Found[tuple[PrimFunc, str]]) -> Scheduled:
    """Every tensor program with a schedule; those without an anchor take their decisions under their own name.

    `done`: what was scheduled before for this machine, with the same choices.
    """
    functions, fallbacks = {}, {}
    reshaping = reshapes(mod)
    for var, func in mod.functions_items():
        scheduled = not isinstance(func, PrimFunc) or (func.attrs and "tirx.is_scheduled" in func.attrs)
        if scheduled or var in reshaping:
            functions[var] = func
            continue
        functions[var], fallback = done.get(func, partial(one, func, isa, choices, var.name_hint))
        if fallback:
            fallbacks[var.name_hint] = fallback
    return Scheduled(tvm.IRModule(functions, attrs=mod.attrs), fallbacks)


def one(func: PrimFunc, isa: Isa, choices: Choices, name: str) -> tuple[PrimFunc, str]:
    """A program with its schedule, and what is to be said of that, if anything."""
    try:
        return apply(func, isa, choices, name), ""
    except Exception as error:  # TVM's schedule errors have no class of their own
        try:
            return plain(func, isa), f"generic schedule: {reason(error)}"
        except Exception as second:
            return func, f"no schedule: {reason(second)}"


def reshapes(mod: tvm.IRModule) -> set[GlobalVar]:
    """Programs that only give memory another shape: TVM calls none of them, unless a result is made so, or it no longer
    sees that, for what a schedule did."""
    found, others = set[GlobalVar](), set[GlobalVar]()
    for binding in graph.bindings(mod):
        if graph.op_name(binding.value) == "relax.call_tir":
            name = binding.value.args[0]
            blocks = isinstance(mod[name].body, SBlockRealize)  # TVM asks no other program
            inner = isinstance(binding.var, relax.DataflowVar) and blocks
            (found if inner and relax.analysis.has_reshape_pattern(mod[name]) else others).add(name)
    return found - others


def apply(func: PrimFunc, isa: Isa, choices: Choices, name: str) -> PrimFunc:
    sch = Schedule(func)
    if [sch.get(block).name_hint for block in generic.blocks_of(sch)] == [lookup.NAME]:
        kernel = lookup.look_up(func, isa)
        if kernel is not None:
            return kernel
    family, key = anchor_of(sch)
    if not family and traces.steps(func):
        choose = choices(traces.key(func))
        if traced := traces.apply(func, choose):
            return finished(func, traced)
    else:
        choose = choices(key or name)
    (FAMILIES[family] if family else generic.schedule)(sch, isa, choose)
    return finished(func, sch)


def plain(func: PrimFunc, isa: Isa) -> PrimFunc:
    """Only parallel outer loops: for programs whose blocks refuse everything else."""
    sch = Schedule(func)
    for block in generic.blocks_of(sch):
        if CODE in sch.get(block).annotations:
            sch.annotate(sch.get_loops(block)[0], "pragma_import_llvm", sch.get(block).annotations[CODE])
        if generic.is_reduction(sch, block):
            continue
        loops = sch.get_loops(block)
        if len(loops) > 1 and generic.extent(sch, loops) >= generic.PARALLEL_WORK:
            sch.parallel(loops[0])
    return finished(func, sch)


def finished(func: PrimFunc, sch: Schedule) -> PrimFunc:
    new = announced(sch.mod["main"]).with_attr("tirx.is_scheduled", True)
    multiplies = work(func)
    return new.with_attr(WORK, multiplies) if multiplies else new


def announced(func: PrimFunc) -> PrimFunc:
    """Say before each parallel loop how many iterations it has: the threads of a library share them out (threads.c).

    Such loops are outermost in all our schedules; of others the threads take equal parts.
    """
    root = func.body
    if not isinstance(root, SBlockRealize):
        return func
    block = root.block
    statements: list[tirx.Stmt] = []
    for loop in block.body if isinstance(block.body, tirx.SeqStmt) else [block.body]:
        if isinstance(loop, tirx.For) and loop.kind == tirx.ForKind.PARALLEL:
            statements.append(tirx.Evaluate(tirx.call_extern("void", "tvmcompress_iterations", loop.extent)))
        statements.append(loop)
    body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
    new = SBlock(
        [], block.reads, block.writes, block.name_hint, body, None, block.alloc_buffers, annotations=block.annotations
    )
    return tirx.PrimFunc(func.params, SBlockRealize([], True, new), func.ret_type, func.attrs)


def reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]
