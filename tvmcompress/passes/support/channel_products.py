"""Channels through convolutions and matrix products: where they are created and where they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.channel_groups import Ids, Labels
from tvmcompress.passes.support.channel_rules import called, unknown
from tvmcompress.passes.support.layers import Layer, layer_of

if TYPE_CHECKING:
    from tvmcompress.passes.support.channel_flow import Flow


@dataclass(frozen=True)
class Site:
    """A layer with constant weights, and the numbers of its channels; None: all of them stay.

    A depthwise layer hands its channels on; every other layer creates those of its outputs.
    """

    layer: Layer
    outputs: Ids | None
    inputs: Ids | None
    depthwise: bool = False

    @property
    def input_axis(self) -> int:
        """The axis of the layer's live operand that runs over inputs."""
        if self.layer.kind != "matmul":
            return self.layer.input_axis
        return -1 if self.layer.weight == 1 else -2

    @property
    def reads(self) -> tuple[str, int]:
        """The live operand's name, and that axis."""
        return self.layer.live[0].name, self.input_axis


def convolution(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    layer = layer_of(var, call)
    if layer is None or layer.weight is None or graph.dtype(call.args[1]) != "float32":
        return unknown(flow, var, call)
    x, axis = call.args[0], layer.input_axis
    flow.stop([x], f"{called(var, call)} needs them all", [a for a in flow.of(x) if a != axis])
    inputs, groups, count = flow.of(x).get(axis), int(call.attrs.groups), graph.shape(var)[axis]
    if is_depthwise(layer):
        outputs = None if inputs is None else np.repeat(inputs, count // len(inputs))
        flow.sites.append(Site(layer, outputs, inputs, depthwise=True))
        return {} if outputs is None else {axis: outputs}
    if groups > 1 and inputs is not None:
        flow.groups.balance(inputs, groups)
    outputs = flow.groups.new(count) if count > groups else None
    if groups > 1 and outputs is not None:
        flow.groups.balance(outputs, groups)
    flow.sites.append(Site(layer, outputs, inputs))
    return {} if outputs is None else {axis: outputs}


def is_depthwise(layer: Layer) -> bool:
    channels = graph.shape(layer.call.args[0])[layer.input_axis]
    return int(layer.call.attrs.groups) == channels > 1


def matmul(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    layer = layer_of(var, call)
    ranks = [len(graph.shape(a)) for a in call.args]
    if layer is None or min(ranks) < 2 or graph.dtype(var) != "float32":
        return unknown(flow, var, call)
    if layer.weight is None:
        return product(flow, var, call)
    if ranks[layer.weight] != 2:
        return unknown(flow, var, call)
    x = layer.live[0]
    rank, back = len(graph.shape(x)), 1 if layer.weight == 1 else 2
    inputs, count = flow.of(x).get(rank - back), graph.shape(var)[-back]
    outputs = flow.groups.new(count) if count > 1 else None
    flow.sites.append(Site(layer, outputs, inputs))
    found = {a: ids for a, ids in flow.of(x).items() if a != rank - back}
    return found if outputs is None else {**found, rank - back: outputs}


def product(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    """Of two computed matrices: what is summed over goes in both, heads of both go together."""
    a, b = call.args
    ranks, rank = [len(graph.shape(e)) for e in (a, b)], len(graph.shape(var))
    inner = [flow.of(a).get(ranks[0] - 1), flow.of(b).get(ranks[1] - 2)]
    if inner[0] is not None and inner[1] is not None:
        flow.groups.join(inner[0], inner[1])
    for ids, other in (inner, inner[::-1]):
        if ids is not None and other is None:
            flow.groups.tie(ids, f"{called(var, call)} sums over them with a tensor that keeps them all")
    found = batches(flow, var, call)
    for tensor, back, rank_in in ((a, 2, ranks[0]), (b, 1, ranks[1])):
        ids = flow.of(tensor).get(rank_in - back)
        if ids is not None:
            found[rank - back] = ids
    return found


def batches(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    """The leading axes of a product, of which both operands have the same or one has a single."""
    found: Labels = {}
    rank = len(graph.shape(var))
    for axis in range(rank - 2):
        dim, given, whole = graph.shape(var)[axis], [], False
        for operand in call.args:
            at = axis - rank + len(graph.shape(operand))
            if at >= 0 and dim > 1 and graph.shape(operand)[at] == dim:
                ids = flow.of(operand).get(at)
                whole |= ids is None
                given += [] if ids is None else [ids]
        if given:
            found[axis] = given[0]
            flow.groups.join(given[0], given[-1])
            if whole:
                flow.groups.tie(given[0], f"{called(var, call)} meets a tensor that keeps them all")
    return found
