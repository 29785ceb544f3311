"""Channels followed through a program: what creates them, what reads them, and what needs them all."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.ops import LOCAL_RESPONSE_NORM
from tvmcompress.passes.support import channel_products, channel_rules
from tvmcompress.passes.support.channel_groups import Groups, Ids, Labels
from tvmcompress.passes.support.channel_products import Site
from tvmcompress.passes.support.channel_rules import Rule, tensors, unknown
from tvmcompress.passes.support.channel_shapes import RESHAPES, shuffles
from tvmcompress.passes.support.layers import LAYERS
from tvmcompress.passes.support.operators import POINTWISE, relax_names


class Flow:
    """`labels`: numbers along the axes of each variable; of a tuple a list of such. `heads`: whole heads may go."""

    def __init__(self, mod: tvm.IRModule, heads: bool = True) -> None:
        self.groups, self.heads = Groups(), heads
        self.labels: dict[relax.Var, Labels | list[Labels]] = {}
        self.sites: list[Site] = []
        self.norms: list[tuple[relax.Call, Ids]] = []
        self.shuffles, inside = shuffles(mod)
        for var, value in graph.definitions(mod).items():
            if var not in inside:
                self.labels[var] = self.follow(var, value)
        for result in graph.results(mod):
            self.stop([result], "they reach the model's output")

    def of(self, expr: graph.Expr) -> Labels:
        """The labels of a tensor; none for constants, inputs, and what keeps everything."""
        found = self.labels.get(expr, {}) if isinstance(expr, relax.Var) else {}
        return found if isinstance(found, dict) else {}

    def every(self) -> list[Ids]:
        """The labels of all axes of all tensors."""
        tensors = [t for found in self.labels.values() for t in (found if isinstance(found, list) else [found])]
        return [ids for labels in tensors for ids in labels.values()]

    def stop(self, tensors: Sequence[graph.Expr], why: str, axes: Sequence[int] | None = None) -> None:
        """All channels of these tensors stay; of all their axes, or of some."""
        for tensor in tensors:
            found = self.labels.get(tensor, {}) if isinstance(tensor, relax.Var) else {}
            for labels in found if isinstance(found, list) else [found]:
                for axis, ids in labels.items():
                    if axes is None or axis in axes:
                        self.groups.tie(ids, why)

    def follow(self, var: relax.Var, value: graph.Expr) -> Labels | list[Labels]:
        if isinstance(value, relax.TupleGetItem):
            return self.field(value)
        if isinstance(value, relax.Var):
            return self.labels.get(value, {})
        if isinstance(value, relax.Tuple):
            return [self.of(f) for f in value.fields]
        if not isinstance(value, relax.Call):
            return {}
        if var in self.shuffles:
            shuffle = self.shuffles[var]
            labels = self.of(shuffle.source)
            return {a: ids[shuffle.order] if a == shuffle.axis else ids for a, ids in labels.items()}
        rule = RULES.get(graph.op_name(value), unknown)
        plain = all(isinstance(e.ty, relax.TensorType) and graph.has_static_shape(e) for e in tensors(value))
        if not plain or not graph.has_static_shape(var):
            rule = unknown
        return rule(self, var, value)

    def field(self, value: relax.TupleGetItem) -> Labels:
        found = self.labels.get(value.tuple_value, [])
        if isinstance(found, list) and value.index < len(found):
            return found[value.index]
        self.stop([value.tuple_value], "a tuple holds them")
        return {}


ELEMENTWISE = POINTWISE | relax_names(
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "mod", "floor_mod", "floor_divide"),
    *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "where"),
    *("logical_and", "logical_or", "logical_not", "astype", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "sign"),
    *("round", "floor", "ceil"),
)
POOLS = relax_names(*(f"nn.{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)))

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, channel_rules.together),
    **dict.fromkeys(POOLS, channel_rules.channelwise),
    **dict.fromkeys(RESHAPES, channel_rules.reshape),
    **dict.fromkeys(LAYERS, channel_products.convolution),
    **dict.fromkeys(relax_names("mean", "sum", "max", "min", "prod", "variance", "std"), channel_rules.reduction),
    **dict.fromkeys(
        relax_names("nn.softmax", "nn.log_softmax", "nn.layer_norm", "nn.rms_norm"), channel_rules.normalised
    ),
    "relax.image.resize2d": channel_rules.channelwise,
    "relax.nn.instance_norm": channel_rules.instance_norm,
    "relax.nn.prelu": channel_rules.prelu,
    "relax.nn.batch_norm": channel_rules.batch_norm,
    LOCAL_RESPONSE_NORM: channel_rules.local_response_norm,
    "relax.matmul": channel_products.matmul,
    "relax.permute_dims": channel_rules.permute_dims,
    "relax.broadcast_to": channel_rules.broadcast_to,
    "relax.nn.pad": channel_rules.pad,
    "relax.concat": channel_rules.concat,
    "relax.stack": channel_rules.stack,
    "relax.split": channel_rules.split,
    "relax.strided_slice": channel_rules.strided_slice,
    "relax.take": channel_rules.take,
}
