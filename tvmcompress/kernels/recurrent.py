"""A whole LSTM or GRU layer as one kernel: the recurrent product and the cell of every step.

    gates[t] = x[t] + h[t-1] R            sigmoid of i, o, f; tanh of g
    c[t] = f c[t-1] + i g,   h[t] = o tanh(c[t])

    m = h[t-1] R,  z = sigmoid(x_z[t] + m_z),  r = sigmoid(x_r[t] + m_r)
    h[t] = (1 - z) tanh(x_n[t] + r (m_n + b)) + z h[t-1]

x (T, N, 4 H) is the part of the input, with biases. As operators of their own a step takes five kernels of a
microsecond, most of which is calling them. R (H, 4 H) is packed as for a matrix product: [blocks, H, block].
"""

from __future__ import annotations

import math

import tvm
from tvm import te
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, MACS
from tvmcompress.kernels.tile import Plan, Tile

LAYER = """
@T.prim_func(private=True, s_tir=True)
def recurrent({parameters}):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    h = T.sblock_alloc_buffer(({batch}, {hidden}))
    sums = T.sblock_alloc_buffer(({blocks}, {block}), scope="local")
    gates = T.sblock_alloc_buffer(({wide},))
    for n in range({batch}):
        for j in range({hidden}):
            with T.sblock("start"):
                vn, vj = T.axis.remap("SS", [n, j])
                T.sblock_attr({{"{family}": "ready", "{macs_key}": {macs}}})
                h[vn, vj] = h0[vn, vj]
                {start_cell}
    for step in range({time}):
        for n in range({batch}):
            for b in range({blocks}):
                for o in T.unroll({vectors}):
                    for v in T.vectorized({lanes}):
                        with T.sblock("first"):
                            vt = T.axis.spatial({time}, {at})
                            vn, vb = T.axis.remap("SS", [n, b])
                            vo = T.axis.spatial({block}, o * {lanes} + v)
                            sums[vb, vo] = {first}
                for k in range({hidden}):
                    for o in T.unroll({vectors}):
                        for v in T.vectorized({lanes}):
                            with T.sblock("product"):
                                vn, vb, vk = T.axis.remap("SSS", [n, b, k])
                                vo = T.axis.spatial({block}, o * {lanes} + v)
                                sums[vb, vo] = sums[vb, vo] + h[vn, vk] * weight[vb, vk, vo]
                for o in T.unroll({vectors}):
                    for v in T.vectorized({lanes}):
                        with T.sblock("gates"):
                            vb = T.axis.spatial({blocks}, b)
                            vo = T.axis.spatial({block}, o * {lanes} + v)
                            gates[vb * {block} + vo] = sums[vb, vo]
{cells}
"""
CELL = """
            for j in range({count}):
                for v in T.vectorized({lanes}):
                    with T.sblock("cell{name}"):
                        vt = T.axis.spatial({time}, {at})
                        vn = T.axis.spatial({batch}, n)
                        vj = T.axis.spatial({hidden}, {start} + j * {lanes} + v)
{statements}
                        y[vt, vn, vj] = h[vn, vj]
"""
LSTM = """
                        c[vn, vj] = T.sigmoid(gates[{f} + vj]) * c[vn, vj] + T.sigmoid(gates[{i} + vj]) * T.tanh(
                            gates[{g} + vj]
                        )
                        h[vn, vj] = T.sigmoid(gates[{o} + vj]) * T.tanh(c[vn, vj])
"""
GRU = """
                        gates[{z} + vj] = T.sigmoid(x[vt, vn, {z} + vj] + gates[{z} + vj])
                        h[vn, vj] = (T.float32(1) - gates[{z} + vj]) * T.tanh(
                            x[vt, vn, {n} + vj]
                            + T.sigmoid(x[vt, vn, {r} + vj] + gates[{r} + vj]) * (gates[{n} + vj] + bias[vj])
                        ) + gates[{z} + vj] * h[vn, vj]
"""


def plan(isa: Isa, wide: int) -> Plan:
    """One row at a time; vectors that divide the row, as many as hide the latency of a multiply-add."""
    lanes = math.gcd(wide, isa.lanes)
    vectors = next(v for v in (8, 6, 4, 3, 2, 1) if wide % (v * lanes) == 0)
    return Plan(Tile(1, vectors, lanes), 1, "", "float32")


def lstm(p: Plan, time: int, batch: int, hidden: int, order: tuple[int, ...], backward: bool) -> PrimFunc:
    """Takes x, h0, c0, R; gives h of each step and the last c.

    `order`: where the gates i, o, f and g stand; `backward`: from the last step to the first.
    """
    state = (batch, hidden)
    shapes = {
        "x": (time, batch, 4 * hidden), "h0": state, "c0": state, "weight": packed(p, 4, hidden),
        "y": (time, *state), "c": state,
    }  # fmt: skip
    statements = LSTM.format(**dict(zip("iofg", (place * hidden for place in order))))
    first = f"x[vt, vn, vb * {p.tile.block} + vo]"
    return layer(p, shapes, statements, first, "c[vn, vj] = c0[vn, vj]", backward)


def gru(p: Plan, time: int, batch: int, hidden: int, order: tuple[int, ...], backward: bool) -> PrimFunc:
    """Takes x, h0, R, b (H,); gives h of each step. `order`: where the gates z, r and n stand."""
    state = (batch, hidden)
    shapes = {
        "x": (time, batch, 3 * hidden), "h0": state, "weight": packed(p, 3, hidden), "bias": (hidden,),
        "y": (time, *state),
    }  # fmt: skip
    statements = GRU.format(**dict(zip("zrn", (place * hidden for place in order))))
    return layer(p, shapes, statements, "T.float32(0)", "", backward)


def pack(weight: te.Tensor, p: Plan) -> te.Tensor:
    """`matmul.pack` of R (H, gates H) as a tensor expression."""
    hidden, wide = (int(d) for d in weight.shape)
    block = p.tile.block
    return te.compute((wide // block, hidden, block), lambda b, k, v: weight[k, b * block + v], name="pack")


def packed(p: Plan, gates: int, hidden: int) -> tuple[int, int, int]:
    return gates * hidden // p.tile.block, hidden, p.tile.block


def layer(
    p: Plan, shapes: dict[str, tuple[int, ...]], statements: str, first: str, start_cell: str, backward: bool
) -> PrimFunc:
    """`first`: what the product is added to; `start_cell`: the statement that takes over the first cell."""
    (time, batch, wide), (blocks, hidden, block), lanes = shapes["x"], shapes["weight"], p.tile.lanes
    at = f"{time - 1} - step" if backward else "step"
    facts = {"time": time, "batch": batch, "hidden": hidden, "at": at, "statements": statements.strip("\n")}
    whole, rest = divmod(hidden, lanes)
    cells = CELL.format(name="", count=whole, lanes=lanes, start=0, **facts) if whole else ""
    if rest:
        cells += CELL.format(name="_rest", count=1, lanes=rest, start=whole * lanes, **facts)
    parameters = ", ".join(f'{name}: T.Buffer({shape}, "float32")' for name, shape in shapes.items())
    source = LAYER.format(
        parameters=parameters, time=time, batch=batch, hidden=hidden, wide=wide, blocks=blocks, block=block, at=at,
        vectors=p.tile.vectors, lanes=lanes, family=FAMILY, macs_key=MACS,
        macs=time * batch * hidden * wide, first=first, start_cell=start_cell, cells=cells,
    )  # fmt: skip
    return tvm.script.from_source(source, {"T": T})
