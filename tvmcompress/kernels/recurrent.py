"""A whole LSTM or GRU layer as one kernel: the recurrent product and the cell of every step.

    gates[t] = x[t] + h[t-1] R            sigmoid of i, o, f; tanh of g
    c[t] = f c[t-1] + i g,   h[t] = o tanh(c[t])

    m = h[t-1] R,  z = sigmoid(x_z[t] + m_z),  r = sigmoid(x_r[t] + m_r)
    h[t] = (1 - z) tanh(x_n[t] + r (m_n + b)) + z h[t-1]

x (T, N, 4 H) is the part of the input, with biases. As operators of their own a step takes five kernels of a
microsecond, most of which is calling them. R (H, 4 H) is packed as for a matrix product: [blocks, H, block].

With `Bytes` the product is one of integers: each step's h is rounded as soon as it is known. A step then reads a
quarter of the memory, and reading R is what takes the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.tirx import PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, MACS
from tvmcompress.kernels.conv2d import operands, planned
from tvmcompress.kernels.tile import Plan
from tvmcompress.kernels.tiles import Tile, round_up

LAYER = """
@T.prim_func(private=True, s_tir=True)
def recurrent({parameters}):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    h = T.sblock_alloc_buffer(({batch}, {hidden}))
    {whole}
    sums = T.sblock_alloc_buffer(({blocks}, {block}), "{sums}")
    gates = T.sblock_alloc_buffer(({wide},))
    for n in range({batch}):
        for j in range({hidden}):
            with T.sblock("start"):
                vn, vj = T.axis.remap("SS", [n, j])
                h[vn, vj] = h0[vn, vj]
                {start_cell}
{start_whole}
    for step in range({time}):
        for n in range({batch}):
            for b in range({blocks}):
                for o in T.unroll({vectors}):
                    for v in T.vectorized({lanes}):
                        with T.sblock("first"):
                            vt = T.axis.spatial({time}, {at})
                            vn, vb = T.axis.remap("SS", [n, b])
                            vo = T.axis.spatial({block}, o * {lanes} + v)
                            T.sblock_attr({{"{family}": "ready", "{macs_key}": {macs}}})
                            sums[vb, vo] = {first}
                for k in range({steps}):
                    for o in T.unroll({vectors}):
{product}
                for o in T.unroll({vectors}):
                    for v in T.vectorized({lanes}):
                        with T.sblock("gates"):
                            vt = T.axis.spatial({time}, {at})
                            vn, vb = T.axis.remap("SS", [n, b])
                            vo = T.axis.spatial({block}, o * {lanes} + v)
                            gates[vb * {block} + vo] = {gate}
{cells}
"""
PRODUCT = """
                        for v in T.vectorized({lanes}):
                            with T.sblock("product"):
                                vn, vb, vk = T.axis.remap("SSS", [n, b, k])
                                vo = T.axis.spatial({block}, o * {lanes} + v)
                                sums[vb, vo] = sums[vb, vo] + T.Cast("{sums}", {read}[vn, vk]) * T.Cast(
                                    "{sums}", weight[vb, vk, vo]
                                )
"""
START_WHOLE = """
        for j in range({padded}):
            with T.sblock("start_whole"):
                vn, vj = T.axis.remap("SS", [n, j])
                whole[vn, vj] = {rounded}
"""
DOT = """
                        for v in range({lanes}):
                            for d in range({depth}):
                                with T.sblock("product"):
                                    vn, vb, vk = T.axis.remap("SSR", [n, b, k])
                                    vo = T.axis.spatial({block}, o * {lanes} + v)
                                    vd = T.axis.reduce({depth}, d)
                                    sums[vb, vo] = sums[vb, vo] + T.Cast(
                                        "int32", whole[vn, vk * {depth} + vd]
                                    ) * T.Cast("int32", weight[vb, vk, vo, vd])
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


@dataclass(frozen=True)
class Bytes:
    """The state in integers: whole = clip(round(h / scale) + zero) of `dtype`, which is that of the model."""

    scale: float
    zero: int
    dtype: str

    def shift(self, dtype: str) -> int:
        """int8 in place of uint8 is 128 lower; int16 is wide enough for both."""
        return {("uint8", "int8"): -128, ("int8", "uint8"): 128}.get((self.dtype, dtype), 0)

    def zero_of(self, dtype: str) -> int:
        """The zero point of integers in another dtype."""
        return self.zero + self.shift(dtype)

    def rounded(self, state: str, dtype: str) -> str:
        """Source of the integer of `state`."""
        low, high = (-128, 127) if self.dtype == "int8" else (0, 255)
        low, high = low + self.shift(dtype), high + self.shift(dtype)
        steps = f"T.round({state} / T.float32({self.scale!r})) + T.float32({self.zero_of(dtype)})"
        return f'T.Cast("{dtype}", T.Cast("int32", T.min(T.max({steps}, T.float32({low})), T.float32({high}))))'


def plan(isa: Isa, wide: int, hidden: int, weight: str = "float32") -> Plan:
    """One row at a time; vectors that divide the row, as many as hide the latency of a multiply-add."""
    lanes = math.gcd(wide, isa.lanes)
    vectors = next(v for v in (8, 6, 4, 3, 2, 1) if wide % (v * lanes) == 0)
    tile = Tile(1, vectors, lanes)
    if weight == "float32":
        return planned(tile, None, "float32")
    dot, data = operands(isa, isa.integer_data, weight, 1, hidden)
    return planned(tile, dot, data) if dot and dot.lanes == lanes else planned(tile, None, "int16")


