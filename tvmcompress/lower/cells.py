"""Steps of an LSTM or GRU, found in a program; see `recurrent`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import constants, graph
from tvmcompress.ir.graph import Expr, Var, op_name
from tvmcompress.kernels.recurrent import Bytes

SHORTEST = 2


@dataclass(frozen=True)
class Cell:
    """One step: `inputs` (T, N, gates H) at `time`, the state before, the weight, and the state after.

    A GRU has no `c` and no `cell`, but may have a `bias` (H,).
    """

    inputs: Expr
    time: int
    h: Expr
    c: Expr | None
    weight: Expr | None
    order: tuple[int, ...]
    out: Var
    cell: Var | None
    bias: np.ndarray | None = None
    integers: Bytes | None = None  # how the product rounds the state, when it is one of integers


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

    def part(self, expr: Expr) -> tuple[Expr, int] | None:
        """The split of which `expr` is a part, and which."""
        found = self.definitions.get(expr) if isinstance(expr, relax.Var) else None
        return (found.tuple_value, found.index) if isinstance(found, relax.TupleGetItem) else None

    def gate(self, expr: Expr, function: str) -> tuple[Expr, int] | None:
        """As `part`, for a function of one."""
        call = self.call(expr, function)
        return self.part(call.args[0]) if call is not None else None

    def cell(self, out: Var) -> Cell | None:
        return self.lstm(out) or self.gru(out)

    def gru(self, out: Var) -> Cell | None:
        for fresh, kept in self.pairs(out, "add"):
            for rest, candidate in self.pairs(fresh, "multiply"):
                less, tanh = self.call(rest, "subtract"), self.call(candidate, "tanh")
                if less is None or tanh is None or not ones(less.args[0]):
                    continue
                for z, h in self.pairs(kept, "multiply"):
                    if not same(less.args[1], z):
                        continue
                    for x_n, reset in self.pairs(tanh.args[0], "add"):
                        for r, inner in self.pairs(reset, "multiply"):
                            found = self.gru_step(z, r, x_n, inner, h, out)
                            if found is not None:
                                return found
        return None

    def gru_step(self, z: Expr, r: Expr, x_n: Expr, inner: Expr, h: Expr, out: Var) -> Cell | None:
        """`inner` is m_n + b, or m_n; in a first step with a state of zeros it is b, or zeros."""
        hidden = graph.shape(out)[-1]
        if graph.dtype(out) != "float32" or len(graph.shape(out)) != 2:
            return None
        bias = np.zeros(hidden, np.float32)
        m_n = inner
        for term, constant in self.pairs(inner, "add"):
            if graph.is_const(constant) and graph.value(constant).size == hidden:
                m_n, bias = term, graph.value(constant).reshape(hidden)
        x_z, m_z = self.halves(z)
        x_r, m_r = self.halves(r)
        x_parts = [self.part(e) if e is not None else None for e in (x_z, x_r, x_n)]
        if not all(x_parts) or len({p[0] for p in x_parts if p}) != 1:
            return None
        order = tuple(p[1] for p in x_parts if p)
        split = self.call(x_parts[0][0], "split")  # type: ignore[index]
        take = self.call(self.plain(split.args[0]), "take") if split is not None else None
        if take is None or not graph.is_const(take.args[1]) or int(take.attrs.axis) != 0 or sorted(order) != [0, 1, 2]:
            return None
        if len(graph.shape(take.args[0])) != 3 or graph.shape(take.args[0])[-1] != 3 * hidden:
            return None
        time = int(graph.value(take.args[1]))
        parts = [self.part(e) if e is not None else None for e in (m_z, m_r, m_n)]
        if not any(parts):
            nothing = all(e is not None and graph.is_const(e) and not graph.value(e).any() for e in (m_z, m_r))
            if not (nothing and graph.is_const(m_n) and graph.is_const(h) and not graph.value(h).any()):
                return None
            bias = np.broadcast_to(graph.value(m_n), (graph.shape(h)[0], hidden))[0]
            return Cell(take.args[0], time, h, None, None, order, out, None, bias)
        if not all(parts) or tuple(p[1] for p in parts if p) != order or len({p[0] for p in parts if p}) != 1:
            return None
        product = self.call(parts[0][0], "split")  # type: ignore[index]
        found = self.product(product.args[0], hidden) if product is not None else None
        if found is None or not same(found[0], h):
            return None
        return Cell(take.args[0], time, h, None, found[1], order, out, None, bias, found[2])

    def halves(self, expr: Expr) -> tuple[Expr | None, Expr | None]:
        """Of the sigmoid of a sum: the input's part and the product's, or the constant that this has become."""
        call = self.call(expr, "sigmoid")
        for x, m in self.pairs(call.args[0], "add") if call is not None else []:
            part = self.part(x)
            split = self.call(part[0], "split") if part else None
            if split is not None and self.call(self.plain(split.args[0]), "take") is not None:
                return x, m
        return None, None

    def lstm(self, out: Var) -> Cell | None:
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
                h, weight, integers = found
                time = int(graph.value(take.args[1]))
                return Cell(take.args[0], time, h, c, weight, order, out, cell, None, integers)  # type: ignore[arg-type]
        return None

    def product(self, expr: Expr, hidden: int) -> tuple[Expr, Expr | None, Bytes | None] | None:
        """The state, the weight and the rounding of h R; of a first state of zeros only the result has been left."""
        if graph.is_const(expr):
            zeros = not graph.value(expr).any() and len(graph.shape(expr)) == 2
            return (graph.const(np.zeros((graph.shape(expr)[0], hidden), np.float32)), None, None) if zeros else None
        dot = self.call(self.plain(expr), "matmul")
        if dot is None:
            return None
        h, integers = self.unrounded(self.plain(dot.args[0]))
        if graph.dtype(h) != "float32" or (integers is not None and self.weight_bytes(dot.args[1]) is None):
            return None
        return h, dot.args[1], integers

    def weight_bytes(self, expr: Expr) -> tuple[Expr, np.ndarray, np.ndarray] | None:
        """int8 weights (H, gates H) without zero point, as they are stored and as they are, a scale for each column."""
        call = self.call(expr, "dequantize")
        if call is None or not all(graph.is_const(a) for a in call.args[1:]) or graph.dtype(call.args[0]) != "int8":
            return None
        scale, zero = (graph.value(a) for a in call.args[1:])
        if zero.any() or (scale.size > 1 and int(call.attrs.axis) not in (-1, 1)):
            return None
        q = constants.known(call.args[0], self.definitions.get)
        along = np.broadcast_to(scale.reshape(-1).astype(np.float32), graph.shape(expr)[1:])
        return None if q is None else (call.args[0], q, along)

    def unrounded(self, expr: Expr) -> tuple[Expr, Bytes | None]:
        """What was rounded to integers and back, and how; `expr` itself when it was not."""
        back = self.call(expr, "dequantize")
        there = self.call(back.args[0], "quantize") if back is not None else None
        if (
            back is None
            or there is None
            or not all(graph.is_const(a) and same(a, b) for a, b in zip(there.args[1:], back.args[1:]))
        ):
            return expr, None
        scale, zero = (graph.value(a) for a in there.args[1:])
        dtype = graph.dtype(back.args[0])
        if scale.size != 1 or dtype not in ("int8", "uint8"):
            return expr, None
        return there.args[0], Bytes(float(scale.item()), int(zero.item()), dtype)


def same(a: Expr, b: Expr) -> bool:
    if graph.is_const(a) and graph.is_const(b):
        return a.same_as(b) or (graph.dtype(a) == graph.dtype(b) and np.array_equal(graph.value(a), graph.value(b)))
    return a is b or a.same_as(b)


def ones(expr: Expr) -> bool:
    return graph.is_const(expr) and bool((graph.value(expr) == 1).all())


def chains(mod: tvm.IRModule, matcher: Matcher) -> list[list[Cell]]:
    """Cells that pass their state on, over all steps of their inputs, first to last or last to first."""
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
    return [chain for chain in found if all(c.cell is None or len(readers[c.cell]) == 2 for c in chain[:-1])]


def follows(one: Cell, after: Cell) -> bool:
    if (after.c is None) != (one.cell is None) or one.order != after.order or not same(one.inputs, after.inputs):
        return False
    if one.cell is not None and not same(after.c, one.cell):
        return False
    if one.bias is not None and (after.bias is None or not np.array_equal(one.bias, after.bias)):
        return False
    return one.weight is None or (same(one.weight, after.weight) and one.integers == after.integers)
