"""3x3 convolution with unit strides by Winograd's minimal filtering, F(4x4, 3x3): 36 products where there are 144.

    Y = A^T [ (G g G^T) * (B^T d B) ] A        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015

for every patch d of 6 x 6 pixels, summed over input channels: 36 matrix products of patches by channels. Rounding
errors depend on the points at which polynomials are evaluated: those below make a third of those of 0, 1, -1, 2, -2.

Weights are transformed when a package is loaded: transformed they are four times as large. They are stored as
[36, blocks, C, block].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, MACS, generic
from tvmcompress.kernels.choices import KEY, Choices, Choose, untuned
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.tile import straight
from tvmcompress.kernels.tiles import Tile, round_up

OUT, PATCH, KERNEL = 4, 6, 3
# The points are 0, A, -A, B, -B and infinity; all powers and products below are exact in float32.
A, B = 5 / 8, 3 / 2
Numbers = Sequence[tirx.Expr]
Array: TypeAlias = te.Tensor | tirx.Buffer
Index: TypeAlias = tirx.Expr


def transform_data(d: Numbers) -> list[tirx.Expr]:
    """B^T d for six numbers."""
    even_a, odd_a = d[4] - d[2] * B**2, (d[3] - d[1] * B**2) * A
    even_b, odd_b = d[4] - d[2] * A**2, (d[3] - d[1] * A**2) * B
    ends = [d[i + 4] - d[i + 2] * (A**2 + B**2) + d[i] * (A * B) ** 2 for i in (0, 1)]
    return [ends[0], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, ends[1]]


def transform_sums(m: Numbers) -> list[tirx.Expr]:
    """A^T m: four numbers of six."""
    even_a, odd_a, even_b, odd_b = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + even_a + even_b,
        odd_a * A + odd_b * B,
        even_a * A**2 + even_b * B**2,
        odd_a * A**3 + odd_b * B**3 + m[5],
    ]


def filters() -> np.ndarray:
    """(36, 9) float32: what transforms the 9 taps of a kernel, row by row; the Kronecker square of G."""
    points = (0, A, -A, B, -B)
    rows = [[x**k / math.prod(x - other for other in points if other != x) for k in range(KERNEL)] for x in points]
    g = np.array([*rows, [0, 0, 1]])
    return np.kron(g, g).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """Decisions for one convolution.

    A task takes `rows` by `columns` patches, of which `tile.pixels` at a time are multiplied. `cycles` is what the
    whole convolution should take, counted in multiply-adds of one core.
    """

    rows: int
    columns: int
    tile: Tile
    cycles: float

    @property
    def decision(self) -> dict:
        """How a log of tuning names it."""
        return {"rows": self.rows, "columns": self.columns, "tile": self.tile}


# In multiply-adds of one vector, of which two are done in a cycle: what a patch costs for each vector of channels.
TRANSFORM_DATA, TRANSFORM_SUMS = 260, 200
# Bytes that meanwhile arrive from the second-level cache, and from beyond it; of what is written there and read again.
NEAR_BYTES, FAR_BYTES, BACK_BYTES = 14, 12, 4
# What direct convolution reaches of the multipliers' peak.
DIRECT = 0.9
# The cores on which these were measured; how many more share what lies beyond their own caches is not known.
MEASURED = 2


def applies(conv: Conv2d, isa: Isa) -> bool:
    return (
        conv.kernel == (KERNEL, KERNEL)
        and conv.strides == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.c % isa.lanes == 0
        and min(conv.out) >= OUT
    )


def plan(conv: Conv2d, isa: Isa, choices: Choices = untuned) -> Plan | None:
    """A division into tasks, or None for the direct convolution."""
    if not applies(conv, isa):
        return None
    choose, found = choices(key(conv, "float32")), plans(conv, isa)
    direct = conv.macs / isa.lanes / min(isa.cores, MEASURED) / DIRECT
    faster = found[0].cycles < 0.9 * direct
    algorithm = choose("algorithm", ("winograd", "direct") if faster else ("direct", "winograd"))
    return choose("division", found) if algorithm == "winograd" else None


@functools.cache
def plans(conv: Conv2d, isa: Isa, vectors: int = 0, density: float = 1.0) -> list[Plan]:
    """All divisions into tasks whose patches are whole tiles, the cheapest first.

    `vectors`: of a tile, 0 for any number; `density`: the share of its steps that have weights.
    """
    high, wide = (-(-side // OUT) for side in conv.out)
    cores, found = min(isa.cores, MEASURED), []
    for rows in range(1, min(high, 8) + 1):
        for columns in range(1, min(wide + 2, 32) + 1):
            tasks = math.ceil(conv.n * math.ceil(high / rows) * math.ceil(wide / columns) / cores)
            patches = rows * columns
            # A tile is part of a row of patches, or whole ones.
            for pixels in (p for p in range(1, min(patches, isa.registers) + 1) if whole(p, rows, columns)):
                for count in [vectors] if vectors else range(1, 9):
                    if pixels * count + count + 1 > isa.registers or (count - 1) * isa.lanes >= conv.oc:
                        break
                    tile = Tile(pixels, count, isa.lanes)
                    found.append(Plan(rows, columns, tile, tasks * cycles(conv, isa, patches, tile, density)))
    return sorted(found, key=lambda p: p.cycles)


def whole(pixels: int, rows: int, columns: int) -> bool:
    return columns % pixels == 0 or (pixels % columns == 0 and rows % (pixels // columns) == 0)


def cycles(conv: Conv2d, isa: Isa, patches: int, tile: Tile, density: float = 1.0) -> float:
    """What one task of so many patches costs."""
    blocks = -(-conv.oc // tile.block)
    channels, sums = blocks * tile.block, tile.pixels * tile.vectors
    near = tile.block * 4 / NEAR_BYTES if density * conv.c * tile.block * 4 > isa.l1d // 2 else 0
    steps = density * conv.c * (max(sums, tile.pixels + tile.vectors, near, 8) + 1) + 3 * sums
    products = PATCH**2 * patches // tile.pixels * blocks * steps
    around = patches * (conv.c * TRANSFORM_DATA + channels * TRANSFORM_SUMS) / isa.lanes
    weights = density * PATCH**2 * conv.c * channels * 4
    between = PATCH**2 * patches * (conv.c + channels) * 4
    far = weights / FAR_BYTES if weights > isa.l2 * 3 // 4 else 0
    back = between / BACK_BYTES if between > isa.l2 * 3 // 4 else 0
    return products + around + far + back


def packed_shape(conv: Conv2d, p: Plan) -> tuple[int, ...]:
    return (PATCH**2, -(-conv.oc // p.tile.block), conv.c, p.tile.block)


def pick(index: tirx.Expr, values: Numbers) -> tirx.Expr:
    """values[index]; decided when the loop over `index` is unrolled."""
    chosen = values[-1]
    for at in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(index == at, values[at], chosen)
    return chosen


@dataclass(frozen=True)
class Grid:
    """Patches of an image, whole tasks of them: n, down, across."""

    n: int
    high: int
    wide: int

    @classmethod
    def of(cls, conv: Conv2d, p: Plan) -> Grid:
        high, wide = (-(-side // OUT) for side in conv.out)
        return cls(conv.n, round_up(high, p.rows), round_up(wide, p.columns))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.n, self.high, self.wide


# Elements of what is computed between input and output; arrays are tensors of TVM's expressions or a program's buffers.
def patch_of(x: Array, conv: Conv2d, n: Index, i: Index, j: Index, r: Index, k: Index, c: Index) -> tirx.Expr:
    top, left, _, _ = conv.padding
    h, w = i * OUT + r - top, j * OUT + k - left
    inside = tirx.all(h >= 0, h < conv.h, w >= 0, w < conv.w)
    return tirx.if_then_else(inside, x[n, h, w, c], tirx.const(0.0, "float32"))


def half_of(patch: Array, n: Index, i: Index, j: Index, u: Index, k: Index, c: Index) -> tirx.Expr:
    return pick(u, transform_data([patch[n, i, j, r, k, c] for r in range(PATCH)]))


def data_of(half: Array, u: Index, v: Index, n: Index, i: Index, j: Index, c: Index) -> tirx.Expr:
    return pick(v, transform_data([half[n, i, j, u, k, c] for k in range(PATCH)]))


def row_of(sums: Array, block: int, n: Index, i: Index, j: Index, r: Index, v: Index, o: Index) -> tirx.Expr:
    return pick(r, transform_sums([sums[u, v, n, i, j, o // block, o % block] for u in range(PATCH)]))


def pixel_of(rows: Array, n: Index, i: Index, j: Index, r: Index, k: Index, o: Index) -> tirx.Expr:
    return pick(k, transform_sums([rows[n, i, j, r, v, o] for v in range(PATCH)]))


def result_of(pixels: Array, n: Index, h: Index, w: Index, o: Index) -> tirx.Expr:
    return pixels[n, h // OUT, w // OUT, h % OUT, w % OUT, o]


def compute(x: te.Tensor, weight: te.Tensor, conv: Conv2d, p: Plan) -> te.Tensor:
    """x (n, h, w, c) and transformed weights, both float32: (n, oh, ow, oc)."""
    blocks, block, grid = -(-conv.oc // p.tile.block), p.tile.block, Grid.of(conv, p).shape
    patch = te.compute((*grid, PATCH, PATCH, conv.c), lambda *at: patch_of(x, conv, *at), name="patch")
    half = te.compute(patch.shape, lambda *at: half_of(patch, *at), name="half")
    data = te.compute((PATCH, PATCH, *grid, conv.c), lambda *at: data_of(half, *at), name="data")
    rc = te.reduce_axis((0, conv.c), "c")
    sums = te.compute(
        (PATCH, PATCH, *grid, blocks, block),
        lambda u, v, n, i, j, b, o: te.sum(data[u, v, n, i, j, rc] * weight[u * PATCH + v, b, rc, o], axis=[rc]),
        name="sums",
        attrs={
            FAMILY: "winograd",
            KEY: key(conv, "float32"),
            MACS: conv.macs,
            "plan": [p.rows, p.columns, p.tile.pixels, p.tile.vectors, p.tile.lanes],
        },
    )
    between = (*grid, OUT, PATCH, blocks * block)
    rows = te.compute(between, lambda *at: row_of(sums, block, *at), name="rows")
    pixels = te.compute((*grid, OUT, OUT, blocks * block), lambda *at: pixel_of(rows, *at), name="pixels")
    return te.compute((conv.n, *conv.out, conv.oc), lambda *at: result_of(pixels, *at), name="crop")


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Groups of patches in parallel, each transformed, multiplied and transformed back while it is in the caches."""
    outer = around_products(sch, isa, choose)
    _, anchor, _ = generic.around_anchor(sch)
    _, _, pixels, vectors, lanes = (int(v) for v in sch.get(anchor).annotations["plan"])
    u, v, _, i, j, b, o, c_sum = sch.get_loops(anchor)[outer:]
    p_outer, p_inner = sch.split(sch.fuse(i, j), [None, pixels])
    o_outer, o_inner = sch.split(o, [vectors, lanes])
    sch.reorder(u, v, b, p_outer, c_sum, p_inner, o_outer, o_inner)
    kept = sch.cache_write(anchor, 0, "local")
    sch.reverse_compute_at(kept, p_outer, preserve_unit_loops=True)
    for loop in (p_inner, o_outer):
        sch.unroll(loop)
    sch.vectorize(o_inner)
    straight(sch, kept, 3, lanes)
    straight(sch, sch.decompose_reduction(anchor, c_sum), 2)


