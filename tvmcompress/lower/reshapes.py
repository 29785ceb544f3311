"""reshape(reshape(x)) -> reshape(x): of one TVM makes a view, of two, which it fuses, a copy."""

from __future__ import annotations

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name

RESHAPE = "relax.reshape"


def one_reshape(mod: tvm.IRModule) -> tvm.IRModule:
    """Each reshape with a static shape reads what the first of its chain reads."""
    return graph.rewrite(mod, merged)


def merged(rw: Rewriter, var: Var, expr: Expr) -> Expr | None:
    if op_name(expr) != RESHAPE or not graph.has_static_shape(var):
        return None
    x = expr.args[0]
    while op_name(rw.definition(x)) == RESHAPE:
        x = rw.definition(x).args[0]
    return relax.op.reshape(x, graph.shape(var)) if x is not expr.args[0] else None
