"""What pruned channels must be equal to: the program as it was, every one of their values multiplied by zero."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes import Calibration, PruneChannels


def masked(step: PruneChannels, mod: tvm.IRModule, samples: Calibration | None = None) -> tvm.IRModule:
    """`mod` with zeros wherever a channel that `step` removes is, after every operator; no shape changes."""
    plan = step.plan(mod, samples)

    def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
        labels = plan.flow.of(var)
        mask = np.ones([1] * len(var.ty.shape) if labels else [], np.float32)
        for axis, ids in labels.items():
            shape = [1] * mask.ndim
            shape[axis] = -1
            mask = mask * plan.alive[ids].reshape(shape)
        if not labels or graph.dtype(var) != "float32" or mask.all():
            return None
        return relax.op.multiply(rewriter.emit(expr, var.name), graph.const(mask.astype(np.float32)))

    return graph.rewrite(plan.module, visit)
