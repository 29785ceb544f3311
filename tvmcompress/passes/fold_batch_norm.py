"""FoldBatchNorm: batch normalisation into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.base import Outcome, Pass
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.layers import Layer, layer_of

BATCH_NORM = "relax.nn.batch_norm"


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """batch_norm(conv(x, W) + b, gamma, beta, mean, var)[0] -> conv(x, W * s) + (b * s + t)

    with s = gamma / sqrt(var + epsilon) and t = beta - mean * s, for convolutions, transposed convolutions and matrix
    products with constant float weights whose result nothing else reads, with or without the addition of a bias.
    Elsewhere (after a concatenation, before a convolution, on weights that are compressed) the batch normalisation
    becomes x * s + t. Nothing is lost but rounding.
    """

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        uses = graph.consumers(mod)
        results = [r for r in graph.results(mod) if isinstance(r, relax.Var)]
        folding = Folding(graph.definitions(mod), {v: len(u) for v, u in uses.items()}, set(results))
        folding.plan()
        return Outcome(graph.rewrite(mod, folding.visit)) if folding.norms else Outcome(mod)


@dataclass(frozen=True)
class Norm:
    """A batch normalisation in inference: x * scale + shift along `axis` of a tensor of `rank` dimensions."""

    scale: np.ndarray
    shift: np.ndarray
    axis: int
    rank: int

    def along(self, vector: np.ndarray) -> np.ndarray:
        shape = [1] * self.rank
        shape[self.axis] = -1
        return vector.astype(np.float32).reshape(shape)


class Folding:
    def __init__(self, defs: dict[relax.Var, graph.Expr], uses: dict[relax.Var, int], results: set[relax.Var]):
        self.defs, self.uses, self.results = defs, uses, results
        self.norms: dict[relax.Var, Norm] = {}  # by the variable of field 0
        self.layers: dict[relax.Var, Norm] = {}  # whose weights are to be scaled
        self.biases: dict[relax.Var, Norm] = {}  # additions whose constant is to be scaled and shifted
        self.gone: dict[relax.Var, bool] = {}  # norms of which nothing is left (True), or only the shift (False)

    def plan(self) -> None:
        for var, expr in self.defs.items():
            call = self.defs.get(expr.tuple_value) if isinstance(expr, relax.TupleGetItem) and expr.index == 0 else None
            norm = norm_of(call) if call is not None else None
            if call is None or norm is None:
                continue
            self.norms[var] = norm
            source = call.args[0]
            bias = source if self.is_bias(source, norm) else None
            layer = self.foldable(next(live_operands(self.defs[bias])) if bias is not None else source, norm)
            if layer is None:
                continue
            self.layers[layer.var] = norm
            self.gone[var] = bias is not None
            if bias is not None:
                self.biases[bias] = norm

    def is_bias(self, source: graph.Expr, norm: Norm) -> bool:
        """An addition of one value for each channel that only the batch norm reads."""
        expr = self.defs.get(source) if self.only_once(source) else None
        if expr is None or graph.op_name(expr) != "relax.add" or len(list(live_operands(expr))) != 1:
            return False
        constant = next(a for a in expr.args if graph.is_const(a))
        dims = (1,) * (norm.rank - len(graph.shape(constant))) + graph.shape(constant)
        return all(dim == 1 or axis == norm.axis for axis, dim in enumerate(dims))

    def only_once(self, var: graph.Expr) -> bool:
        return isinstance(var, relax.Var) and self.uses.get(var, 0) == 1 and var not in self.results

    def foldable(self, source: graph.Expr, norm: Norm) -> Layer | None:
        expr = self.defs.get(source) if self.only_once(source) else None
        layer = layer_of(source, expr) if expr is not None else None
        if layer is None or layer.weight is None or layer.channel < 0 or source in self.layers:
            return None
        channels = graph.shape(layer.call)[norm.axis]
        output_axis = (norm.rank - 1 if layer.weight else norm.rank - 2) if layer.kind == "matmul" else layer.input_axis
        fits = channels == graph.shape(layer.call.args[layer.weight])[layer.channel] * transposed_groups(layer)
        return layer if norm.axis == output_axis and fits and str(layer.call.ty.dtype) == "float32" else None

    def visit(self, rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
        if var in self.layers:
            layer = layer_of(var, expr)
            assert layer is not None
            return self.scaled(layer, expr, self.layers[var])
        if var in self.biases:
            norm = self.biases[var]
            live = next(live_operands(expr))
            constant = graph.value(next(a for a in expr.args if graph.is_const(a)))
            return relax.op.add(live, graph.const(constant * norm.along(norm.scale) + norm.along(norm.shift)))
        if var not in self.norms:
            return None
        norm = self.norms[var]
        source = rewriter.emitted[expr.tuple_value].args[0]
        if self.gone.get(var):
            return source
        if var not in self.gone:
            source = rewriter.emit(relax.op.multiply(source, graph.const(norm.along(norm.scale))), f"{var.name}_scale")
        return relax.op.add(source, graph.const(norm.along(norm.shift)))

    def scaled(self, layer: Layer, expr: relax.Call, norm: Norm) -> relax.Call:
        """The layer with its weights multiplied along the output channels."""
        weight = layer.weights()
        shape = [1] * weight.ndim
        shape[layer.channel] = -1
        groups = transposed_groups(layer)
        if groups == 1:
            folded = weight * norm.scale.astype(np.float32).reshape(shape)
        else:  # (I, O/g, …): the inputs of group i meet the scales of group i
            parts = zip(np.split(weight, groups, layer.inner), np.split(norm.scale, groups))
            folded = np.concatenate([w * s.astype(np.float32).reshape(shape) for w, s in parts], layer.inner)
        args = [graph.const(folded) if i == layer.weight else a for i, a in enumerate(expr.args)]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)


def transposed_groups(layer: Layer) -> int:
    return int(layer.call.attrs.groups) if layer.kind == "conv_transpose" else 1


def live_operands(expr: relax.Call):
    return (a for a in expr.args if isinstance(a, relax.Var))


def norm_of(call: graph.Expr) -> Norm | None:
    """The batch normalisation that this call is, if it goes by its moving statistics and these are constant."""
    if graph.op_name(call) != BATCH_NORM or call.attrs.training or not all(graph.is_const(a) for a in call.args[1:5]):
        return None
    gamma, beta, mean, variance = (graph.value(a).astype(np.float64) for a in call.args[1:5])
    rank = len(call.args[0].ty.shape)
    scale = 1 / np.sqrt(variance + float(call.attrs.epsilon))
    scale = scale * gamma if call.attrs.scale else scale
    shift = (beta if call.attrs.center else 0) - mean * scale
    return Norm(scale, shift, int(call.attrs.axis) % rank, rank)