def lstm(
    p: Plan, time: int, batch: int, hidden: int, order: tuple[int, ...], backward: bool, integers: Bytes | None = None
) -> PrimFunc:
    """Takes x, h0, c0, R; gives h of each step and the last c.

    `order`: where the gates i, o, f and g stand; `backward`: from the last step to the first. With `integers` it takes
    what the sums start with (int32) and the sums' scales behind R, both by blocks.
    """
    state = (batch, hidden)
    shapes = {
        "x": (time, batch, 4 * hidden), "h0": state, "c0": state, "weight": packed(p, 4, hidden),
        "y": (time, *state), "c": state,
    }  # fmt: skip
    statements = LSTM.format(**dict(zip("iofg", (place * hidden for place in order))))
    added = f"x[vt, vn, vb * {p.tile.block} + vo]"
    return layer(p, shapes, statements, added, "c[vn, vj] = c0[vn, vj]", backward, integers)


def gru(
    p: Plan, time: int, batch: int, hidden: int, order: tuple[int, ...], backward: bool, integers: Bytes | None = None
) -> PrimFunc:
    """Takes x, h0, R, b (H,); gives h of each step. `order`: where the gates z, r and n stand; as `lstm` else."""
    state = (batch, hidden)
    shapes = {
        "x": (time, batch, 3 * hidden), "h0": state, "weight": packed(p, 3, hidden), "bias": (hidden,),
        "y": (time, *state),
    }  # fmt: skip
    statements = GRU.format(**dict(zip("zrn", (place * hidden for place in order))))
    return layer(p, shapes, statements, "", "", backward, integers)


def pack(weight: te.Tensor, p: Plan) -> te.Tensor:
    """`matmul.pack` of R (H, gates H) as a tensor expression."""
    hidden, wide = (int(d) for d in weight.shape)
    block, depth = p.tile.block, p.depth
    shape = packed(p, wide // hidden, hidden)

    def element(b, k, v, *d):
        row, column = k * depth + sum(d), b * block + v
        if hidden % depth == 0:
            return weight[row, column]
        return tirx.if_then_else(row < hidden, weight[row, column], tirx.const(0, weight.dtype))

    return te.compute(shape, element, name="pack")


def packed(p: Plan, gates: int, hidden: int) -> tuple[int, ...]:
    shape = (gates * hidden // p.tile.block, round_up(hidden, p.depth) // p.depth, p.tile.block)
    return (*shape, p.depth) if p.depth > 1 else shape


def layer(
    p: Plan,
    shapes: dict[str, tuple[int, ...]],
    statements: str,
    added: str,
    start_cell: str,
    backward: bool,
    integers: Bytes | None,
) -> PrimFunc:
    """`added`: what is added to the product, if anything; `start_cell`: what takes over the first cell."""
    (time, batch, wide), (blocks, *_), lanes = shapes["x"], shapes["weight"], p.tile.lanes
    hidden, padded = shapes["h0"][-1], round_up(shapes["h0"][-1], p.depth)
    at = f"{time - 1} - step" if backward else "step"
    kinds = dict.fromkeys(shapes, "float32")
    if integers is None:
        first, gate, whole, start_whole = added or "T.float32(0)", "sums[vb, vo]", "", ""
    else:
        given, results = list(shapes.items()), 2 if "c" in shapes else 1
        more = [("start", (blocks, p.tile.block)), ("scale", (blocks, p.tile.block))]
        shapes = dict([*given[:-results], *more, *given[-results:]])
        kinds |= {"weight": "int8", "start": "int32", "scale": "float32"}
        first, gate = "start[vb, vo]", 'T.Cast("float32", sums[vb, vo]) * scale[vb, vo]'
        gate = f"{added} + {gate}" if added else gate
        whole = f'whole = T.sblock_alloc_buffer(({batch}, {padded}), "{p.data}")'
        rounded = integers.rounded(f"h0[vn, T.min(vj, {hidden - 1})]", p.data)
        start_whole = START_WHOLE.format(padded=padded, rounded=rounded).strip("\n")
        statements = statements.rstrip() + f"\n{' ' * 24}whole[vn, vj] = {integers.rounded('h[vn, vj]', p.data)}"
    facts = {"time": time, "batch": batch, "hidden": hidden, "at": at, "statements": statements.strip("\n")}
    count, rest = divmod(hidden, lanes)
    cells = CELL.format(name="", count=count, lanes=lanes, start=0, **facts) if count else ""
    if rest:
        cells += CELL.format(name="_rest", count=1, lanes=rest, start=count * lanes, **facts)
    parameters = ", ".join(f'{name}: T.Buffer({shape}, "{kinds[name]}")' for name, shape in shapes.items())
    read = "whole" if integers else "h"
    product = (DOT if p.depth > 1 else PRODUCT).format(
        lanes=lanes, depth=p.depth, block=p.tile.block, sums=p.sums, read=read
    )
    source = LAYER.format(
        parameters=parameters, time=time, batch=batch, hidden=hidden, wide=wide, blocks=blocks, block=p.tile.block,
        whole=whole, steps=padded // p.depth, sums=p.sums, product=product.strip("\n"),
        vectors=p.tile.vectors, lanes=lanes, family=FAMILY, macs_key=MACS, at=at, gate=gate, start_whole=start_whole,
        macs=time * batch * hidden * wide, first=first, start_cell=start_cell, cells=cells,
    )  # fmt: skip
    func = script.read(source)
    if not p.dot:
        return func
    sch = Schedule(func)
    *_, lane, _ = sch.get_loops(sch.get_sblock("product"))
    sch.tensorize(lane, p.dot)
    return sch.mod["main"].with_attrs(func.attrs)
