"""QuantizeDynamic: matrix products in 8-bit integers, with ranges found while running."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support import weights
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.insertion import substitute
from tvmcompress.passes.support.layers import Layer
from tvmcompress.passes.support.ranges import LEVELS
from tvmcompress.passes.support.select import notes, select


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """matmul(x, W) -> matmul(dequantize(quantize(x, s, z), s, z), dequantize(Q, scale))

    Q is int8, symmetric, with one scale for each output channel. s and z are computed at run time from the least and
    greatest value of x: low = min(x, 0), high = max(x, 0), s = (high - low) / 255, z = round(-low / s), as uint8.
    Needs no samples; costs one more reading of x.
    """

    search_weights: bool = option(True, "weight scales of least squared error instead of the greatest magnitude")
    min_size: int = option(1024, "weights with fewer elements stay float", low=0)
    skip: tuple[str, ...] = option((), "names of layers to leave float; * and ? are wildcards")

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        chosen, reasons = select(mod, self.key, self.skip, (), self.why_not)
        by_var = {layer.var: layer for layer in chosen}
        quantized: dict[graph.Expr, graph.Expr] = {}

        def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
            layer = by_var.get(var)
            if layer is None:
                return None
            assert layer.weight is not None
            data = expr.args[1 - layer.weight]
            if data not in quantized:
                quantized[data] = emit_dynamic(rewriter, data)
            integers, scales = weights.per_channel(layer.weights(), layer.channel, self.search_weights)
            real = weights.emit_per_channel(rewriter, layer.name, integers, scales, layer.channel)
            return substitute(expr, {expr.args[layer.weight]: real, data: quantized[data]})

        after = graph.rewrite(mod, visit) if chosen else mod
        return Outcome(after, notes(mod, self.key, reasons))

    def why_not(self, layer: Layer) -> str:
        if layer.kind == "attention":
            return "its weights are not constant"
        if layer.kind != "matmul":
            return "only matrix products are quantized dynamically"
        if layer.weights().size < self.min_size:
            return f"smaller than min_size = {self.min_size}"
        return ""


def emit_dynamic(rewriter: graph.Rewriter, data: graph.Expr) -> graph.Expr:
    """quantize and dequantize `data` with parameters computed from it."""
    op, name = relax.op, data.name
    nothing, levels = graph.const(0.0, "float32"), graph.const(float(LEVELS - 1), "float32")
    low = rewriter.emit(op.minimum(rewriter.emit(op.min(data), f"{name}_min"), nothing), f"{name}_low")
    high = rewriter.emit(op.maximum(rewriter.emit(op.max(data), f"{name}_max"), nothing), f"{name}_high")
    span = rewriter.emit(op.subtract(high, low), f"{name}_span")
    scale = rewriter.emit(op.divide(span, levels), f"{name}_step")
    # A tensor of zeros must not divide by zero; any positive scale will do for it.
    least = graph.const(float(np.finfo(np.float32).tiny), "float32")
    scale = rewriter.emit(op.maximum(scale, least), f"{name}_scale")
    steps = rewriter.emit(op.divide(rewriter.emit(op.negative(low), f"{name}_depth"), scale), f"{name}_steps")
    whole = rewriter.emit(op.clip(rewriter.emit(op.round(steps), f"{name}_round"), 0, LEVELS - 1), f"{name}_level")
    zero = rewriter.emit(op.astype(whole, "uint8"), f"{name}_zero")
    q = rewriter.emit(op.quantize(data, scale, zero, -1, "uint8"), f"{name}_q")
    return rewriter.emit(op.dequantize(q, scale, zero, -1, "float32"), f"{name}_dq")
