"""Activations between sparse layers as planes, (n, channels, pixels): their kernels then transpose nothing.

    y = relu(sparse(x) + b)    ->    y' = relu(sparse(x') + b')        y[n, p, c] = y'[n, c, p]

Only where every maker and every reader goes along: what is connected by element-wise operators is planes as a whole, or
not at all. Where the program itself has channels first, as its inputs and results often do, planes are what is there.
Shapes are (n, …, channels), with pixels or tokens in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod

import tvm
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.lower.channels_last import ELEMENTWISE

MEAN = "relax.mean"
PERMUTE = "relax.permute_dims"
SWAPPED = 0.25  # cycles for a word that is transposed, with all cores


def in_planes(
    mod: tvm.IRModule, data_of: Callable[[Var, Expr], list[Var]], cycles: Callable[[Var, bool, bool], float]
) -> set[Var]:
    """The variables that are best planes. `data_of` a layer with a kernel that reads and writes planes: its
    activations, and the padding of these that it takes in; of everything else none. `cycles` of such a layer: whether
    it reads and writes planes."""
    definitions, readers = graph.definitions(mod), graph.consumers(mod)
    results = {var for result in graph.results(mod) for var in relax.analysis.free_vars(result)}
    layers = {var: data for var, expr in definitions.items() if (data := data_of(var, expr))}
    along = {var for var, expr in definitions.items() if goes_along(var, expr)}
    turned = {var for var, expr in definitions.items() if permutes(expr, last)}
    wanted = layers.keys() | {var for data in layers.values() for var in data}
    links = {var: set[Var]() for var in (*layers, *along, *turned)} | linked(definitions, along)

    def fits(var: Var) -> bool:
        made = var in layers or var in along or var in turned
        return made and var not in results and all(reads(reader, var) for reader in readers.get(var, []))

    def reads(reader: Var, var: Var) -> bool:
        if reader not in definitions:
            return False
        if reader in along:
            return var in alike(reader, definitions[reader])
        padded = readers.get(reader, []) and all(reader in layers.get(v, []) for v in readers[reader])
        gone = averages(reader, definitions[reader]) or permutes(definitions[reader], first)
        return var in layers.get(reader, []) or bool(padded) or gone

    groups = [group for group in components(links) if group & wanted and all(fits(var) for var in group)]
    found = {var for group in groups for var in group}
    ends = {var for var, expr in definitions.items() if permutes(expr, first)}

    def total(group: set[Var], members: set[Var]) -> float:
        """Of all that depends on what a group is."""
        near = {var for var, data in layers.items() if var in group or data[0] in group}
        swaps = [var for var in group & turned if var not in members]
        swaps += [var for var in ends if definitions[var].args[0] in group - members]
        times = sum(cycles(var, layers[var][0] in members, var in members) for var in near)
        return times + SWAPPED * sum(prod(graph.shape(var)) for var in swaps)

    # What saves less in one layer than it costs in others.
    for group in groups:
        if total(group, found - group) < total(group, found):
            found -= group
    return found


def linked(definitions: Mapping[Var, Expr], along: Iterable[Var]) -> dict[Var, set[Var]]:
    """What element-wise operators connect, from both ends."""
    links: dict[Var, set[Var]] = {}
    for var in along:
        for other in alike(var, definitions[var]):
            links.setdefault(var, set()).add(other)
            links.setdefault(other, set()).add(var)
    return links


def components(links: dict[Var, set[Var]]) -> list[set[Var]]:
    """What is connected."""
    found, seen = [], set[Var]()
    for start in links:
        if start in seen:
            continue
        group, todo = {start}, [start]
        while todo:
            fresh = links[todo.pop()] - group
            group |= fresh
            todo += fresh
        seen |= group
        found.append(group)
    return found


def alike(var: Var, expr: Expr) -> list[Var]:
    """The operands of an element-wise operator that have its result's shape."""
    tensors = [a for a in expr.args if isinstance(a, relax.Var) and isinstance(a.ty, relax.TensorType)]
    return [a for a in tensors if graph.shape(a) == graph.shape(var)]


