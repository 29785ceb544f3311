"""Block-sparse 3x3 convolution by Winograd's filtering: weights of which whole kernels are zero, in blocks of outputs.

    sums[u, v, patch, p, o] = sum over blocks j of panel p of data[u, v, patch, offset[j]] * values[u, v, j, o]

A panel is `width` neighbouring output channels, a block is the kernels of a panel and one input, all their taps. The 36
numbers that a kernel becomes are all zero where its 9 taps are: a block that is left out is so in all 36 products.
See `winograd` for what is before and behind these, and `sparse_blocks` for the loop over blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import CODE, code_blocks, generic, winograd
from tvmcompress.kernels.choices import Choices, Choose, untuned
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import BITS, Product, Streams, attributes, called, coarse, narrow, wide
from tvmcompress.kernels.winograd import KERNEL, PATCH

NAME = "sparse_winograd"
# Of what `winograd.cycles` counts, which is for comparing divisions: 1.0 to 1.7 in the layers that were measured.
TIMES = 1.4


@dataclass(frozen=True)
class Plan:
    """`division` into tasks and tiles; the vectors of a tile are a panel."""

    product: Product
    division: winograd.Plan

    @property
    def width(self) -> int:
        """Output channels of a panel."""
        return self.division.tile.block

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        pixels, columns = self.division.tile.pixels, self.division.columns
        return (1, pixels) if pixels <= columns else (pixels // columns, columns)

    def panels(self, conv: Conv2d) -> int:
        return -(-conv.oc // self.width)


def plan(
    conv: Conv2d, isa: Isa, product: Product, vectors: int, density: float, choices: Choices = untuned
) -> Plan | None:
    """`vectors`: of a panel, as the blocks of the weights are, of which the share `density` is not zero. None where
    kernels are not 3x3, or vectors do not divide the channels."""
    if product.data != "float32" or not winograd.applies(conv, isa):
        return None
    found = winograd.plans(conv, isa, vectors, density)
    return Plan(product, choices(name_of(conv, vectors * isa.lanes))("division", found)) if found else None


def estimate(conv: Conv2d, p: Plan, isa: Isa, density: float) -> float:
    """Cycles of the division that is thought the best, with all cores at work."""
    cycles = winograd.plans(conv, isa, p.division.tile.vectors, density)[0].cycles / 2 * TIMES
    return cycles * min(isa.cores, winograd.MEASURED) / isa.cores


def name_of(conv: Conv2d, width: int) -> str:
    """What the kernel is known by."""
    return f"kernels {width}x1 {key(conv, 'float32')}"


def alive(weight: np.ndarray, width: int) -> np.ndarray:
    """(panels, C): whether a block of weights (O, C, 3, 3) is not zero."""
    there = np.pad((weight != 0).any((2, 3)), ((0, -len(weight) % width), (0, 0)))
    return np.asarray(there.reshape(-1, width, there.shape[1]).any(1))


def pack(weight: np.ndarray, conv: Conv2d, p: Plan) -> Streams:
    """(O, C, 3, 3) as the blocks that are not zero, panel by panel: values (9, blocks, width), a tap after the other.

    An offset is a channel.
    """
    there = alive(weight, p.width)
    panel, at = np.nonzero(there)
    taps = np.pad(weight, ((0, -len(weight) % p.width), *((0, 0),) * 3))
    taps = taps.reshape(p.panels(conv), p.width, -1, KERNEL**2).transpose(3, 0, 2, 1)
    count = coarse(max(len(at), 1))
    values, offsets = np.zeros((KERNEL**2, count, p.width), np.float32), np.zeros(count, np.int64)
    values[:, : len(at)], offsets[: len(at)] = taps[:, panel, at], at
    pointers = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
    return Streams(values, narrow(offsets), pointers)


ELEMENTS = """\
    for a, b, d, e, f, g in T.grid({extents}):
        with T.sblock("{name}"):
            i0, i1, i2, i3, i4, i5 = T.axis.remap("SSSSSS", [a, b, d, e, f, g])
            {name}[i0, i1, i2, i3, i4, i5] = {element}, i0, i1, i2, i3, i4, i5)
