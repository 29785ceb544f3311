"""Local response normalisation over channels of which some are gone."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.ir import graph


def local_response_norm(rewriter: graph.Rewriter, name: str, expr: relax.Call, kept: np.ndarray) -> graph.Expr:
    """local_response_norm(x) -> x / (bias + alpha / size * x^2 W)^beta

    where W is 1 for channels that were neighbours before. `kept`: where the channels of x, its last axis, were.
    """
    op, x = relax.op, expr.args[0]
    size, alpha, beta, bias = (float(v) for v in graph.value(expr.args[1]))
    first = kept[None, :] - (int(size) - 1) // 2
    near = (kept[:, None] >= first) & (kept[:, None] < first + int(size))
    window = graph.const((near * (alpha / size)).astype(np.float32))
    sums = rewriter.emit(op.matmul(rewriter.emit(op.multiply(x, x), f"{name}_square"), window), f"{name}_window")
    base = rewriter.emit(op.add(sums, graph.const(bias, "float32")), f"{name}_base")
    return op.divide(x, rewriter.emit(power(rewriter, base, beta), f"{name}_power"))


def power(rewriter: graph.Rewriter, base: graph.Expr, exponent: float) -> graph.Expr:
    """By square roots where the exponent is ONNX's 3/4 or a half: those are vector instructions."""
    if exponent not in (0.5, 0.75):
        return relax.op.power(base, graph.const(exponent, "float32"))
    root = rewriter.emit(relax.op.sqrt(base))
    return root if exponent == 0.5 else relax.op.multiply(root, rewriter.emit(relax.op.sqrt(root)))
