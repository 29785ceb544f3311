"""Matrix product with a constant right side, as a register tile over rows.

    y[batch…, m, n] = sum over k of x[batch…, m, k] * weight[k, n]

The weight is packed to [blocks, K, block], or for dot products of depth d to [blocks, K/d, block, d].
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import te, tirx

from tvmcompress.isa import Dot, Isa
from tvmcompress.kernels.choices import Choices, untuned
from tvmcompress.kernels.conv2d import is_integer, operands, planned, stored
from tvmcompress.kernels.tile import Plan, attributes, crop, product
from tvmcompress.kernels.tiles import Product, lanes_for, round_up, tiles


def key(rows: int, k: int, channels: int, outer: int, data: str) -> str:
    """What the kernel is known by: `data` is the dtype in which it reads."""
    return f"matmul {data} {outer}x{rows}x{k} to {channels}"


def plan(
    rows: int, k: int, channels: int, outer: int, isa: Isa, data: str, weight: str, choices: Choices = untuned
) -> Plan:
    dot, data = operands(isa, data, weight, rows, k)
    pitch = k * tvm.DataType(data).bits // 8
    found = tiles(isa, wanted(rows, k, channels, outer, isa, data, dot, pitch))
    return planned(choices(key(rows, k, channels, outer, data))("tile", found), dot, data)


def wanted(
    rows: int, k: int, channels: int, outer: int, isa: Isa, data: str, dot: Dot | None, pitch: int = 0
) -> Product:
    """`pitch` as in Product; 0 where the left side is no tensor that may be copied."""
    depth = dot.depth if dot else 1
    return Product(
        rows=rows,
        channels=channels,
        steps=-(-k // depth),
        outer=outer,
        pitch=pitch,
        copied=outer * rows * pitch if k % depth == 0 else 0,
        bytes=dot is not None and is_integer(data),
        taken=dot.rows if dot else 1,
        lanes=0 if dot else lanes_for(isa, channels),
    )


def pack(weight: np.ndarray, p: Plan) -> np.ndarray:
    """(K, N) to the kernel's layout, zeros where blocks hang over."""
    k, n = weight.shape
    kp, np_ = round_up(k, p.depth), round_up(n, p.tile.block)
    padded = np.zeros((kp, np_), weight.dtype)
    padded[:k, :n] = weight
    packed = padded.reshape(kp // p.depth, p.depth, np_ // p.tile.block, p.tile.block).transpose(2, 0, 3, 1)
    return stored(np.ascontiguousarray(packed if p.depth > 1 else packed[..., 0]), p)


def packed_shape(k: int, n: int, p: Plan) -> tuple[int, ...]:
    shape = (-(-n // p.tile.block), round_up(k, p.depth) // p.depth, p.tile.block)
    return (*shape, p.depth) if p.depth > 1 else shape


def compute(x: te.Tensor, weight: te.Tensor, n: int, p: Plan) -> te.Tensor:
    """x (…, m, k) times packed weight: (…, m, n) in float32 or int32."""
    *batch, m, k = (int(d) for d in x.shape)
    sums = p.sums
    tile, kp = p.tile, round_up(k, p.depth)
    mp = round_up(m, tile.pixels)
    blocks = -(-n // tile.block)
    source = x
    if mp != m or kp != k or str(x.dtype) != p.data:

        def padded(*i):
            *b, r, c = i
            value = x[(*b, r, c)].astype(p.data)
            if mp == m and kp == k:
                return value
            return tirx.if_then_else(tirx.all(r < m, c < k), value, tirx.const(0, p.data))

        source = te.compute((*batch, mp, kp), padded, name="pad")
    rk = te.reduce_axis((0, kp // p.depth), "k")
    axes = [rk]
    if p.depth > 1:
        rd = te.reduce_axis((0, p.depth), "d")
        axes.append(rd)

    def element(*i):
        *b, r, o, v = i
        if p.depth > 1:
            return te.sum(product(source[(*b, r, rk * p.depth + rd)], weight[o, rk, v, rd], sums), axis=axes)
        return te.sum(product(source[(*b, r, rk)], weight[o, rk, v], sums), axis=axes)

    attrs = attributes(key(m, k, n, math.prod(batch), p.data), math.prod((*batch, m, k, n)), p, len(batch))
    y = te.compute((*batch, mp, blocks, tile.block), element, name="matmul", attrs=attrs)
    return crop(y, (*batch, m, n), tile.block)


def plan_batched(rows: int, k: int, channels: int, outer: int, isa: Isa, data: str, choices: Choices = untuned) -> Plan:
    """For two live operands; floats only. The dot product takes whole steps of its depth."""
    dot, data = operands(isa, data, data, rows, k, whole=True)
    found = tiles(isa, wanted(rows, k, channels, outer, isa, data, dot))
    return planned(choices(key(rows, k, channels, outer, data))("tile", found), dot, data)


def compute_batched(x: te.Tensor, y: te.Tensor, p: Plan) -> te.Tensor:
    """x (…, m, k) times y (…, k, n), batch axes broadcast; y is packed on the way: (…, m, n) in float32."""
    *_, m, k = (int(d) for d in x.shape)
    n = int(y.shape[-1])
    rank = max(len(x.shape), len(y.shape)) - 2
    bx, by = [int(d) for d in x.shape[:-2]], [int(d) for d in y.shape[:-2]]
    batch = list(np.broadcast_shapes(tuple(bx), tuple(by)))
    tile, depth = p.tile, p.depth
    mp, blocks = round_up(m, tile.pixels), -(-n // tile.block)

    def at(tensor, dims, b, *rest):
        lead = [tirx.const(0, "int32") if d == 1 else i for d, i in zip(dims, b[rank - len(dims) :])]
        return tensor[(*lead, *rest)]

    def block_of(*i):
        *lead, b, s, v, d = i if depth > 1 else (*i, 0)
        column = b * tile.block + v
        value = y[(*lead, s * depth + d, column)].astype(p.data)
        return value if n % tile.block == 0 else tirx.if_then_else(column < n, value, tirx.const(0, p.data))

    steps = (depth,) if depth > 1 else ()
    packed = te.compute((*by, blocks, k // depth, tile.block, *steps), block_of, name="pack")
    rows = x
    if mp != m or str(x.dtype) != p.data:
        rows = te.compute(
            (*bx, mp, k),
            lambda *i: tirx.if_then_else(i[-2] < m, x[i].astype(p.data), tirx.const(0, p.data)),
            name="pad",
        )
    rk = te.reduce_axis((0, k // depth), "k")
    rd = te.reduce_axis((0, depth), "d")

    def term(*i):
        *lead, r, b, v = i
        if depth == 1:
            return product(at(rows, bx, lead, r, rk), at(packed, by, lead, b, rk, v), "float32")
        return product(at(rows, bx, lead, r, rk * depth + rd), at(packed, by, lead, b, rk, v, rd), "float32")

    z = te.compute(
        (*batch, mp, blocks, tile.block),
        lambda *i: te.sum(term(*i), axis=[rk, rd] if depth > 1 else [rk]),
        name="matmul",
        attrs=attributes(key(m, k, n, math.prod(batch), p.data), math.prod((*batch, m, k, n)), p, rank),
    )
    return crop(z, (*batch, m, n), tile.block)
