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
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY
from tvmcompress.kernels.conv2d import Plan
from tvmcompress.kernels.tile import Tile

LSTM = """
@T.prim_func(private=True, s_tir=True)
def lstm(
    x: T.Buffer(({time}, {batch}, {blocks}, {block}), "float32"),
    h0: T.Buffer(({batch}, {hidden}), "float32"),
    c0: T.Buffer(({batch}, {hidden}), "float32"),
    weight: T.Buffer(({blocks}, {hidden}, {block}), "float32"),
    y: T.Buffer(({time}, {batch}, {hidden}), "float32"),
    c: T.Buffer(({batch}, {hidden}), "float32"),
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    h = T.sblock_alloc_buffer(({batch}, {hidden}))
    sums = T.sblock_alloc_buffer(({blocks}, {block}), scope="local")
    gates = T.sblock_alloc_buffer(({wide},))
    for n in range({batch}):
        for j in range({hidden}):
            with T.sblock("start"):
                vn, vj = T.axis.remap("SS", [n, j])
                T.sblock_attr({{"{family}": "ready"}})
                h[vn, vj] = h0[vn, vj]
                c[vn, vj] = c0[vn, vj]
    for step in range({time}):
        for n in range({batch}):
            for b in range({blocks}):
                for o in T.unroll({vectors}):
                    for v in T.vectorized({lanes}):
                        with T.sblock("first"):
                            vt = T.axis.spatial({time}, {at})
                            vn, vb = T.axis.remap("SS", [n, b])
                            vo = T.axis.spatial({block}, o * {lanes} + v)
                            sums[vb, vo] = x[vt, vn, vb, vo]
{product}
{cells}
"""
PRODUCT = """
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
"""
CELL = """
            for j in range({count}):
                for v in T.vectorized({lanes}):
                    with T.sblock("cell{name}"):
                        vt = T.axis.spatial({time}, {at})
                        vn = T.axis.spatial({batch}, n)
                        vj = T.axis.spatial({hidden}, {start} + j * {lanes} + v)
                        c[vn, vj] = T.sigmoid(gates[{f} + vj]) * c[vn, vj] + T.sigmoid(gates[{i} + vj]) * T.tanh(
                            gates[{g} + vj]
                        )
                        h[vn, vj] = T.sigmoid(gates[{o} + vj]) * T.tanh(c[vn, vj])
                        y[vt, vn, vj] = h[vn, vj]
"""


GRU = """
@T.prim_func(private=True, s_tir=True)
def gru(
    x: T.Buffer(({time}, {batch}, {wide}), "float32"),
    h0: T.Buffer(({batch}, {hidden}), "float32"),
    weight: T.Buffer(({blocks}, {hidden}, {block}), "float32"),
    bias: T.Buffer(({hidden},), "float32"),
    y: T.Buffer(({time}, {batch}, {hidden}), "float32"),
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    h = T.sblock_alloc_buffer(({batch}, {hidden}))
    sums = T.sblock_alloc_buffer(({blocks}, {block}), scope="local")
    gates = T.sblock_alloc_buffer(({wide},))
    for n in range({batch}):
        for j in range({hidden}):
            with T.sblock("start"):
                vn, vj = T.axis.remap("SS", [n, j])
                T.sblock_attr({{"{family}": "ready"}})
                h[vn, vj] = h0[vn, vj]
    for step in range({time}):
        for n in range({batch}):
            for b in range({blocks}):
                for o in T.unroll({vectors}):
                    for v in T.vectorized({lanes}):
                        with T.sblock("first"):
                            vb = T.axis.spatial({blocks}, b)
                            vo = T.axis.spatial({block}, o * {lanes} + v)
                            sums[vb, vo] = T.float32(0)
{product}
{cells}
"""
GRU_CELL = """
            for j in range({count}):
                for v in T.vectorized({lanes}):
                    with T.sblock("cell{name}"):
                        vt = T.axis.spatial({time}, {at})
                        vn = T.axis.spatial({batch}, n)
                        vj = T.axis.spatial({hidden}, {start} + j * {lanes} + v)
                        gates[{z} + vj] = T.sigmoid(x[vt, vn, {z} + vj] + gates[{z} + vj])
                        y[vt, vn, vj] = (T.float32(1) - gates[{z} + vj]) * T.tanh(
                            x[vt, vn, {n} + vj]
                            + T.sigmoid(x[vt, vn, {r} + vj] + gates[{r} + vj]) * (gates[{n} + vj] + bias[vj])
                        ) + gates[{z} + vj] * h[vn, vj]
                        h[vn, vj] = y[vt, vn, vj]
"""


def plan(isa: Isa, wide: int) -> Plan:
    """One row at a time; vectors that divide the row, as many as hide the latency of a multiply-add."""
    lanes = math.gcd(wide, isa.lanes)
    vectors = next(v for v in (8, 6, 4, 3, 2, 1) if wide % (v * lanes) == 0)
    return Plan(Tile(1, vectors, lanes), 1, "", "float32")


def lstm(p: Plan, time: int, batch: int, hidden: int, order: tuple[int, ...], backward: bool) -> PrimFunc:
    """`order`: where the gates i, o, f and g stand; `backward`: from the last step to the first."""
    names = dict(zip("iofg", (place * hidden for place in order)))
    return layer(LSTM, CELL, p, time, batch, hidden, 4 * hidden, names, backward)


def gru(p: Plan, time: int, batch: int, hidden: int, order: tuple[int, ...], backward: bool) -> PrimFunc:
    """`order`: where the gates z, r and n stand."""
    names = dict(zip("zrn", (place * hidden for place in order)))
    return layer(GRU, GRU_CELL, p, time, batch, hidden, 3 * hidden, names, backward)


def layer(
    template: str, cell: str, p: Plan, time: int, batch: int, hidden: int, wide: int, gates: dict, backward: bool
) -> PrimFunc:
    tile = p.tile
    facts = {
        "time": time, "batch": batch, "hidden": hidden, "at": f"{time - 1} - step" if backward else "step",
        "blocks": wide // tile.block, "block": tile.block, "wide": wide, "vectors": tile.vectors, "family": FAMILY,
    }  # fmt: skip
    lanes, whole = tile.lanes, hidden // tile.lanes
    cells = cell.format(name="", count=whole, lanes=lanes, start=0, **facts, **gates) if whole else ""
    if rest := hidden % lanes:
        cells += cell.format(name="_rest", count=1, lanes=rest, start=whole * lanes, **facts, **gates)
    product = PRODUCT.format(lanes=lanes, **facts)
    source = template.format(lanes=lanes, product=product, cells=cells, **facts)
    return tvm.script.from_source(source, {"T": T})
