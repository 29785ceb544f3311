"""Where a program of float operators is cut by quantize / dequantize, so that integers flow from layer to layer.

The program is seen as units. A unit is what one integer kernel does: a layer with all that its epilogue takes in (bias,
scale, the other operand of a residual addition, relu, clip); a group of pointwise operators of one tensor (silu, hard
swish, a left-over batch norm), which is one table; an addition, multiplication, pooling, softmax … ; or a move of data.
Only what leaves a unit and enters another is quantized, never what stays inside.

A unit runs in integers when it is a chosen layer, or when its result is wanted by an integer unit and at least one of
its operands comes from one. So what follows the last layer (or feeds only layer normalisation) stays float: it would
lose accuracy and win nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.layers import Layer, layers
from tvmcompress.passes.support.operators import (
    BINARY,
    EPILOGUE,
    LINEAR_RESIZE,
    MOVES,
    MULTIPLY,
    POINTWISE,
    POINTWISE_BINARY,
    POOLS,
)

NEARLY = 1.5  # a range so many times as wide costs less than rounding twice


@dataclass
class Unit:
    """kind: layer, pointwise, binary, concat, pool, move or float. `end` is the tensor that leaves it, `operands` the
    tensors that enter, `residual` the operand of an addition that the epilogue of a layer takes in."""

    kind: str
    end: relax.Var
    operands: list[relax.Var]
    inside: list[relax.Var] = field(default_factory=list)
    residual: relax.Var | None = None
    layer: Layer | None = None
    integer: bool = False


@dataclass
class Plan:
    """`points`: tensors to quantize, in order, each with the tensor whose parameters it shares (itself for its own).

    `whole`: those whose every reader gets the quantized value; the others are computed in float, and only `readers`
    (bindings, by tensor) get the quantized value. `layers`: the layers that run in integers, by variable; `inside`:
    what the unit of each takes in, the layer itself first, its end last.
    """

    points: dict[relax.Var, relax.Var]
    whole: set[relax.Var]
    readers: dict[relax.Var, set[relax.Var]]
    layers: dict[relax.Var, Layer]
    inside: dict[relax.Var, list[relax.Var]]
    concats: list[tuple[relax.Var, list[relax.Var]]]  # result and operands of those that run in integers

    def align(self, limits: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Let operands of a concatenation share its parameters where their own range is nearly as wide.

        The concatenation then copies. In a chain of them, as in DenseNet, a tensor would else be rounded to other steps
        each time. Changes `points`; returns the ranges that hold afterwards.
        """
        limits = dict(limits)
        for end, operands in reversed(self.concats):
            for operand in operands:
                mine, whole = self.points.get(operand), self.points[end]
                if mine is None or mine == whole:
                    continue
                union = united(limits[mine.name], limits[whole.name])
                if width(union) <= NEARLY * width(limits[mine.name]):
                    limits[whole.name] = union
                    self.points = {v: whole if s == mine else s for v, s in self.points.items()}
        return limits

    @property
    def own(self) -> list[relax.Var]:
        return [var for var, source in self.points.items() if var == source]


def operands_of(expr: graph.Expr) -> list[graph.Expr]:
    """The tensors a call takes, tuples opened; for a field of a tuple, that tuple."""
    if isinstance(expr, relax.TupleGetItem):
        return [expr.tuple_value]
    found: list[graph.Expr] = []
    for argument in expr.args if isinstance(expr, relax.Call) else []:
        found.extend(argument.fields if isinstance(argument, relax.Tuple) else [argument])
    return [a for a in found if isinstance(a, relax.Var) or graph.is_const(a)]


def live(expr: graph.Expr) -> list[relax.Var]:
    return [a for a in operands_of(expr) if isinstance(a, relax.Var)]


def is_float_tensor(expr: graph.Expr) -> bool:
    ty = expr.ty
    if isinstance(ty, relax.TupleType):
        return all(isinstance(f, relax.TensorType) and str(f.dtype) == "float32" for f in ty.fields)
    return isinstance(ty, relax.TensorType) and str(ty.dtype) == "float32" and graph.has_static_shape(expr)


