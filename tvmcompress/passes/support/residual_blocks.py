"""Residual blocks: additions of a tensor and a branch of layers that starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.layers import Layer, layer_of


@dataclass(frozen=True)
class Block:
    """out = add(start, branch of start), all of one shape. `layers`: those of the branch."""

    out: relax.Var
    start: relax.Var
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return self.out.name


def blocks(mod: tvm.IRModule) -> list[Block]:
    """In order; a block that contains another is none."""
    defs = graph.definitions(mod)
    places = {var: i for i, var in enumerate(defs)}
    found: list[Block] = []
    for var, call in defs.items():
        if graph.op_name(call) != "relax.add" or not all(isinstance(a, relax.Var) for a in call.args):
            continue
        if not alike(var, *call.args):
            continue
        for start, end in (tuple(call.args), tuple(call.args)[::-1]):
            branch = between(defs, places, start, end)
            inside = tuple(layer for v in branch if (layer := layer_of(v, defs[v])) is not None)
            if inside and not any(block.out in branch for block in found):
                found.append(Block(var, start, inside))
    return found


def alike(*tensors: graph.Expr) -> bool:
    """All of one static shape and dtype."""
    if not all(isinstance(t.ty, relax.TensorType) and graph.has_static_shape(t) for t in tensors):
        return False
    return len({(graph.shape(t), graph.dtype(t)) for t in tensors}) == 1


def between(
    defs: Mapping[relax.Var, graph.Expr], places: Mapping[relax.Var, int], start: relax.Var, end: relax.Var
) -> list[relax.Var]:
    """The variables on the ways from `start` to `end`, in order, `end` too; none when there is no way."""
    earliest = places.get(start, -1)
    seen: set[relax.Var] = set()
    todo = [end]
    while todo:
        var = todo.pop()
        if var in seen or places.get(var, -1) <= earliest:
            continue
        seen.add(var)
        todo.extend(relax.analysis.free_vars(defs[var]))
    on_the_way = {start}
    for var in sorted(seen, key=places.__getitem__):
        if any(v in on_the_way for v in relax.analysis.free_vars(defs[var])):
            on_the_way.add(var)
    ways = [v for v in sorted(seen, key=places.__getitem__) if v in on_the_way]
    return ways if end in on_the_way and end != start else []
