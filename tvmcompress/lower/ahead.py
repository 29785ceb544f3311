"""What a kernel is going to write is fetched while it still computes.

    rows(…, sums, 0); for j: out[o, j] = f(sums, out[o, j])    ->    rows(…, &out[o, 0], pitch); for j: …

The results of a chunk of outputs, and an operand that they are written over, are far away as a rule: other layers' data
was in the caches since. The inner loop of `sparse_rows` asks for a row of them with each row that it sums.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.tirx import Var

from tvmcompress.kernels.code_rows import AHEAD


def fetched(body: tirx.Stmt) -> tirx.Stmt:
    """With addresses of results in the calls that take them."""
    bound: list[tuple[Var, Any]] = []
    tvm_ffi.structural_walk(body, [(tirx.Bind, lambda node: bound.append((node.var, node.value)))])
    return tvm_ffi.structural_map(body, [(tirx.SeqStmt, lambda seq: with_address(seq, bound))])


def with_address(seq: tirx.SeqStmt, bound: list[tuple[Var, Any]]) -> tirx.SeqStmt:
    statements = list(seq)
    for number, stmt in enumerate(statements):
        if not takes_address(stmt):
            continue
        loop = next((one for one in statements[number:] if isinstance(one, tirx.For) and first_store(one)), None)
        found = address(loop, bound) if loop is not None else None
        if found is not None:
            name, *arguments = stmt.value.args
            statements[number] = tirx.Evaluate(tirx.call_extern("void", name.value, *arguments[:-2], *found))
    return tirx.SeqStmt(statements)


def takes_address(stmt: tirx.Stmt) -> bool:
    """A call of a function that wants an address and a distance last."""
    if not isinstance(stmt, tirx.Evaluate) or not isinstance(stmt.value, Call) or not stmt.value.args:
        return False
    name = stmt.value.args[0]
    return isinstance(name, tvm.ir.StringImm) and str(name.value).endswith(AHEAD)


def first_store(loop: tirx.For) -> tirx.BufferStore | None:
    found: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(loop, [(tirx.BufferStore, found.append)])
    return found[0] if found else None


def address(loop: tirx.For, bound: list[tuple[Var, Any]]) -> list[Any] | None:
    """Of what a loop over outputs stores first, and bytes from one output to the next."""
    store = first_store(loop)
    if store is None or len(store.indices) != 1:
        return None
    index = store.indices[0]
    index = index.base if isinstance(index, tirx.Ramp) else index
    inner: list[Var] = []
    tvm_ffi.structural_walk(loop, [(tirx.For, lambda node: inner.append(node.loop_var))])
    own: list[Var] = []
    tvm_ffi.structural_walk(loop, [(tirx.Bind, lambda node: own.append(node.var))])
    # Values that are bound within the loop are unknown outside.
    while any(var.same_as(one) for var in variables(index) for one in own):
        index = replaced(index, [(var, value) for var, value in bound if any(var.same_as(one) for one in own)])
    first = replaced(index, [(var, tirx.const(0, str(var.ty.dtype))) for var in inner])
    second = replaced(index, [(var, tirx.const(int(var.same_as(loop.loop_var)), str(var.ty.dtype))) for var in inner])
    apart = tvm.sym.Analyzer().simplify(second - first)
    if not isinstance(apart, tirx.IntImm):
        return None
    size = tvm.DataType(str(store.buffer.dtype)).bits // 8
    where = tirx.address_of(tirx.BufferLoad(store.buffer, [tvm.sym.Analyzer().simplify(first)]))
    return [where, tirx.const(int(apart) * size, "int64")]


def variables(expr: Any) -> list[Var]:
    found: list[Var] = []
    tvm_ffi.structural_walk(expr, [(Var, found.append)])
    return found


def replaced(expr: Any, pairs: list[tuple[Var, Any]]) -> Any:
    def other(var: Var) -> Any:
        return next((value for one, value in pairs if one.same_as(var)), var)

    return tvm_ffi.structural_map(expr, [(Var, other)])


@tvm.transform.module_pass(opt_level=0)
def fetch_ahead(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    functions = {
        var: func.with_body(fetched(func.body)) if isinstance(func, tirx.PrimFunc) and AHEAD in code_of(func) else func
        for var, func in mod.functions_items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def code_of(func: tirx.PrimFunc) -> str:
    """The names of what it calls."""
    found: list[str] = []
    tvm_ffi.structural_walk(func.body, [(tvm.ir.StringImm, lambda node: found.append(str(node.value)))])
    return "\n".join(name for name in found if name.startswith("tvmcompress_"))
