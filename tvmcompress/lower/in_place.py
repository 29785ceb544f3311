"""Kernels that may write their result over one of their operands, and their form that does.

    kernel(x, y, out): out[i, j] = x[i, j] + y[0, j]      ->      kernel(x, y): x[i, j] = x[i, j] + y[0, j]

Allowed when the program, as it is scheduled, stores `out` once for each index, in one place or in several (a loop and
what is left of it), reads `x` nowhere but in these very stores and at their very index, and hands neither to anything
else. The form has one parameter less, so what the
compiler is told (no two parameters overlap) stays true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlockRealize
from tvm.sym.iter_affine_map import detect_iter_map
from tvm.tirx import PrimFunc, Var

ADDRESSES = {"tirx.address_of", "tirx.tvm_access_ptr"}


def in_place(func: PrimFunc, operand: int) -> PrimFunc | None:
    """`func` without its last parameter, the result, which is written over parameter `operand`; or None."""
    read, written = func.params[operand], func.params[-1]
    if operand == len(func.params) - 1 or not alike(read, written):
        return None
    found = stores(func, written)
    if not found or not all(store.covers_once() for store in found) or not reads_only_there(func, found, read, written):
        return None
    # Every element of a result is written: by as many stores as there are elements each is once.
    if len(found) > 1 and sum(store.times for store in found) != math.prod(int(d) for d in written.ty.shape):
        return None
    body = tvm_ffi.structural_map(func.body, [(Var, lambda var: read if var.same_as(written) else var)])
    return PrimFunc(func.params[:-1], body, func.ret_type, func.attrs)


def alike(one: Var, other: Var) -> bool:
    """Whether two parameters are buffers of one dtype and one static shape, laid out alike."""
    if not all(tirx.is_buffer_var(var) for var in (one, other)):
        return False
    a, b = one.ty, other.ty
    return (
        str(a.dtype) == str(b.dtype)
        and all(isinstance(d, tirx.IntImm) for d in [*a.shape, *b.shape])
        and [int(d) for d in a.shape] == [int(d) for d in b.shape]
        and not a.strides
        and not b.strides
    )


@dataclass
class Store:
    """A store, the block it is all of (None when it is not), and the loops around it."""

    statement: tirx.BufferStore
    realize: SBlockRealize | None = None
    loops: list[tirx.For] = field(default_factory=list)

    def covers_once(self) -> bool:
        """Whether it runs once for each element of what it writes."""
        if self.realize is None:
            return False
        block = self.realize.block
        axes = [v.var for v in block.iter_vars]
        used = [i for i in self.statement.indices if not isinstance(i, tirx.IntImm)]
        if any(count(axes, index) != 1 or count(used, index) != 1 for index in used):
            return False
        if any(not count(used, v.var) and not is_one(v.dom.extent) for v in block.iter_vars):
            return False
        if any(v.iter_type != tirx.IterVar.DataPar for v in block.iter_vars):
            return False
        domains = {loop.loop_var: tvm.ir.Range.from_min_extent(loop.min, loop.extent) for loop in self.loops}
        found = detect_iter_map(list(self.realize.iter_values), domains, self.realize.predicate, "bijective")
        return len(found.indices) == len(self.realize.iter_values)

    @property
    def times(self) -> int:
        """How often it runs, at most."""
        return math.prod(int(loop.extent) for loop in self.loops)

    def loads(self, read: Var) -> int | None:
        """How many loads of `read` it has, all at the index that is written; None if it does anything else with it."""
        calls = nodes(self.statement.value, tvm.ir.Call)
        if any(getattr(call.op, "name", "") in ADDRESSES for call in calls):
            return None
        loads = [load for load in nodes(self.statement.value, TensorLoad) if load.source.same_as(read)]
        here = list(self.statement.indices)
        if not loads or not all(tvm_ffi.structural_equal(list(load.indices), here) for load in loads):
            return None
        return len(loads)


def reads_only_there(func: PrimFunc, found: Sequence[Store], read: Var, written: Var) -> bool:
    """Whether `read` is loaded nowhere but in `found`, at the index that is written, and `written` nowhere at all."""
    loads = [store.loads(read) for store in found]
    blocks = [realize.block for realize in nodes(func.body, SBlockRealize)]
    noted = [region.source for block in blocks for region in [*block.reads, *block.writes]]
    mentions = nodes(func.body, Var)
    known = [number for number in loads if number is not None]
    others = count(mentions, read) - count(noted, read) - sum(known)
    return len(known) == len(loads) and others == 0 and count(mentions, written) == count(noted, written) + len(found)


def stores(func: PrimFunc, written: Var) -> list[Store]:
    found: list[Store] = []
    loops: list[tirx.For] = []
    around: list[SBlockRealize] = []

    def enter(node: Any, visitor: Any) -> None:
        path = loops if isinstance(node, tirx.For) else around
        path.append(node)
        visitor.default_visit(node)
        path.pop()

    def store(node: tirx.BufferStore, visitor: Any) -> None:
        if node.buffer.same_as(written):
            own = around and around[-1].block.init is None and around[-1].block.body.same_as(node)
            found.append(Store(node, around[-1] if own else None, list(loops)))
        visitor.default_visit(node)

    tvm_ffi.structural_visit(func.body, [((tirx.For, SBlockRealize), enter), (tirx.BufferStore, store)])
    return found


def nodes(root: Any, kind: type) -> list[Any]:
    """Every occurrence, those in the lists of what blocks read and write among them."""
    found: list[Any] = []
    tvm_ffi.structural_walk(root, [(kind, found.append)])
    return found


def count(variables: Sequence[Var], wanted: Var) -> int:
    return sum(var.same_as(wanted) for var in variables)


def is_one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == 1
