"""Writing new weights into a program, and with them what is to be added to the layers' outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.biases import additions, with_bias
from tvmcompress.passes.support.insertion import substitute
from tvmcompress.passes.support.layers import layer_of


@dataclass
class NewWeights:
    """`weights` and `shifts` (shaped as the output wants them) by the layer's name. Layers whose weights are one and
    the same array share one constant.

    `ends`: for each of these layers the names, before and after, of the tensor in which its output is complete.
    """

    weights: Mapping[str, np.ndarray]
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)

    def written(self, mod: tvm.IRModule) -> tvm.IRModule:
        """`conv(x, W) + b -> conv(x, V) + (b + shift)`; without an addition behind the layer, with one of its own."""
        adds = {name: var for name, var in additions(mod).items() if name in self.shifts}
        shifted = {var: self.shifts[name] for name, var in adds.items()}
        constants: dict[int, graph.Expr] = {}

        def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
            if var in shifted:
                new = rewriter.emit(with_bias(expr, shifted[var]), var.name)
                self.ends.update({name: (var.name, new.name) for name, add in adds.items() if add == var})
                return new
            if var.name not in self.weights:
                return None
            layer = layer_of(var, expr)
            assert layer is not None and layer.weight is not None
            array = self.weights[var.name]
            if id(array) not in constants:
                constants[id(array)] = graph.const(array)
            new = rewriter.emit(substitute(expr, {expr.args[layer.weight]: constants[id(array)]}), var.name)
            if var.name in self.shifts and var.name not in adds:
                new = rewriter.emit(relax.op.add(new, graph.const(self.shifts[var.name])), f"{var.name}_made_up")
            self.ends[var.name] = var.name, new.name
            return new

        return graph.rewrite(mod, visit)