def around_products(sch: Schedule, isa: Isa, choose: Choose) -> int:
    """Tasks, and in each what is before and behind its products; how many loops are around these."""
    blocks = {sch.get(b).name_hint: b for b in generic.blocks_of(sch)}
    _, anchor, after = generic.around_anchor(sch)
    high, wide, _, _, lanes = (int(v) for v in sch.get(anchor).annotations["plan"])
    for block in after[2:-1]:
        sch.compute_inline(block)
    last, out = after[-1], blocks["pixels"]

    n, i, j, r, k, o = sch.get_loops(out)
    down, i = sch.split(i, [None, high])
    across, j = sch.split(j, [None, wide])
    vector, lane = sch.split(o, [None, lanes])
    sch.reorder(n, down, across, i, j, vector, r, k, lane)
    sch.reverse_compute_at(last, vector, preserve_unit_loops=True)
    sch.compute_at(blocks["rows"], vector)
    sch.compute_at(anchor, across, preserve_unit_loops=True)
    sch.compute_at(blocks["data"], across, preserve_unit_loops=True)
    straight(sch, out, 2)
    straight(sch, blocks["rows"], 2)
    straight(sch, last, 3, lanes)

    outer = 3
    u, v, _, i, j, c = sch.get_loops(blocks["data"])[outer:]
    c_outer, c_inner = sch.split(c, [None, lanes])
    sch.reorder(i, j, c_outer, u, v, c_inner)
    for name in ("half", "patch"):
        sch.compute_at(blocks[name], c_outer)
        straight(sch, blocks[name], 2)
    straight(sch, blocks["data"], 2)
    count = choose("tasks", (3, 2, 1)) if isa.cores > 1 else 0
    if count:
        sch.parallel(sch.fuse(*(n, down, across)[:count]))
        outer -= count - 1
    return outer
