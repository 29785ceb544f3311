"""Sums of a register tile lie on the stack, where LLVM sees that they can stay in registers.

TVM takes a kilobyte or more from a pool, and 16 registers of AVX-512 are as much. LLVM then writes a tile's zeros to
that memory first and all its sums in the end, though nobody reads them there: where a reduction is short, that takes as
long as its multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tvm
from tvm import s_tir, tirx

from tvmcompress.lower.ahead import fetch_ahead

PIPELINE = "tvmcompress"  # its name in TVM
MOST = 2048  # bytes: 32 registers of 64


def placed(stmt: tirx.Stmt) -> tirx.Stmt:
    """Allocations of up to MOST bytes with a word to TVM that they are none of the pool's."""
    match stmt:
        case tirx.AllocBuffer() if size(stmt.buffer) <= MOST:
            kept = {"disable_lower_builtin": tirx.const(1, "bool")}
            return tirx.AllocBuffer(stmt.buffer, {**stmt.annotations, **kept})
        case tirx.SeqStmt():
            return tirx.SeqStmt([placed(part) for part in stmt])
        case tirx.IfThenElse():
            other = None if stmt.else_case is None else placed(stmt.else_case)
            return tirx.IfThenElse(stmt.condition, placed(stmt.then_case), other)
        case tirx.AttrStmt():
            return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, placed(stmt.body))
        case tirx.While():
            return tirx.While(stmt.condition, placed(stmt.body))
        case tirx.For():
            how = stmt.thread_binding, stmt.annotations, stmt.step
            return tirx.For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, placed(stmt.body), *how)
    return stmt


def size(buffer: tirx.Buffer) -> float:
    """Bytes; what is no constant is large."""
    if not all(isinstance(dim, tirx.IntImm) for dim in buffer.shape):
        return math.inf
    element = tvm.DataType(str(buffer.dtype))
    return math.prod(int(dim) for dim in buffer.shape) * element.bits * element.lanes / 8


@tvm.transform.module_pass(opt_level=0)
def on_stack(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    functions = {
        var: func.with_body(placed(func.body)) if isinstance(func, tirx.PrimFunc) else func
        for var, func in mod.functions_items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def pipeline() -> tuple[tvm.transform.Pass, Callable, Callable]:
    """TVM's own from tensor programs to what LLVM is told, with our passes before memory is taken from the pool."""
    steps, host, device = s_tir.pipeline.default_s_tir_pipeline()
    return steps, lambda: tvm.transform.Sequential([on_stack, fetch_ahead, host()]), device


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, pipeline)