def goes_along(var: Var, expr: Expr) -> bool:
    """Element-wise, over operands of one shape, vectors of channels and single values."""
    if op_name(expr) not in ELEMENTWISE or not graph.has_static_shape(var) or len(var.ty.shape) < 2:
        return False
    tensors = [a for a in expr.args if isinstance(a.ty, relax.TensorType)]
    return all(graph.has_static_shape(a) for a in tensors) and all(
        (isinstance(a, relax.Var) and graph.shape(a) == graph.shape(var)) or spread(graph.shape(a), graph.shape(var))
        for a in tensors
    )


def spread(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether it is one value, or a vector of channels (of each image)."""
    if prod(shape) == 1:
        return True
    lead = shape[0] if len(shape) == len(whole) > 2 else 1
    return shape[-1] == whole[-1] and lead in (1, whole[0]) and prod(shape) == lead * shape[-1]


def images(shape: tuple[int, ...]) -> int:
    """The first of the three axes that planes have."""
    return shape[0] if len(shape) > 2 else 1


def averages(var: Var, expr: Expr) -> bool:
    """Over all pixels."""
    if op_name(expr) != MEAN or expr.attrs.axis is None or not graph.has_static_shape(expr.args[0]):
        return False
    rank = len(graph.shape(expr.args[0]))
    return rank > 2 and sorted(int(a) % rank for a in expr.attrs.axis) == list(range(1, rank - 1))


def last(rank: int) -> list[int]:
    """The axes of a tensor with channels first, or behind the images where it has such, in the order that puts them
    last."""
    return [0, *range(2, rank), 1] if rank > 2 else [1, 0]


def first(rank: int) -> list[int]:
    """And back."""
    return [0, rank - 1, *range(1, rank - 1)] if rank > 2 else [1, 0]


def permutes(expr: Expr, axes: Callable[[int], list[int]]) -> bool:
    if op_name(expr) != PERMUTE or not graph.has_static_shape(expr.args[0]):
        return False
    given = attrs.order(expr)
    return len(given) > 1 and given == axes(len(given))


class Views:
    """Writes the new program: each expression that is planes has a view of the old shape, which nothing reads in the
    end."""

    def __init__(self, members: set[Var]) -> None:
        self.members = members
        self.planes: dict[Expr, Expr] = {}  # of a view

    def __call__(self, rw: Rewriter, var: Var, expr: Expr) -> Expr | None:
        if var in self.members and op_name(expr) in ELEMENTWISE:
            args = [self.operand(rw, a, var) for a in expr.args]
            return self.view(rw, relax.Call(expr.op, args, expr.attrs, expr.ty_args), var)
        if var in self.members and op_name(expr) == PERMUTE:
            shape = graph.shape(var)
            planes = images(shape), shape[-1], prod(shape[:-1]) // images(shape)
            return self.view(rw, relax.op.reshape(expr.args[0], planes), var)
        if permutes(expr, first) and expr.args[0] in self.planes:
            return relax.op.reshape(self.planes[expr.args[0]], graph.shape(var))
        if op_name(expr) == MEAN and expr.args[0] in self.planes:
            return relax.op.reshape(rw.emit(relax.op.mean(self.planes[expr.args[0]], [2])), graph.shape(var))
        return None

    def view(self, rw: Rewriter, planes: Expr, var: Var) -> Expr:
        """`planes` are what `var` was; its view."""
        planes = rw.emit(planes, var.name)
        pixels = rw.emit(relax.op.permute_dims(planes, [0, 2, 1]))
        viewed = rw.emit(relax.op.reshape(pixels, graph.shape(var)))
        self.planes[viewed] = planes
        return viewed

    def operand(self, rw: Rewriter, a: Expr, var: Var) -> Expr:
        if a in self.planes or not isinstance(a.ty, relax.TensorType) or not graph.shape(a):
            return self.planes.get(a, a)
        shape = graph.shape(a)
        lead = shape[0] if len(shape) == len(graph.shape(var)) > 2 else 1
        wanted = (lead, shape[-1], 1) if prod(shape) > 1 else ()
        if graph.is_const(a):
            return graph.const(graph.value(a).reshape(wanted))
        return rw.emit(relax.op.reshape(a, wanted))
