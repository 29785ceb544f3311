"""What each operator does with the channels of its operands: which axes they go to, and what must stay.

A rule takes (flow, variable, call) and returns the numbers along the axes of the result; of a tuple a list of such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.passes.support.channel_groups import Labels
from tvmcompress.passes.support.channel_shapes import reshaped

if TYPE_CHECKING:
    from tvmcompress.passes.support.channel_flow import Flow


def tensors(call: relax.Call) -> list[graph.Expr]:
    """The operands of a call that are tensors, constants included."""
    found = []
    for argument in call.args:
        fields = argument.fields if isinstance(argument, relax.Tuple) else [argument]
        found += [f for f in fields if isinstance(f, relax.Var) or graph.is_const(f)]
    return found


def called(var: relax.Var, call: relax.Call) -> str:
    """An operator as a note names it: nn.softmax 'softmax_3'."""
    return f"{graph.op_name(call).removeprefix('relax.') or 'a call'} '{var.name}'"


Rule = Callable[["Flow", relax.Var, relax.Call], Labels | list[Labels]]


def unknown(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    flow.stop(tensors(call), f"{called(var, call)} cannot be followed")
    return {}


def together(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    """Element by element, operands broadcast; a constant along the axis is cut with it."""
    return aligned(flow, var, call, tensors(call))


def aligned(flow: Flow, var: relax.Var, call: relax.Call, operands: Sequence[graph.Expr]) -> Labels:
    found: Labels = {}
    dims = graph.shape(var)
    for axis, dim in enumerate(dims):
        labels, whole = [], False
        for operand in operands:
            at = axis - len(dims) + len(graph.shape(operand))
            if at < 0 or graph.shape(operand)[at] != dim or dim == 1 or graph.is_const(operand):
                continue
            ids = flow.of(operand).get(at)
            whole |= ids is None
            labels += [ids] if ids is not None else []
        if not labels:
            continue
        found[axis] = labels[0]
        for other in labels[1:]:
            flow.groups.join(labels[0], other)
        if whole:
            flow.groups.tie(labels[0], f"{called(var, call)} meets a tensor that keeps them all")
    return found


def channelwise(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    """Pooling and resizing: batch and channels pass."""
    layout = str(call.attrs.layout)
    passing = [layout.index(letter) for letter in "NC"]
    return passed(flow, var, call, {axis: axis for axis in passing})


def passed(flow: Flow, var: relax.Var, call: relax.Call, where: dict[int, int]) -> Labels:
    """The labels of the first operand, axes renamed by `where`; those of other axes must stay."""
    x = call.args[0]
    flow.stop([x], f"{called(var, call)} needs them all", [a for a in flow.of(x) if a not in where])
    return {where[axis]: ids for axis, ids in flow.of(x).items() if axis in where}


def reduction(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    rank = len(graph.shape(call.args[0]))
    reduced = range(rank) if call.attrs.axis is None else [int(a) % rank for a in call.attrs.axis]
    kept = [axis for axis in range(rank) if axis not in reduced]
    return passed(flow, var, call, {a: a if call.attrs.keepdims else i for i, a in enumerate(kept)})


def normalised(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    """Softmax, and normalisation over the elements of some axes."""
    rank = len(graph.shape(call.args[0]))
    axes = [call.attrs.axis] if hasattr(call.attrs, "axis") else list(call.attrs.axes)
    axes = [int(a) % rank for a in axes]
    return passed(flow, var, call, {axis: axis for axis in range(rank) if axis not in axes})


def instance_norm(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    rank = len(graph.shape(call.args[0]))
    if not all(graph.is_const(a) for a in call.args[1:3]):
        return unknown(flow, var, call)
    axes = [int(a) % rank for a in call.attrs.axes]
    return passed(flow, var, call, {axis: axis for axis in range(rank) if axis not in axes})


def batch_norm(flow: Flow, var: relax.Var, call: relax.Call) -> list[Labels]:
    x, rank = call.args[0], len(graph.shape(call.args[0]))
    axis = int(call.attrs.axis) % rank
    if call.attrs.training or not all(graph.is_const(a) for a in call.args[1:5]):
        return [unknown(flow, var, call), {}, {}]
    labels = dict(flow.of(x))
    if axis in labels:
        flow.norms.append((call, labels[axis]))
    return [labels]


def local_response_norm(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    return dict(flow.of(call.args[0]))


def prelu(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    return dict(flow.of(call.args[0])) if graph.is_const(call.args[1]) else unknown(flow, var, call)


def permute_dims(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    return passed(flow, var, call, {before: after for after, before in enumerate(attrs.order(call))})


def reshape(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    x = call.args[0]
    return reshaped(flow.groups, flow.of(x), graph.shape(x), graph.shape(var), flow.heads, called(var, call))


def broadcast_to(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    return aligned(flow, var, call, [call.args[0]])


def pad(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    width = [int(w) for w in call.attrs.pad_width]
    plain = [axis for axis in range(len(width) // 2) if not any(width[2 * axis : 2 * axis + 2])]
    return passed(flow, var, call, {axis: axis for axis in plain})


def concat(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    """Numbers one after the other; what has none is given some that must stay."""
    fields = tensors(call)
    axis = int(call.attrs.axis or 0) % len(graph.shape(var))
    found = across(flow, var, call, [flow.of(f) for f in fields], [graph.is_const(f) for f in fields], axis)
    if not any(axis in flow.of(part) for part in fields):
        return found
    parts = []
    for part in fields:
        ids = flow.of(part).get(axis)
        if ids is None:
            ids = flow.groups.new(graph.shape(part)[axis])
            flow.groups.tie(ids, f"{called(var, call)} meets a tensor that keeps them all")
        parts.append(ids)
    return {**found, axis: np.concatenate(parts)}


def across(flow: Flow, var: relax.Var, call: relax.Call, labels: list[Labels], fixed: list[bool], axis: int) -> Labels:
    """Axes other than `axis`, on which all operands must agree."""
    found: Labels = {}
    for at in {a for each in labels for a in each if a != axis}:
        given = [each[at] for each in labels if at in each]
        found[at] = given[0]
        for other in given[1:]:
            flow.groups.join(given[0], other)
        if any(at not in each and not const for each, const in zip(labels, fixed)):
            flow.groups.tie(given[0], f"{called(var, call)} meets a tensor that keeps them all")
    return found


def stack(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    axis = int(call.attrs.axis or 0) % len(graph.shape(var))
    moved = [{a + (a >= axis): ids for a, ids in flow.of(f).items()} for f in tensors(call)]
    return across(flow, var, call, moved, [graph.is_const(f) for f in tensors(call)], axis)


def split(flow: Flow, var: relax.Var, call: relax.Call) -> list[Labels]:
    labels, axis = flow.of(call.args[0]), int(call.attrs.axis) % len(graph.shape(call.args[0]))
    found, start = [], 0
    for part in var.ty.fields:
        end = start + int(part.shape[axis])
        found.append({a: ids[start:end] if a == axis and end - start > 1 else ids for a, ids in labels.items()})
        if end - start == 1 and axis in labels:
            flow.groups.tie(labels[axis][start:end], f"{called(var, call)} takes single channels")
            del found[-1][axis]
        start = end
    return found


def slices(call: relax.Call) -> dict[int, np.ndarray] | None:
    """Of a strided_slice: the indices taken, by axis; None when they are not numbers."""
    try:
        given = [[int(graph.number(v)) for v in a.fields] for a in call.args[1:]]
    except (AttributeError, TypeError):
        return None
    dims = graph.shape(call.args[0])
    axes, begin, end = given[:3]
    steps = given[3] if len(given) > 3 else [1] * len(axes)
    picks = {a % len(dims): np.arange(dims[a])[b:e:s] for a, b, e, s in zip(axes, begin, end, steps)}
    return picks if all(s > 0 for s in steps) else None


def strided_slice(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    picks = slices(call)
    if picks is None or any(len(p) != graph.shape(var)[a] for a, p in picks.items()):
        return unknown(flow, var, call)
    found = {axis: ids[picks[axis]] if axis in picks else ids for axis, ids in flow.of(call.args[0]).items()}
    return without_ones(flow, var, call, found)


def without_ones(flow: Flow, var: relax.Var, call: relax.Call, labels: Labels) -> Labels:
    """An axis of one element has no number: what is there stays."""
    for axis in [a for a, ids in labels.items() if len(ids) == 1]:
        flow.groups.tie(labels.pop(axis), f"{called(var, call)} takes single channels")
    return labels


def take(flow: Flow, var: relax.Var, call: relax.Call) -> Labels:
    x, indices = call.args[:2]
    labels, rank = flow.of(x), len(graph.shape(x))
    if call.attrs.axis is None or flow.of(indices):
        return unknown(flow, var, call)
    axis, more = int(call.attrs.axis) % rank, len(graph.shape(indices)) - 1
    found = {a + (more if a > axis else 0): ids for a, ids in labels.items() if a != axis}
    if axis not in labels:
        return found
    if more != 0 or not graph.is_const(indices) or not within(graph.value(indices), graph.shape(x)[axis]):
        flow.stop([x], f"{called(var, call)} picks among them", [axis])
        return found
    found[axis] = labels[axis][graph.value(indices)]
    return without_ones(flow, var, call, found)


def within(indices: np.ndarray, count: int) -> bool:
    return bool(((indices >= -count) & (indices < count)).all())
