"""Axes that change places by a kernel of their own, where no loop that has to run anyway would do it.

    permute(relu(conv(x, w)))    ->    transpose(relu(conv(x, w)))

TVM makes a permutation one loop with what it reads or what reads it, if these go element by element. That loop is slow
but saves a pass. The kernel is for what lies between an anchor, or the program's border, and another one.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import transpose
from tvmcompress.lower.channels_last import ELEMENTWISE
from tvmcompress.lower.planes import PERMUTE

RESHAPE = "relax.reshape"  # costs nothing, and is in nobody's way
ANCHORS = ("relax.nn.conv2d", "relax.matmul")


def apart(mod: tvm.IRModule) -> set[Var]:
    """The permutations that no other loop would take in."""
    definitions, readers = graph.definitions(mod), graph.consumers(mod)

    inputs = set(mod["main"].params)
    behind = set[Var]()  # an anchor: what it makes, and what is fused behind it
    for var, expr in definitions.items():
        read = {a for a in getattr(expr, "args", ()) if isinstance(a, relax.Var)}
        if op_name(expr) in ANCHORS or (op_name(expr) in (*ELEMENTWISE, RESHAPE) and read & behind):
            behind.add(var)
        elif op_name(expr) == RESHAPE and read & inputs:
            inputs.add(var)

    def taken(var: Var) -> bool:
        """By anchors, or as a result."""
        return all(
            isinstance(definitions.get(reader), relax.Tuple | None)
            or op_name(definitions[reader]) in ANCHORS
            or (op_name(definitions[reader]) == RESHAPE and taken(reader))
            for reader in readers.get(var, [])
        )

    permuted = (var for var, expr in definitions.items() if op_name(expr) == PERMUTE)
    return {var for var in permuted if definitions[var].args[0] in inputs | behind and taken(var)}


def swapped(rw: Rewriter, var: Var, expr: Expr, isa: Isa) -> Expr | None:
    """A call of the kernel; None where a permutation is not two axes that change places, or too small."""
    x, shape = expr.args[0], graph.shape(expr.args[0])
    swap, dtype = transpose.swap_of(shape, attrs.order(expr)), graph.dtype(var)
    if swap is None or not transpose.suits(swap, dtype, isa):
        return None
    name = rw.builder.add_func(transpose.transpose(swap, dtype, isa), "transpose")
    before, after = (swap.count, swap.rows, swap.columns), (swap.count, swap.columns, swap.rows)
    flat = rw.emit(relax.op.reshape(x, before))
    made = rw.emit(relax.op.call_tir(name, [flat], relax.TensorType(after, dtype)))
    return relax.op.reshape(made, graph.shape(var))
