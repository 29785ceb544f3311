"""The program without the channels that go: weights and constants are cut, shapes that are written out follow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import attrs, graph
from tvmcompress.ir.ops import LOCAL_RESPONSE_NORM
from tvmcompress.passes.support.channel_flow import ELEMENTWISE, Flow
from tvmcompress.passes.support.channel_groups import Ids, Labels
from tvmcompress.passes.support.channel_lrn import local_response_norm
from tvmcompress.passes.support.channel_products import Site
from tvmcompress.passes.support.channel_rules import slices, tensors
from tvmcompress.passes.support.channel_shapes import RESHAPES, transposition
from tvmcompress.passes.support.channel_weights import by_channels, in_layout
from tvmcompress.passes.support.layers import LAYERS


def cut(mod: tvm.IRModule, flow: Flow, alive: np.ndarray) -> tvm.IRModule:
    """`mod` with those channels alone that are `alive`, by number."""
    return graph.rewrite(mod, Cut(mod, flow, alive).visit)


class Cut:
    """`visit` for `graph.rewrite`."""

    def __init__(self, mod: tvm.IRModule, flow: Flow, alive: np.ndarray) -> None:
        self.flow, self.alive = flow, alive
        self.old = graph.definitions(mod)
        self.sites = {site.layer.var: site for site in flow.sites}
        self.constants: dict[tuple, graph.Expr] = {}
        self.handlers: dict[str, Callable] = {
            **dict.fromkeys(ELEMENTWISE, self.elementwise),
            **dict.fromkeys(RESHAPES, self.reshape),
            **dict.fromkeys(LAYERS, self.layer),
            **dict.fromkeys(("relax.nn.batch_norm", "relax.nn.instance_norm", "relax.nn.prelu"), self.channelwise),
            "relax.broadcast_to": self.broadcast_to,
            "relax.concat": self.concat,
            "relax.stack": self.stack,
            "relax.split": self.split,
            "relax.strided_slice": self.strided_slice,
            "relax.take": self.take,
            LOCAL_RESPONSE_NORM: self.local_response_norm,
        }

    def visit(self, rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
        if var not in self.flow.labels:
            return expr.args[0]  # within a shuffle, which is written anew at its end
        if var in self.flow.shuffles:
            return self.shuffle(rewriter, var, expr)
        handler = self.handlers.get(graph.op_name(expr))
        if handler is None or not any(self.goes(e) for e in (var, *tensors(self.old[var]))):
            return None
        return handler(rewriter, var, expr)

    def goes(self, expr: graph.Expr) -> bool:
        """Something of a tensor, or of a tuple, goes."""
        found = self.flow.labels.get(expr, {}) if isinstance(expr, relax.Var) else {}
        labels = found if isinstance(found, list) else [found]
        return any(not self.alive[ids].all() for each in labels for ids in each.values())

    def places(self, ids: Ids, picked: np.ndarray) -> np.ndarray:
        """Where, of an axis `ids`, the indices `picked` lie after the cut; without those that go."""
        new = np.cumsum(self.alive[ids]) - 1
        return new[picked[self.alive[ids][picked]]]

    def dims(self, var: relax.Var) -> list[int]:
        """The shape without what goes."""
        labels = self.flow.of(var)
        return [int(self.alive[labels[a]].sum()) if a in labels else d for a, d in enumerate(graph.shape(var))]

    def constant(self, constant: graph.Expr, axes: Labels) -> graph.Expr:
        """A constant cut along axes. What shares one shares what is left of it."""
        masks = {axis: self.alive[ids] for axis, ids in axes.items() if not self.alive[ids].all()}
        key = (constant, *((axis, mask.tobytes()) for axis, mask in sorted(masks.items())))
        if masks and key not in self.constants:
            array = graph.value(constant)
            for axis, mask in masks.items():
                array = array.compress(mask, axis)
            self.constants[key] = graph.const(array)
        return self.constants[key] if masks else constant

    def elementwise(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        """Constants are cut where they are as long as the axis that they are broadcast along."""
        labels, rank = self.flow.of(var), len(graph.shape(var))
        args = []
        for arg in expr.args:
            if graph.is_const(arg):
                dims = graph.shape(arg)
                axes = {axis - rank + len(dims): ids for axis, ids in labels.items()}
                arg = self.constant(arg, {a: ids for a, ids in axes.items() if a >= 0 and dims[a] == len(ids)})
            args.append(arg)
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)

    def channelwise(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        """Operators with a constant for each channel."""
        x, rank = self.old[var].args[0], len(graph.shape(self.old[var].args[0]))
        axis = int(getattr(expr.attrs, "channel_axis", getattr(expr.attrs, "axis", 1))) % rank
        labels = {0: self.flow.of(x)[axis]} if axis in self.flow.of(x) else {}
        args = [self.constant(a, labels) if graph.is_const(a) else a for a in expr.args]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)

    def layer(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr | None:
        site = self.sites.get(var)
        if site is None:
            return None
        args = [self.weight(site) if i == site.layer.weight else a for i, a in enumerate(expr.args)]
        if site.depthwise and site.inputs is not None:
            return attrs.changed(expr, args, groups=int(self.alive[site.inputs].sum()))
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)

    def weight(self, site: Site) -> graph.Expr:
        """The outputs that stay, of the inputs that stay, group by group; of a depthwise layer the groups that stay."""
        layer = site.layer
        parts = by_channels(layer, layer.weights())
        groups, outputs, inputs = parts.shape[:3]
        if site.depthwise:
            outputs = inputs = 1
        masks = (self.mask(site.outputs, groups * outputs), self.mask(site.inputs, groups * inputs))
        key = (layer.call.args[layer.weight], *(mask.tobytes() for mask in masks))
        if key in self.constants:
            return self.constants[key]
        if site.depthwise:
            left = parts[masks[1]]
        else:
            rows, columns = (mask.reshape(groups, -1) for mask in masks)
            left = np.stack([part[row][:, column] for part, row, column in zip(parts, rows, columns)])
        self.constants[key] = graph.const(in_layout(layer, left))
        return self.constants[key]

    def mask(self, ids: Ids | None, count: int) -> np.ndarray:
        return np.ones(count, bool) if ids is None else self.alive[ids]

    def reshape(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        return relax.op.reshape(expr.args[0], self.dims(var))

    def broadcast_to(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        return relax.op.broadcast_to(expr.args[0], self.dims(var))

    def shuffle(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        """Again a transposition of channels where what stays has one; else they are picked one by one."""
        found, x = self.flow.shuffles[var], expr.args[0]
        ids = self.flow.of(found.source).get(found.axis)
        order = found.order if ids is None else self.places(ids, found.order)
        dims, groups, axis = self.dims(var), transposition(order), found.axis
        if groups is None:
            return relax.op.take(x, graph.const(order, "int64"), axis, mode="clip")
        apart = [*dims[:axis], groups, dims[axis] // groups, *dims[axis + 1 :]]
        swapped = [*range(axis), axis + 1, axis, *range(axis + 2, len(apart))]
        parts = rewriter.emit(relax.op.reshape(x, apart), f"{var.name}_groups")
        return relax.op.reshape(rewriter.emit(relax.op.permute_dims(parts, swapped), f"{var.name}_swapped"), dims)

    def concat(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        axis = int(expr.attrs.axis or 0) % len(graph.shape(var))
        labels = {a: ids for a, ids in self.flow.of(var).items() if a != axis}
        return relax.op.concat(self.fields(expr, labels), axis)

    def stack(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        axis = int(expr.attrs.axis or 0) % len(graph.shape(var))
        labels = {a - (a > axis): ids for a, ids in self.flow.of(var).items()}
        return relax.op.stack(self.fields(expr, labels), axis)

    def fields(self, expr: relax.Call, labels: Labels) -> list[graph.Expr]:
        return [self.constant(f, labels) if graph.is_const(f) else f for f in expr.args[0].fields]

    def split(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        axis = int(expr.attrs.axis) % len(graph.shape(self.old[var].args[0]))
        found = self.flow.labels[var]
        assert isinstance(found, list)
        sizes = [
            int(self.alive[each[axis]].sum()) if axis in each else int(field.shape[axis])
            for each, field in zip(found, var.ty.fields)
        ]
        return relax.op.split(expr.args[0], [int(i) for i in np.cumsum(sizes)[:-1]], axis)

    def strided_slice(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr:
        picks = slices(self.old[var])
        if picks is None:
            return expr
        labels, x = self.flow.of(self.old[var].args[0]), expr.args[0]
        for axis, picked in picks.items():
            picked = self.places(labels[axis], picked) if axis in labels else picked
            x = rewriter.emit(picking(x, axis, picked), f"{var.name}_axis{axis}")
        return x

    def take(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr | None:
        x = self.old[var].args[0]
        axis = int(expr.attrs.axis or 0) % len(graph.shape(x))
        if axis not in self.flow.of(x) or not graph.shape(expr.args[1]):
            return None
        picked = self.places(self.flow.of(x)[axis], graph.value(expr.args[1]) % graph.shape(x)[axis])
        return attrs.changed(expr, [expr.args[0], graph.const(picked.astype(graph.dtype(expr.args[1])))])

    def local_response_norm(self, rewriter: graph.Rewriter, var: relax.Var, expr: relax.Call) -> graph.Expr | None:
        ids = self.flow.of(var).get(len(graph.shape(var)) - 1)
        if ids is None or self.alive[ids].all():
            return None
        return local_response_norm(rewriter, var.name, expr, np.flatnonzero(self.alive[ids]))


def picking(x: graph.Expr, axis: int, picked: np.ndarray) -> graph.Expr:
    """Indices along an axis: a slice where they are one."""
    steps = set(np.diff(picked).tolist())
    if len(steps) > 1:
        return relax.op.take(x, graph.const(picked, "int64"), axis, mode="clip")
    return relax.op.strided_slice(x, [axis], [int(picked[0])], [int(picked[-1]) + 1], [steps.pop() if steps else 1])
