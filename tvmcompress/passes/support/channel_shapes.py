"""Channels through a change of shape: where an axis goes, and which changes of shape only shuffle one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.passes.support.channel_groups import Groups, Ids, Labels

RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten", "relax.nn.batch_flatten")


def segments(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of both shapes that hold the same elements, as few as can be: of (8, 4) and (2, 4, 4) 0 | 0, 1 and 1 | 2."""
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        i, j = i + len(ins), j + len(outs)
        while (a := size(before, ins)) != (b := size(after, outs)):
            if a < b:
                ins.append(i)
                i += 1
            else:
                outs.append(j)
                j += 1
        yield ins, outs


def size(dims: Sequence[int], axes: Sequence[int]) -> int:
    return int(np.prod([dims[a] for a in axes], dtype=np.int64))


def reshaped(
    groups: Groups, labels: Labels, before: Sequence[int], after: Sequence[int], heads: bool, who: str
) -> Labels:
    """The labels of a tensor of shape `before` that becomes one of shape `after`.

    An axis that is flattened with others gives its numbers to all of its elements. One that is taken apart into heads
    and their channels is joined head by head, or tied where `heads` may not go.
    """
    found: Labels = {}
    for ins, outs in segments(before, after):
        labelled = [axis for axis in ins if axis in labels]
        if len(labelled) > 1:
            for mixed in labelled:
                groups.tie(labels[mixed], f"{who} mixes it with another axis")
        if len(labelled) != 1:
            continue
        dims = [before[i] for i in ins]
        along = [-1 if i == labelled[0] else 1 for i in ins]
        ids = np.broadcast_to(labels[labelled[0]].reshape(along), dims).reshape([after[o] for o in outs])
        axis = carrier(groups, ids)
        if axis is None and not heads:
            groups.tie(ids, f"{who} takes it apart, and heads stay")
            continue
        if axis is None:
            axis = join_heads(groups, ids)
        found[outs[axis]] = first_along(ids, axis)
    return found


def first_along(ids: Ids, axis: int) -> Ids:
    """What stands along `axis`, at index 0 of all others."""
    return np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0].copy()


def carrier(groups: Groups, ids: Ids) -> int | None:
    """The axis that alone decides which set an element belongs to."""
    roots = groups.find(ids.reshape(-1)).reshape(ids.shape)
    for axis in range(ids.ndim):
        lines = np.moveaxis(roots, axis, 0).reshape(ids.shape[axis], -1)
        if ids.shape[axis] > 1 and (lines == lines[:, :1]).all():
            return axis
    return None


def join_heads(groups: Groups, ids: Ids) -> int:
    """Join what differs in other axes than that of the heads: the longest but the last. Returns it."""
    wide = [axis for axis in range(ids.ndim) if ids.shape[axis] > 1]
    axis = max(wide[:-1], key=lambda a: ids.shape[a])
    lines = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    groups.join(np.repeat(lines[:, 0], lines.shape[1]), lines)
    return axis


@dataclass(frozen=True)
class Shuffle:
    """reshape(permute_dims(reshape(x))) that only changes the order along `axis`: y[i] = x[order[i]]."""

    source: relax.Var
    axis: int
    order: np.ndarray


def shuffles(mod: tvm.IRModule) -> tuple[dict[relax.Var, Shuffle], set[relax.Var]]:
    """By the variable of the last reshape; and the variables within."""
    defs, readers = graph.definitions(mod), graph.consumers(mod)
    found: dict[relax.Var, Shuffle] = {}
    inside: set[relax.Var] = set()
    kept = {r for r in graph.results(mod) if isinstance(r, relax.Var)}
    for var, call in defs.items():
        chain = chain_of(var, call, defs)
        if chain is None or any(len(readers.get(v, ())) != 1 or v in kept for v in chain):
            continue
        first, middle = chain
        shuffle = shuffle_of(defs[first].args[0], defs[first], defs[middle], call)
        if shuffle is not None:
            found[var] = shuffle
            inside |= {first, middle}
    return found, inside


def chain_of(
    var: relax.Var, call: graph.Expr, defs: Mapping[relax.Var, graph.Expr]
) -> tuple[relax.Var, relax.Var] | None:
    """The reshape and the permute_dims before a reshape."""
    middle = call.args[0] if graph.op_name(call) == "relax.reshape" else None
    first = defs[middle].args[0] if middle in defs and graph.op_name(defs[middle]) == "relax.permute_dims" else None
    if first not in defs or graph.op_name(defs[first]) != "relax.reshape":
        return None
    return (first, middle) if all(graph.has_static_shape(v) for v in (var, middle, first)) else None


def shuffle_of(x: graph.Expr, first: relax.Call, middle: relax.Call, last: relax.Call) -> Shuffle | None:
    if not isinstance(x, relax.Var) or not graph.has_static_shape(x) or graph.shape(x) != graph.shape(last):
        return None
    dims = graph.shape(x)
    places = np.arange(size(dims, range(len(dims)))).reshape(dims)
    moved = places.reshape(graph.shape(first)).transpose(attrs.order(middle)).reshape(dims)
    for axis, dim in enumerate(dims):
        stride = size(dims, range(axis + 1, len(dims)))
        order = first_along(moved, axis) // stride
        if dim > 1 and sorted(order) == list(range(dim)) and np.array_equal(moved, places.take(order, axis)):
            return Shuffle(x, axis, order)
    return None


def transposition(order: np.ndarray) -> int | None:
    """How many groups `order` interleaves: arange(n).reshape(groups, -1).T, flattened; None of any other."""
    count = len(order)
    run = int(order[1]) if count > 1 else 1
    if run < 1 or count % run:
        return None
    groups = count // run
    return groups if np.array_equal(order, np.arange(count).reshape(groups, run).T.reshape(-1)) else None