"""
BEFORE = (
    ("patch", "n, grid_h, grid_w, side, side, c", "patch_of(x, conv"),
    ("half", "n, grid_h, grid_w, side, side, c", "half_of(patch"),
    ("data", "side, side, n, grid_h, grid_w, c", "data_of(half"),
)
BEHIND = (
    ("rows", "n, grid_h, grid_w, four, side, channels", "row_of(sums, width"),
    ("pixels", "n, grid_h, grid_w, four, four, channels", "pixel_of(rows"),
)
PROGRAM = """
@T.prim_func(private=True, s_tir=True)
def sparse_winograd(
    x: T.Buffer((n, height, wide, c), "float32"),
    values: T.Buffer((numbers, count, width), "float32"),
    offsets: T.Buffer((count,), index),
    pointers: T.Buffer((panels + 1,), "int32"),
    out: T.Buffer(shape, "float32"),
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 4}})
    patch = T.sblock_alloc_buffer((n, grid_h, grid_w, side, side, c), "float32")
    half = T.sblock_alloc_buffer((n, grid_h, grid_w, side, side, c), "float32")
    data = T.sblock_alloc_buffer((side, side, n, grid_h, grid_w, c), "float32")
    sums = T.sblock_alloc_buffer((side, side, n, grid_h, grid_w, panels, width), "float32")
    rows = T.sblock_alloc_buffer((n, grid_h, grid_w, four, side, channels), "float32")
    pixels = T.sblock_alloc_buffer((n, grid_h, grid_w, four, four, channels), "float32")
{before}    for a, b, i, d, e, p, o in T.grid(side, side, n, grid_h // th, grid_w // tw, panels, one):
        with T.sblock("sums"):
            u, v, vi, vh, vw, vp, vo = T.axis.remap("SSSSSSS", [a, b, i, d, e, p, o])
            T.reads(
                data[u, v, vi, vh * th : vh * th + th, vw * tw : vw * tw + tw, 0:c],
                values[u * side + v, 0:count, 0:width], offsets[0:count], pointers[vp : vp + 2],
            )
            T.writes(
                sums[u, v, vi, vh * th : vh * th + th, vw * tw : vw * tw + tw, vp, vo * width : vo * width + width]
            )
            T.sblock_attr(facts)
            T.evaluate(call(
                name, T.address_of(data[u, v, vi, vh * th, vw * tw, 0]),
                T.address_of(values[u * side + v, pointers[vp], 0]), T.address_of(offsets[pointers[vp]]),
                pointers[vp + 1] - pointers[vp], T.address_of(sums[u, v, vi, vh * th, vw * tw, vp, 0]),
                T.address_of(sums[u, v, vi, vh * th, vw * tw + right, vp, 0]),
                T.address_of(sums[u, v, vi, vh * th + below, vw * tw, vp, 0]),
                T.address_of(sums[u, v, vi, vh * th + (th - 1), vw * tw + (tw - 1), vp, width - 1]),
                T.address_of(data[u, v, vi, vh * th + (th - 1), vw * tw + (tw - 1), c - 1]),
            ))
{behind}    for a, b, d, e in T.grid(n, high_out, wide_out, oc):
        with T.sblock("crop"):
            i0, i1, i2, i3 = T.axis.remap("SSSS", [a, b, d, e])
            out[i0, i1, i2, i3] = result_of(pixels, i0, i1, i2, i3)
"""


def program(conv: Conv2d, p: Plan, streams: Streams) -> PrimFunc:
    """See `written`."""
    return written(conv, p, streams.values.shape[1], str(streams.offsets.dtype))


@lru_cache(256)
def written(conv: Conv2d, p: Plan, count: int, index: str) -> PrimFunc:
    """x (n, h, w, c), values (36, blocks, width) that come of `winograd.filters`, offsets and pointers: float32, the
    result (n, oh, ow, oc)."""
    (th, tw), division, grid = p.patches, p.division, winograd.Grid.of(conv, p.division)
    right, down = 4 * conv.c, 4 * conv.c * division.columns
    patches = [(r, q) for r in range(th) for q in range(tw)]
    function = code_blocks.blocks(p.product.words, patches, division.tile.vectors, right, down, BITS[index], 4, more=1)
    facts = attributes(NAME, name_of(conv, p.width), conv, p.product, [function])
    facts["plan"] = [division.rows, division.columns, *vars(division.tile).values()]
    names = {
        "T": T, "n": conv.n, "height": conv.h, "wide": conv.w, "c": conv.c, "numbers": PATCH**2, "count": count,
        "width": p.width, "one": 1, "index": index, "panels": p.panels(conv), "shape": [conv.n, *conv.out, conv.oc],
        "grid_h": grid.high, "grid_w": grid.wide, "side": PATCH, "four": winograd.OUT,
        "channels": p.panels(conv) * p.width, "th": th, "tw": tw, "right": int(tw > 1), "below": int(th > 1),
        "high_out": conv.out[0], "wide_out": conv.out[1], "oc": conv.oc, "name": function.name, "call": called,
        "facts": facts, "conv": conv,
    }  # fmt: skip
    elements = {
        one.__name__: one
        for one in (winograd.patch_of, winograd.half_of, winograd.data_of, winograd.row_of, winograd.pixel_of,
                    winograd.result_of)
    }  # fmt: skip
    before, behind = (
        "".join(ELEMENTS.format(name=name, extents=extents, element=element) for name, extents, element in stages)
        for stages in (BEFORE, BEHIND)
    )
    return script.program(PROGRAM.format(before=before, behind=behind), wide(names) | elements)


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """As `winograd.schedule`; a panel's weights stay in the cache for all tiles of a task."""
    outer = winograd.around_products(sch, isa, choose)
    _, anchor, _ = generic.around_anchor(sch)
    u, v, _, high, wide_, panel, _ = sch.get_loops(anchor)[outer:]
    sch.reorder(u, v, panel, high, wide_)
    sch.annotate(sch.get_loops(anchor)[0], "pragma_import_llvm", sch.get(anchor).annotations[CODE])
