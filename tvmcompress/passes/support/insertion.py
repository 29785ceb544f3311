"""Writing quantize / dequantize into a program, once it is known where and with which ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph, ops
from tvmcompress.passes.support import ranges, weights
from tvmcompress.passes.support.biases import adds_constant, mean_shift, with_bias
from tvmcompress.passes.support.layers import Layer
from tvmcompress.passes.support.placement import Plan, live

Ranges = dict[str, tuple[float, float]]
Means = dict[str, np.ndarray]


class Insertion:
    """`visit` for `graph.rewrite`. `limits`: range by tensor; `means`: channel means of layers' inputs, which turn the
    correction of biases on. `loops`: the steps of recurrent layers, and the range of all their inputs. Afterwards
    `names` leads from each binding's old name to its new one.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        plan: Plan,
        limits: Ranges,
        means: Means,
        search: bool,
        loops: Collection[tuple[Collection[Layer], tuple[float, float]]] = (),
    ):
        self.steps = {layer.var: (layer, limits) for loop, limits in loops for layer in loop}
        self.plan, self.limits, self.means, self.search = plan, limits, means, search
        self.old = graph.definitions(mod)
        self.names: dict[str, str] = {}
        self.quantized: dict[graph.Expr, graph.Expr] = {}  # computed in float, by new variable
        self.weights: dict[tuple, tuple[graph.Expr, np.ndarray, np.ndarray]] = {}
        self.biases: dict[relax.Var, np.ndarray] = {}  # what to add to the constant of a binding, by old variable
        self.started = False

    def visit(self, rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr:
        if not self.started:
            self.quantize_inputs(rewriter)
        if any(var in self.plan.readers.get(operand, ()) for operand in live(self.old[var])):
            expr = substitute(expr, self.quantized)
        layer = self.plan.layers.get(var)
        if layer is not None and layer.weight is not None:
            expr = self.layer(rewriter, layer, expr)
        if var in self.steps:
            step, limits = self.steps[var]
            real = expr.args[0 if step.weight else 1]
            expr = substitute(
                self.with_weights(rewriter, step, expr), {real: self.rounded(rewriter, real, limits, real.name)}
            )
        if var in self.biases:
            expr = with_bias(expr, self.biases[var])
        new = rewriter.emit(expr, var.name)
        self.names[var.name] = new.name
        if var not in self.plan.points:
            return new
        both = self.point(rewriter, var, new)
        if var in self.plan.whole:
            return both
        self.quantized[new] = both
        return new

    def quantize_inputs(self, rewriter: graph.Rewriter) -> None:
        self.started = True
        for old in self.plan.points:
            if old not in self.old:
                new = rewriter.replacement[old]
                self.quantized[new] = self.point(rewriter, old, new)

    def point(self, rewriter: graph.Rewriter, var: relax.Var, real: graph.Expr) -> graph.Expr:
        """quantize and dequantize `real` with the parameters that the plan gives to `var`."""
        return self.rounded(rewriter, real, self.limits[self.plan.points[var].name], var.name)

    def rounded(self, rewriter: graph.Rewriter, real: graph.Expr, limits: tuple[float, float], name: str) -> graph.Expr:
        p = ranges.params(*limits)
        q = rewriter.emit(ops.quantize(real, p.scale, p.zero, "uint8"), f"{name}_q")
        return rewriter.emit(ops.dequantize(q, p.scale, p.zero), f"{name}_dq")

    def with_weights(self, rewriter: graph.Rewriter, layer: Layer, expr: relax.Call) -> relax.Call:
        """The layer with its constant operand in integers."""
        at = layer.weight_key()
        if at not in self.weights:
            integers, scales = weights.per_channel(layer.weights(), layer.channel, self.search)
            real = weights.emit_per_channel(rewriter, layer.name, integers, scales, layer.channel)
            self.weights[at] = real, integers, scales
        return substitute(expr, {expr.args[layer.weight]: self.weights[at][0]})

    def layer(self, rewriter: graph.Rewriter, layer: Layer, expr: relax.Call) -> graph.Expr:
        """As `with_weights`, and with a bias when the correction finds none to change."""
        call = self.with_weights(rewriter, layer, expr)
        _, integers, scales = self.weights[layer.weight_key()]
        mean = self.means.get(layer.live[0].name) if layer.weight == 1 else None
        if mean is None or layer.channel < 0:
            return call
        shift = mean_shift(layer, lost(layer, integers, scales), mean)
        inside = self.plan.inside[layer.var]
        if len(inside) > 1 and adds_constant(self.old[inside[1]]):
            self.biases[inside[1]] = shift
            return call
        return rewriter.emit(relax.op.add(rewriter.emit(call, layer.name), graph.const(shift)), f"{layer.name}_bias")


def substitute(expr: graph.Expr, mapping: Mapping[graph.Expr, graph.Expr]) -> graph.Expr:
    """`expr` with operands replaced."""
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(f, mapping) for f in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return expr
    if isinstance(expr, relax.Call):
        return relax.Call(expr.op, [substitute(a, mapping) for a in expr.args], expr.attrs, expr.ty_args)
    return mapping.get(expr, expr) if isinstance(expr, relax.Var) or graph.is_const(expr) else expr


def lost(layer: Layer, integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What rounding takes from the weights."""
    shape = [1] * integers.ndim
    shape[layer.channel] = -1
    return layer.weights() - integers * scales.reshape(shape)
