"""Channels that are parts of others, or put together of others: read where they are, not copied there and back.

conv2d(split(x)[1], w)              ->   conv2d that reads the later channels of x
concat(split(x)[0], y)              ->   one copy out of x and y
shuffle(concat(split(x)[0], y))     ->   one kernel, channels of x and y in turns
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import movement

DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8")


@dataclass(frozen=True)
class Part:
    """Channels of `whole`, from `begin` on."""

    whole: Expr
    begin: int


def part(rw: Rewriter, x: Expr) -> Part:
    """Where the channels of `x` were before they were split off; all of them, if they were not."""
    item = rw.definition(x)
    call = rw.definition(item.tuple_value) if isinstance(item, relax.TupleGetItem) else None
    if call is None or op_name(call) != "relax.split":
        return Part(x, 0)
    last = len(graph.shape(x)) - 1
    if int(call.attrs.axis) % (last + 1) != last:
        return Part(x, 0)
    before = item.tuple_value.ty.fields[: item.index]
    return Part(call.args[0], sum(int(field.shape[last]) for field in before))


class Parts:
    """What `anchors` makes of concatenations and of shuffled channels."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.fields: dict[Expr, list[Expr]] = {}  # of what was put together along the last axis

    def concat(self, rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        fields = expr.args[0]
        if not isinstance(fields, relax.Tuple) or expr.attrs.axis is None or graph.dtype(var) == "bool":
            return None
        shapes = [graph.shape(f) for f in fields.fields]
        if any(0 in s for s in shapes):
            return None
        axis = int(expr.attrs.axis) % len(shapes[0])
        parts = [part(rw, f) for f in fields.fields]
        copied = [movement.Copied(graph.shape(p.whole), p.begin, s[-1]) for p, s in zip(parts, shapes)]
        name = rw.builder.add_func(movement.concat(copied, axis, graph.dtype(var)), "concat")
        made = relax.op.call_tir(name, [p.whole for p in parts], relax.TensorType(graph.shape(var), graph.dtype(var)))
        made = rw.emit(made, var.name)
        if axis == len(shapes[0]) - 1:
            self.fields[made] = list(fields.fields)
        return made

    def shuffle(self, rw: Rewriter, var: graph.Var, expr: Expr) -> Expr | None:
        """The end of a shuffle of channels: taken apart into groups, these made innermost, put together again."""
        permuted = rw.definition(expr.args[0])
        if permuted is None or op_name(permuted) != "relax.permute_dims" or permuted.attrs.axes is None:
            return None
        parted = rw.definition(permuted.args[0])
        if parted is None or op_name(parted) != "relax.reshape":
            return None
        source, apart, result = parted.args[0], graph.shape(permuted.args[0]), graph.shape(var)
        rank = len(apart)
        axes = [int(a) % rank for a in permuted.attrs.axes]
        swapped = axes == [*range(rank - 2), rank - 1, rank - 2] and rank > 2
        if not swapped or not graph.shape(source) == result == (*apart[:-2], apart[-2] * apart[-1]):
            return None
        groups, dtype = apart[-2], graph.dtype(var)
        if not 1 < groups <= movement.MOST_GROUPS or apart[-1] == 1 or 0 in result or dtype not in DTYPES:
            return None
        found = self.groups(rw, source, groups)
        wholes = list(dict.fromkeys(p.whole for p in found))
        from_ = [movement.Group(wholes.index(p.whole), p.begin) for p in found]
        kernel = movement.shuffle([graph.shape(w) for w in wholes], from_, apart[-1], dtype, self.isa)
        return relax.op.call_tir(rw.builder.add_func(kernel, "shuffle"), wholes, relax.TensorType(result, dtype))

    def groups(self, rw: Rewriter, source: Expr, count: int) -> list[Part]:
        """Where each of `count` groups of channels is: one of the arrays that were put together, or a part of all."""
        size = graph.shape(source)[-1] // count
        fields = self.fields.get(source, [])
        if [graph.shape(f)[-1] for f in fields] == [size] * count:
            return [part(rw, f) for f in fields]
        return [Part(source, group * size) for group in range(count)]
