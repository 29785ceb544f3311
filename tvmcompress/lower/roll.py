"""Steps of an unrolled LSTM become one call again.

    a chain of   g = split(P[t] + h R, 4);  c' = s(g_f) c + s(g_i) tanh(g_g);  h' = s(g_o) tanh(c')
    ->           Y, c = lstm(P, h, c, R)    and h' of step t is Y[t]

The importers unroll, so that compression sees ordinary matrix products; here they become one kernel. Gates may stand in
any order; steps in other dtypes, with peepholes or clipping stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import matmul, recurrent

SHORTEST = 2


@dataclass(frozen=True)
class Cell:
    """One step: `inputs` (T, N, 4 H) at `time`, the state before, the weight, and the state after."""

    inputs: Expr
    time: int
    h: Expr
    c: Expr
    weight: Expr | None
    order: tuple[int, int, int, int]
    out: Var
    cell: Var


class Matcher:
    """Finds cells in a program, from their results backwards."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.definitions = graph.definitions(mod)

    def call(self, expr: Expr, name: str) -> Expr | None:
        found = self.definitions.get(expr) if isinstance(expr, relax.Var) else None
        return found if op_name(found) == f"relax.{name}" else None

    def plain(self, expr: Expr) -> Expr:
        """What was cast."""
        while (call := self.call(expr, "astype")) is not None:
            expr = call.args[0]
        return expr

    def pairs(self, expr: Expr, name: str) -> Iterator[tuple[Expr, Expr]]:
        call = self.call(expr, name)
        if call is not None:
            yield from permutations(call.args)

    def gate(self, expr: Expr, function: str) -> tuple[Expr, int] | None:
        """The split of which `expr` is the function of a part, and which part."""
        call = self.call(expr, function)
        part = self.definitions.get(call.args[0]) if call is not None else None
        return (part.tuple_value, part.index) if isinstance(part, relax.TupleGetItem) else None

    def cell(self, out: Var) -> Cell | None:
        for o, squashed in self.pairs(out, "multiply"):
            gate_o, tanh = self.gate(o, "sigmoid"), self.call(squashed, "tanh")
            if gate_o is None or tanh is None:
                continue
            cell = tanh.args[0]
            for kept, new in self.pairs(cell, "add"):
                for f, c in self.pairs(kept, "multiply"):
                    for i, g in self.pairs(new, "multiply"):
                        gates = [self.gate(i, "sigmoid"), gate_o, self.gate(f, "sigmoid"), self.gate(g, "tanh")]
                        if all(gates) and len({found[0] for found in gates if found}) == 1:
                            return self.step(gates, c, out, cell)
        return None

    def step(self, gates, c: Expr, out: Var, cell: Var) -> Cell | None:
        order = tuple(index for _, index in gates)
        split = self.call(gates[0][0], "split")
        hidden = graph.shape(out)[-1]
        if (
            split is None
            or sorted(order) != [0, 1, 2, 3]
            or graph.dtype(out) != "float32"
            or len(graph.shape(out)) != 2
        ):
            return None
        if graph.shape(split.args[0]) != (graph.shape(out)[0], 4 * hidden) or int(split.attrs.axis) % 2 != 1:
            return None
        for x, product in self.pairs(split.args[0], "add"):
            take = self.call(self.plain(x), "take")
            if take is None or not graph.is_const(take.args[1]) or int(take.attrs.axis) != 0:
                continue
            found = self.product(product, hidden)
            if found and len(graph.shape(take.args[0])) == 3 and graph.value(take.args[1]).ndim == 0:
                h, weight = found
                time = int(graph.value(take.args[1]))
                return Cell(take.args[0], time, h, c, weight, order, out, cell)  # type: ignore[arg-type]
        return None

    def product(self, expr: Expr, hidden: int) -> tuple[Expr, Expr | None] | None:
        """The state and the weight of h R; of a first state of zeros only the result has been left."""
        if graph.is_const(expr):
            zeros = not graph.value(expr).any() and len(graph.shape(expr)) == 2
            return (graph.const(np.zeros((graph.shape(expr)[0], hidden), np.float32)), None) if zeros else None
        dot = self.call(self.plain(expr), "matmul")
        if dot is None or graph.dtype(h := self.plain(dot.args[0])) != "float32":
            return None
        return h, dot.args[1]


def same(a: Expr, b: Expr) -> bool:
    if graph.is_const(a) and graph.is_const(b):
        return a.same_as(b) or tvm.ir.structural_equal(a, b)
    return a is b or a.same_as(b)


def chains(mod: tvm.IRModule) -> list[list[Cell]]:
    """Cells that pass their state on, over all steps of their inputs, first to last or last to first."""
    matcher = Matcher(mod)
    cells = [cell for var in matcher.definitions if (cell := matcher.cell(var)) is not None]
    by_state = {cell.h: cell for cell in cells if isinstance(cell.h, relax.Var)}
    outs = {cell.out for cell in cells}
    found = []
    for cell in cells:
        if cell.h in outs:
            continue
        chain = [cell]
        while (after := by_state.get(chain[-1].out)) is not None and follows(chain[-1], after):
            chain.append(after)
        times = [c.time for c in chain]
        steps = graph.shape(cell.inputs)[0]
        if len(chain) == steps >= SHORTEST and times in (list(range(steps)), list(reversed(range(steps)))):
            found.append(chain)
    readers = graph.consumers(mod)
    return [chain for chain in found if all(len(readers[c.cell]) == 2 for c in chain[:-1])]