class Placement:
    """One program's units and their readers."""

    def __init__(self, mod: tvm.IRModule, chosen: Collection[str]):
        self.mod = mod
        self.defs = graph.definitions(mod)
        self.order = {var: i for i, var in enumerate(self.defs)}
        self.readers: dict[relax.Var, list[relax.Var]] = {}
        for var, expr in self.defs.items():
            for operand in dict.fromkeys(live(expr)):
                self.readers.setdefault(operand, []).append(var)
        self.results = {r for r in graph.results(mod) if isinstance(r, relax.Var)}
        self.unit_of: dict[relax.Var, Unit] = {}  # by every variable inside
        self.layer_units(chosen)
        self.pointwise_units()
        self.other_units()

    def sole_reader(self, var: relax.Var) -> relax.Var | None:
        readers = self.readers.get(var, [])
        return readers[0] if len(readers) == 1 and var not in self.results else None

    def layer_units(self, chosen: Collection[str]) -> None:
        # Last first: of the two operands of a residual addition, the layer that is computed later takes it in.
        for layer in reversed(list(layers(self.mod))):
            if layer.name in chosen:
                unit = Unit("layer", layer.var, [a for a in layer.live if isinstance(a, relax.Var)], layer=layer)
                self.extend(unit, take_residual=True)

    def extend(self, unit: Unit, take_residual: bool) -> None:
        """Take in what an epilogue can do, as long as nothing else reads the tensor between."""
        unit.inside.append(unit.end)
        while (reader := self.sole_reader(unit.end)) is not None and reader not in self.unit_of:
            expr = self.defs[reader]
            if graph.op_name(expr) not in EPILOGUE or not self.same_shape(reader, unit.end):
                break
            others = [a for a in operands_of(expr) if a != unit.end]
            live_others = [a for a in others if isinstance(a, relax.Var)]
            if any(not is_per_channel(a) for a in others if graph.is_const(a)):
                break
            if live_others:
                takes = take_residual and unit.residual is None and graph.op_name(expr) == "relax.add"
                if not takes or not self.same_shape(live_others[0], reader):
                    break
                unit.residual = live_others[0]
            unit.end = reader
            unit.inside.append(reader)
        for var in unit.inside:
            self.unit_of[var] = unit

    def same_shape(self, a: graph.Expr, b: graph.Expr) -> bool:
        return is_float_tensor(a) and is_float_tensor(b) and graph.shape(a) == graph.shape(b)

    def pointwise_units(self) -> None:
        """Group pointwise operators that are functions of one and the same tensor, the root.

        A tensor in a group that is also read from outside is quantized there, so what follows it within the group
        starts a group of its own; that may split others, so it is repeated until nothing changes.
        """
        cuts: set[relax.Var] = set()
        while True:
            root = self.roots(cuts)
            leaving = {
                v for v in root if v in self.results or any(root.get(r) != root[v] for r in self.readers.get(v, []))
            }
            more = {v for v in leaving - cuts if any(root.get(r) == root[v] for r in self.readers.get(v, []))}
            if not more:
                break
            cuts |= more
        self.root = root
        for var in leaving:
            self.unit_of[var] = Unit("pointwise", var, [root[var]], [var])

    def roots(self, cuts: set[relax.Var]) -> dict[relax.Var, relax.Var]:
        root: dict[relax.Var, relax.Var] = {}
        for var, expr in self.defs.items():
            if var in self.unit_of or not self.is_pointwise(var, expr):
                continue
            found = {a if a in cuts else root.get(a, a) for a in live(expr)}
            if len(found) == 1:
                root[var] = found.pop()
        return root

    def is_pointwise(self, var: relax.Var, expr: graph.Expr) -> bool:
        name = graph.op_name(expr)
        if name not in POINTWISE | POINTWISE_BINARY or not is_float_tensor(var):
            return False
        return bool(live(expr)) and all(self.same_shape(a, var) for a in live(expr))

    def other_units(self) -> None:
        for var, expr in self.defs.items():
            if var in self.unit_of or var in self.root:
                continue
            kind = self.kind_of(var, expr)
            unit = Unit(kind, var, live(expr)[:1] if kind in ("move", "pool") else live(expr))
            if kind == "binary":
                self.extend(unit, take_residual=False)
            else:
                unit.inside.append(var)
                self.unit_of[var] = unit

    def kind_of(self, var: relax.Var, expr: graph.Expr) -> str:
        name = graph.op_name(expr)
        inputs = live(expr)
        if not inputs or not is_float_tensor(var) or not is_float_tensor(inputs[0]):
            return "float"
        if isinstance(expr, relax.TupleGetItem):
            return "move"
        if graph.is_const(expr.args[0]) and name in MOVES:
            return "float"
        if name == "relax.image.resize2d" and str(expr.attrs.method) in LINEAR_RESIZE:
            return "pool"
        if name == "relax.nn.pad" and not pads_with_zero(expr):
            return "pool"
        if name in MOVES:
            return "move"
        if not all(is_float_tensor(a) for a in inputs):
            return "float"
        if name == "relax.concat":
            return "concat" if all(isinstance(f, relax.Var) for f in operands_of(expr)) else "float"
        if name in BINARY and len(operands_of(expr)) == len(inputs):
            return "binary"
        return "pool" if name in POOLS else "float"

    def units(self) -> list[Unit]:
        """In the order of their ends."""
        unique = {id(u): u for u in self.unit_of.values()}
        return sorted(unique.values(), key=lambda u: self.order[u.end])

    def plan(self) -> Plan:
        units = self.units()
        origin = self.integer_origins(units)
        wanted = self.mark_integers(units, origin)
        points, whole = self.points(units, wanted)
        readers: dict[relax.Var, set[relax.Var]] = {}
        for unit in units:
            if unit.integer:
                for var, operand in self.edges(unit, wanted):
                    readers.setdefault(operand, set()).add(var)
        chosen = {u.layer.var: u.layer for u in units if u.layer}
        inside = {u.layer.var: u.inside for u in units if u.layer}
        concats = [(u.end, u.operands) for u in units if u.integer and u.kind == "concat"]
        return Plan(points, whole, readers, chosen, inside, concats)

    def integer_origins(self, units: list[Unit]) -> set[relax.Var]:
        """Tensors that an integer unit could produce."""
        origin: set[relax.Var] = set()
        for unit in units:
            # A product with a tensor that was computed in float (a normaliser, say) stays float for precision.
            enough = all if unit.kind == "binary" and graph.op_name(self.defs[unit.inside[0]]) == MULTIPLY else any
            if unit.kind == "layer" or (unit.kind != "float" and enough(o in origin for o in unit.operands)):
                origin.add(unit.end)
        return origin

    def mark_integers(self, units: list[Unit], origin: set[relax.Var]) -> set[relax.Var]:
        """Set `integer` of each unit; the tensors that integer units read."""
        wanted: set[relax.Var] = set()
        for unit in reversed(units):
            if unit.kind == "layer":
                unit.integer = True
                wanted.update(unit.operands)
                if unit.residual is not None and unit.end in wanted:
                    wanted.add(unit.residual)
            elif unit.end in wanted and unit.kind != "float":
                unit.integer = unit.kind == "move" or unit.end in origin
                if unit.integer:
                    wanted.update(unit.operands)
        return wanted

    def points(self, units: list[Unit], wanted: set[relax.Var]) -> tuple[dict[relax.Var, relax.Var], set[relax.Var]]:
        by_end = {u.end: u for u in units}
        points = {p: p for p in self.mod["main"].params if p in wanted}
        whole: set[relax.Var] = set()
        for unit in units:
            if unit.end not in wanted or isinstance(unit.end.ty, relax.TupleType):
                continue
            if graph.op_name(self.defs[unit.end]) == "relax.dequantize":
                continue  # quantized already, by whoever made the model
            points[unit.end] = unit.end
            if unit.integer:
                whole.add(unit.end)
            if unit.integer and unit.kind == "move":
                points[unit.end] = self.source_of_move(unit, by_end, points)
        for unit in units:
            if unit.integer and unit.kind == "concat":
                self.share_concat(unit, by_end, points)
        return {var: final(points, var) for var in points}, whole

    def source_of_move(self, unit: Unit, by_end: dict, points: dict) -> relax.Var:
        operand = unit.operands[0]
        if isinstance(operand.ty, relax.TupleType):  # the field of a split
            operand = by_end[operand].operands[0]
        return points.get(operand, unit.end)  # no point: it was quantized already, so this one gets its own

    def share_concat(self, unit: Unit, by_end: dict, points: dict) -> None:
        """Operands that only this concatenation reads are quantized with its parameters: it becomes a copy."""
        for operand in unit.operands:
            producer = by_end.get(operand)
            own = points.get(operand) == operand and producer is not None and producer.kind not in ("float", "concat")
            if own and self.sole_reader(operand) == unit.end:
                points[operand] = unit.end

    def edges(self, unit: Unit, wanted: set[relax.Var]) -> Iterator[tuple[relax.Var, relax.Var]]:
        """(reading binding, operand) for what enters an integer unit."""
        enter = set(unit.operands)
        if unit.residual is not None and unit.end in wanted:
            enter.add(unit.residual)
        members = unit.inside
        if unit.kind == "pointwise":
            source = unit.operands[0]
            members = [v for v, r in self.root.items() if r == source]
        for var in members:
            for operand in live(self.defs[var]):
                if operand in enter:
                    yield var, operand


def final(points: dict[relax.Var, relax.Var], var: relax.Var) -> relax.Var:
    while points[var] != var:
        var = points[var]
    return var


def united(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0], 0.0), max(a[1], b[1], 0.0)


def width(limits: tuple[float, float]) -> float:
    return max(limits[1], 0.0) - min(limits[0], 0.0)


def pads_with_zero(expr: relax.Call) -> bool:
    """Or with minus infinity (before a maximum), which becomes the least integer."""
    return str(expr.attrs.pad_mode) == "constant" and float(expr.attrs.pad_value) in (0, -np.inf)


def is_per_channel(constant: graph.Expr) -> bool:
    return sum(dim != 1 for dim in graph.shape(constant)) <= 1
