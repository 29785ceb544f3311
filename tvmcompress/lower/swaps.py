"""Axes that change places by a kernel of their own, where no loop that has to run anyway would do it.

    permute(relu(conv(x, w)))    ->    transpose(relu(conv(x, w)))

TVM makes a permutation one loop with what it reads or what reads it, if these go element by element. That loop is slow
but saves a pass. The kernel is for what lies between an anchor, or the program's border, and another one.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import transpose
from tvmcompress.lower.channels_last import ELEMENTWISE

PERMUTE = "relax.permute_dims"
RESHAPE = "relax.reshape"  # costs nothing, and is in nobody's way
ANCHORS = ("relax.nn.conv2d", "relax.matmul")


def apart(mod: tvm.IRModule) -> set[Var]:
    """The permutations that no other loop would take in."""
    definitions, readers = graph.definitions(mod), graph.consumers(mod)

    def made(var: Expr, behind: bool = False) -> bool:
        """By an anchor and what is fused behind it, or an input."""
        expr = definitions.get(var)
        if expr is None:
            return isinstance(var, relax.Var) and not behind
        if op_name(expr) == RESHAPE:
            return made(expr.args[0], behind)
        return op_name(expr) in ANCHORS or (
            op_name(expr) in ELEMENTWISE and any(made(a, True) for a in expr.args if isinstance(a, relax.Var))
        )

    def taken(var: Var) -> bool:
        """By anchors, or as a result."""
        return all(
            isinstance(definitions.get(reader), relax.Tuple | None)
            or op_name(definitions[reader]) in ANCHORS
            or (op_name(definitions[reader]) == RESHAPE and taken(reader))
            for reader in readers.get(var, [])
        )

    return {var for var, expr in definitions.items() if op_name(expr) == PERMUTE and made(expr.args[0]) and taken(var)}


def swapped(rw: Rewriter, var: Var, expr: Expr, isa: Isa) -> Expr | None:
    """A call of the kernel; None where a permutation is not two axes that change places, or too small."""
    x, shape = expr.args[0], graph.shape(expr.args[0])
    axes = range(len(shape))[::-1] if expr.attrs.axes is None else [int(a) % len(shape) for a in expr.attrs.axes]
    swap, dtype = transpose.swap_of(shape, axes), graph.dtype(var)
    if swap is None or not transpose.suits(swap, dtype, isa):
        return None
    name = rw.builder.add_func(transpose.transpose(swap, dtype, isa), "transpose")
    before, after = (swap.count, swap.rows, swap.columns), (swap.count, swap.columns, swap.rows)
    flat = rw.emit(relax.op.reshape(x, before))
    made = rw.emit(relax.op.call_tir(name, [flat], relax.TensorType(after, dtype)))
    return relax.op.reshape(made, graph.shape(var))