def follows(one: Cell, after: Cell) -> bool:
    return (
        (after.c is one.cell or after.c.same_as(one.cell))
        and (one.weight is None or same(one.weight, after.weight))
        and same(one.inputs, after.inputs)
        and one.order == after.order
    )


class Roll:
    """The visitor. `taken`: variables that are a layer's result at one time; `rows`: stacks of such."""

    def __init__(self, chains: list[list[Cell]], definitions: dict[Var, Expr], isa: Isa) -> None:
        self.isa, self.definitions = isa, definitions
        self.first = {chain[0].out: chain for chain in chains}
        self.out = {cell.out: (chain[0].out, cell.time) for chain in chains for cell in chain}
        self.last = {chain[-1].cell: chain[0].out for chain in chains}
        self.results: dict[Var, tuple[Expr, Expr]] = {}
        self.taken: dict[Expr, tuple[Expr, int]] = {}
        self.rows: dict[Expr, tuple[list[Expr], int]] = {}

    def __call__(self, rw: Rewriter, var: Var, expr: Expr) -> Expr | None:
        if var in self.out:
            start, time = self.out[var]
            if var in self.first:
                self.results[var] = self.layer(rw, self.first[var])
            y = self.results[start][0]
            taken = rw.emit(relax.op.take(y, graph.const(time, "int64"), 0), var.name)
            self.taken[taken] = (y, time)
            return taken
        if var in self.last and self.last[var] in self.results:
            return self.results[self.last[var]][1]
        if op_name(expr) == "relax.stack" and int(expr.attrs.axis) == 0 and isinstance(expr.args[0], relax.Tuple):
            return self.stack(rw, list(expr.args[0].fields), expr)
        return None

    def layer(self, rw: Rewriter, chain: list[Cell]) -> tuple[Expr, Expr]:
        cell = chain[0]
        parts = (cell.inputs, cell.h, cell.c, chain[1].weight)
        inputs, h, c, weight = (self.real(rw, self.early(rw, e)) for e in parts)
        time, batch, wide = graph.shape(inputs)
        p = recurrent.plan(self.isa, wide // 4)
        blocks = wide // p.tile.block
        x = rw.emit(relax.op.reshape(inputs, (time, batch, blocks, p.tile.block)))
        if graph.is_const(weight):
            packed = graph.const(matmul.pack(graph.value(weight), p))
        else:
            e = rw.emit(relax.op.reshape(weight, (wide // 4, blocks, p.tile.block)))
            packed = rw.emit(relax.op.permute_dims(e, (1, 0, 2)))
        kernel = recurrent.lstm(p, time, batch, wide // 4, cell.order, chain[0].time > chain[-1].time)
        name = rw.builder.add_func(kernel, "lstm")
        types = [relax.TensorType(s, "float32") for s in ((time, batch, wide // 4), (batch, wide // 4))]
        both = rw.emit(relax.op.call_tir(name, [x, h, c, packed], types), "lstm")
        return rw.emit(relax.TupleGetItem(both, 0), "sequence"), rw.emit(relax.TupleGetItem(both, 1), "last_cell")

    def early(self, rw: Rewriter, expr: Expr) -> Expr:
        """`expr` in the new program. What makes the weight of constants may stand behind the first step: then again."""
        if isinstance(expr, relax.Var) and expr not in rw.replacement:
            call = self.definitions[expr]
            for argument in call.args:
                self.early(rw, argument)
            rw.replacement[expr] = rw.emit(rw.new(call), expr.name)
        return rw.new(expr)

    def real(self, rw: Rewriter, expr: Expr) -> Expr:
        return expr if graph.dtype(expr) == "float32" else rw.emit(relax.op.astype(expr, "float32"))

    def stack(self, rw: Rewriter, fields: list[Expr], expr: Expr) -> Expr | None:
        """Rows of results at one time are noted; a stack of all of these is the layers' results themselves."""
        if all(f in self.taken for f in fields):
            times = [self.taken[f][1] for f in fields]
            layers = [self.taken[f][0] for f in fields]
            if len(set(times)) == 1:
                row = rw.emit(expr)
                self.rows[row] = (layers, times[0])
                return row
        if fields and all(f in self.rows for f in fields):
            layers = self.rows[fields[0]][0]
            alike = all(len(self.rows[f][0]) == len(layers) for f in fields)
            alike = alike and all(a.same_as(b) for f in fields for a, b in zip(self.rows[f][0], layers))
            if alike and [self.rows[f][1] for f in fields] == list(range(graph.shape(layers[0])[0])):
                return relax.op.stack(layers, 1)
        return None


def roll(mod: tvm.IRModule, isa: Isa) -> tvm.IRModule:
    found = chains(mod)
    return graph.rewrite(mod, Roll(found, graph.definitions(mod), isa)) if found else mod
