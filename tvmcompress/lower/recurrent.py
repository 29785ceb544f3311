"""Steps of an unrolled LSTM or GRU become one call again.

    a chain of   g = split(P[t] + h R, 4);  c' = s(g_f) c + s(g_i) tanh(g_g);  h' = s(g_o) tanh(c')
    ->           Y, c = lstm(P, h, c, R)    and h' of step t is Y[t]

    a chain of   x = split(P[t], 3); m = split(h R, 3);  z = s(x_z + m_z);  r = s(x_r + m_r)
                 h' = (1 - z) tanh(x_n + r (m_n + b)) + z h
    ->           Y = gru(P, h, R, b)

The importers unroll, so that compression sees ordinary matrix products; here they become one kernel. Gates may stand in
any order; steps in other dtypes, with peepholes, clipping or a reset before the product stay as they are.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import matmul, recurrent
from tvmcompress.kernels.recurrent import Plan
from tvmcompress.lower.cells import Cell, Matcher, chains


class Roll:
    """The visitor. `taken`: variables that are a layer's result at one time; `rows`: stacks of such."""

    def __init__(self, chains: list[list[Cell]], matcher: Matcher, isa: Isa, neutral: bool) -> None:
        self.isa, self.matcher, self.neutral = isa, matcher, neutral
        self.done: list[dict] = []
        self.first = {chain[0].out: chain for chain in chains}
        self.out = {cell.out: (chain[0].out, cell.time) for chain in chains for cell in chain}
        self.last = {chain[-1].cell: chain[0].out for chain in chains if chain[-1].cell is not None}
        self.results: dict[Var, tuple[Expr, ...]] = {}
        self.taken: dict[Expr, tuple[Expr, int]] = {}
        self.rows: dict[Expr, tuple[list[Expr], int]] = {}

    def __call__(self, rw: Rewriter, var: Var, expr: Expr) -> Expr | None:
        if var in self.out:
            start, time = self.out[var]
            if var in self.first:
                self.results[var] = self.layer(rw, self.first[var])
            y = self.results[start][0]
            taken = rw.emit(relax.op.take(y, graph.const(time, "int64"), 0, mode="clip"), var.name)
            self.taken[taken] = (y, time)
            return taken
        if var in self.last and self.last[var] in self.results:
            return self.results[self.last[var]][1]
        if op_name(expr) == "relax.stack" and int(expr.attrs.axis) == 0 and isinstance(expr.args[0], relax.Tuple):
            return self.stack(rw, list(expr.args[0].fields), expr)
        return None

    def layer(self, rw: Rewriter, chain: list[Cell]) -> tuple[Expr, ...]:
        """Y, and of an LSTM the last cell."""
        cell, integers = chain[0], chain[1].integers
        inputs, h, *c = (self.real(rw, self.early(rw, e)) for e in (cell.inputs, cell.h, cell.c) if e is not None)
        time, batch, wide = graph.shape(inputs)
        hidden = graph.shape(h)[-1]
        p = recurrent.plan(self.isa, wide, hidden, "int8" if integers else "float32")
        products = sum(c.weight is not None for c in chain)  # a first state of zeros has none
        kinds = f"{p.data}xint8" if integers else "float32xfloat32"
        row = {"name": cell.out.name, "kind": "recurrent", "macs": products * batch * hidden * wide, "dtype": kinds}
        self.done.append(row | {"integer": bool(integers), "tile": [p.tile.pixels, p.tile.vectors]})
        weight, sums = self.weight(rw, chain[1], p)
        backward = chain[0].time > chain[-1].time
        sequence = relax.TensorType((time, batch, hidden), "float32")
        order = cell.order
        if cell.bias is not None:
            kernel = rw.builder.add_func(recurrent.gru(p, time, batch, hidden, order, backward, integers), "gru")
            arguments = [inputs, h, weight, graph.const(cell.bias), *sums]
            return (rw.emit(relax.op.call_tir(kernel, arguments, sequence), "sequence"),)
        kernel = rw.builder.add_func(recurrent.lstm(p, time, batch, hidden, order, backward, integers), "lstm")
        types = [sequence, relax.TensorType((batch, hidden), "float32")]
        both = rw.emit(relax.op.call_tir(kernel, [inputs, h, *c, weight, *sums], types), "lstm")
        return rw.emit(relax.TupleGetItem(both, 0), "sequence"), rw.emit(relax.TupleGetItem(both, 1), "last_cell")

    def weight(self, rw: Rewriter, cell: Cell, p: Plan) -> tuple[Expr, list[Expr]]:
        """R as the kernel reads it, and what its sums start with and their scales when they are integers."""
        sums: list[Expr] = []
        if cell.integers:
            found = self.matcher.weight_bytes(cell.weight)
            assert found is not None  # else it had not been taken for a cell
            stored, values, scale = found
            weight = self.early(rw, stored)
            blocks = (-1, p.tile.block)
            start = -cell.integers.zero_of(p.data) * values.sum(0, dtype=np.int64)
            real = (np.float64(cell.integers.scale) * scale).astype(np.float32)
            sums = [graph.const(start.astype(np.int32).reshape(blocks)), graph.const(real.reshape(blocks))]
        else:
            weight = self.real(rw, self.early(rw, cell.weight))
        if graph.is_const(weight) and not self.neutral:
            return graph.const(matmul.pack(graph.value(weight), p)), sums
        # As a tensor program: operators on a constant would be folded further down.
        packed = rw.builder.call_te(lambda r: recurrent.pack(r, p), weight, primfunc_name_hint="pack")
        return rw.emit(packed), sums

    def early(self, rw: Rewriter, expr: Expr) -> Expr:
        """`expr` in the new program. What makes the weight of constants may stand behind the first step: then again."""
        if isinstance(expr, relax.Var) and expr not in rw.replacement:
            call = self.matcher.definitions[expr]
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


def roll(mod: tvm.IRModule, isa: Isa, neutral: bool = False) -> tuple[tvm.IRModule, list[dict]]:
    """The program, and a row for each layer, as `anchors` has them; so is `neutral`."""
    matcher = Matcher(mod)
    found = chains(mod, matcher)
    if not found:
        return mod, []
    visitor = Roll(found, matcher, isa, neutral)
    return graph.rewrite(mod, visitor), visitor.done
