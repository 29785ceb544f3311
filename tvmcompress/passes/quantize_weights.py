"""QuantizeWeights: weights in 8 or 4 bits, arithmetic in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import RecipeError
from tvmcompress.ir import graph
from tvmcompress.passes.support import weights
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.layers import Layer
from tvmcompress.passes.support.select import notes, select

FEW_COLUMNS = (
    16  # rows shorter than this (depthwise kernels) are kept at 8 bits: a scale for so few values buys nothing
)


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """conv(x, W) -> conv(x, dequantize(Q, scale))                                        group = 0, 8 bits
    conv(x, W) -> conv(x, reshape(dequantize(unpack_int4(P), scale, axis=0), shape of W))  groups, 4 bits

    Symmetric. Per channel: one float32 scale for each output channel. Group-wise: one scale for each `group` neighbours
    in a row of W, where a row is one output channel of a convolution (O, I*kh*kw) or one row of a matrix (K, N); groups
    that do not divide a row become a little smaller, or the row is padded with zeros. Two 4-bit values share a byte.
    Scales are those of least squared error. Size: 8 bits a quarter of float32; 4 bits with group 64 and 16-bit scales
    4.25 bits a weight. Arithmetic, and its speed, stay those of float32.
    """

    bits: int = option(8, "bits of a weight", choices=(8, 4))
    group: int = option(0, "weights that share a scale; 0: one scale for each output channel", low=0, high=4096)
    half_scales: bool = option(True, "scales of groups in 16 bits")
    min_size: int = option(1024, "weights with fewer elements stay float", low=0)
    skip: tuple[str, ...] = option((), "names of layers to leave float; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), "kinds of layers to leave float: conv, depthwise, conv_transpose, matmul")

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.group < 8 or self.group % 2:
            raise RecipeError(
                f"quantize_weights: group must be 0 or an even number from 8 on, got {self.group}; try 64"
            )
        if self.bits == 4 and not self.group:
            raise RecipeError("quantize_weights: 4 bits need a group, since one scale a channel is too coarse; try 64")

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        chosen, reasons = select(mod, self.key, self.skip, self.skip_kinds, self.why_not)
        by_var = {layer.var: layer for layer in chosen}
        emitted: dict[tuple[graph.Expr, int], graph.Expr] = {}  # a constant that two layers read is stored once

        def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
            layer = by_var.get(var)
            if layer is None:
                return None
            assert layer.weight is not None
            key = (expr.args[layer.weight], layer.channel)
            if key not in emitted:
                emitted[key] = self.emit(rewriter, layer)
            args = [emitted[key] if i == layer.weight else a for i, a in enumerate(expr.args)]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args)

        after = graph.rewrite(mod, visit) if chosen else mod
        return Outcome(after, notes(mod, self.key, reasons))

    def emit(self, rewriter: graph.Rewriter, layer: Layer) -> graph.Expr:
        weight = layer.weights()
        rows, columns = row_shape(layer, weight)
        if self.group and columns >= FEW_COLUMNS:
            groups = weights.grouping(columns, self.group)
            return weights.emit_groups(rewriter, layer.name, weight, rows, groups, self.bits, self.half_scales)
        integers, scales = weights.per_channel(weight, layer.channel, search=True)
        return weights.emit_per_channel(rewriter, layer.name, integers, scales, layer.channel)

    def why_not(self, layer: Layer) -> str:
        if layer.weight is None:
            return "its weights are not constant"
        if layer.weights().size < self.min_size:
            return f"smaller than min_size = {self.min_size}"
        return ""


def row_shape(layer: Layer, weight: np.ndarray) -> tuple[int, int]:
    """Rows and columns of the weight as it lies in memory."""
    if layer.kind == "matmul":
        return weight.size // weight.shape[-1], weight.shape[-1]
    return weight.shape[0], weight.size // weight.shape[0]
