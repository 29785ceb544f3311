"""Unstructured sparse convolution and matrix product: each weight once, times vectors of pixels.

    y[n, q, o] = sum over the weights j of output o of values[j] * tile[q + offset[j]]        q: pixels of a tile

A task copies what its tile of pixels reads into memory of its own with pixels innermost, so that a weight is one
broadcast and `vectors` multiply-adds on neighbouring words. Rows of that copy lie one behind the other, padding
included, so that every tap of a convolution is the same tile, a few words further; strides make several images of it,
one for each remainder. Or there is an image for each column of the window, or for each tap: more to copy, but vectors
that begin where lines of the cache do. Sums of a row of outputs stay in registers over a slice of the inputs that stays
in the cache.

Words hold one float, or as many channels as a dot product takes. Within a chunk rows are in the order of how many
weights they have, so that the processor foresees where their loops end. Results are transposed back in registers.

Where x or the result is PLANES, (n, channels, pixels), nothing is transposed on that side: lines of x are copied as
they are, and sums go to where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import Expr, PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import MACS, code, code_planes, generic
from tvmcompress.kernels.choices import Choices, Choose, first, untuned
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import (
    BITS,
    SPARSE_MACS,
    Product,
    Streams,
    as_read,
    attributes,
    by_depth,
    called,
    coarse,
    narrow,
    result_axes,
    wide,
)
from tvmcompress.kernels.tile import broadcast_from, round_up, whole_vectors

NAME = "sparse_rows"
PIXELS, PLANES = "pixels", "planes"  # layouts: (n, h, w, channels) and (n, channels, h * w)
CHUNKS = (64, 32, 16)  # outputs, whose sums wait in the cache to be transposed
REMAINDERS, COLUMNS, TAPS = "remainders", "columns", "taps"
LATENCY = 4  # cycles of a multiply-add
FAR, BEYOND = 0.75, 1.5  # cycles that a load takes longer from the second cache, and from beyond
ACROSS = 0.5  # and one from two lines
MISSED = 10  # of a branch that was not foreseen
COPIED = 0.3  # for a word of the copy
SPREAD = 0.3  # for a word of sums that wait; with what dense kernels take too for their results it is three times that
TURNED = 0.1  # for a word that is transposed, more
STRAGGLING = 0.1  # of a task, by which threads end one after the other
STEP = 2  # weights of a row come in multiples of it: a loop of so many has half the branches


@dataclass(frozen=True)
class Tile:
    """`rows` by `columns` pixels of the result; `slice` words of channels and `chunk` outputs at a time; outputs in
    `parts`, which are tasks each; what there is an image for (see above)."""

    rows: int
    columns: int
    slice: int
    chunk: int
    parts: int
    images: str = REMAINDERS


@dataclass(frozen=True)
class Plan:
    """Where everything lies: see `Layout`."""

    product: Product
    tile: Tile
    conv: Conv2d
    source: str = PIXELS
    result: str = PIXELS

    @property
    def steps(self) -> int:
        """Words of channels."""
        return -(-self.conv.c // self.product.depth)

    def origin(self, i: int, j: int) -> tuple[int, int]:
        """Where the image begins that a tap reads, counted in x from the first tap of the first pixel."""
        (sh, sw), row, column = self.conv.strides, i * self.conv.dilation[0], j * self.conv.dilation[1]
        if self.tile.images == TAPS:
            return row, column
        return row % sh, column if self.tile.images == COLUMNS else column % sw

    @cached_property
    def origins(self) -> list[tuple[int, int]]:
        """Of all images."""
        kh, kw = self.conv.kernel
        return sorted({self.origin(i, j) for i in range(kh) for j in range(kw)})

    def place(self, i: int, j: int) -> int:
        """Words from the begin of a channel to what a tap reads for the first pixel."""
        (sh, sw), (dh, dw), (a, b) = self.conv.strides, self.conv.dilation, self.origin(i, j)
        return self.origins.index((a, b)) * self.image + (i * dh - a) // sh * self.line + (j * dw - b) // sw

    @property
    def line(self) -> int:
        """Words of a row of the copy."""
        if self.tile.images == TAPS or (self.tile.images == COLUMNS and self.tile.rows == 1):
            return self.tile.columns
        if self.tile.images == COLUMNS:
            return round_up(self.tile.columns, self.product.lanes)
        return self.tile.columns + (self.conv.kernel[1] - 1) * self.conv.dilation[1] // self.conv.strides[1]

    @property
    def lines(self) -> int:
        if self.tile.images == TAPS:
            return self.tile.rows
        return self.tile.rows + (self.conv.kernel[0] - 1) * self.conv.dilation[0] // self.conv.strides[0]

    @cached_property
    def image(self) -> int:
        """Words from one image of a channel to the next: whole vectors; what is copied in such fits."""
        lanes = self.product.lanes
        return round_up((self.lines - 1) * self.line + round_up(self.line, lanes), lanes)

    @cached_property
    def plane(self) -> int:
        """Words from one channel to the next: an odd number of vectors, so that channels do not share one set of the
        cache."""
        vectors = self.image * len(self.origins) // self.product.lanes
        return (vectors + 1 - vectors % 2) * self.product.lanes

    @cached_property
    def vectors(self) -> int:
        """Of the sums of one output."""
        return -(-((self.tile.rows - 1) * self.line + self.tile.columns) // self.product.lanes)

    @property
    def length(self) -> int:
        """Words of a copy, and what the last sums read beyond it."""
        return self.steps * self.plane + (self.vectors + 1) * self.product.lanes

    @property
    def slices(self) -> int:
        return -(-self.steps // self.tile.slice)

    @property
    def chunk(self) -> int:
        return self.tile.chunk

    @property
    def pixels(self) -> int:
        """Of a tile, as results lie in planes."""
        return self.tile.rows * self.tile.columns

    @property
    def direct(self) -> bool:
        """Whether sums are results: planes, where what the last vector of an output has too much hurts nobody."""
        tiles = -(-self.conv.out[0] // self.tile.rows) * -(-self.conv.out[1] // self.tile.columns)
        gaps = self.tile.rows > 1 and self.line > self.tile.columns
        return self.result == PLANES and not gaps and (tiles == 1 or self.pixels % self.product.lanes == 0)

    @property
    def chunks(self) -> int:
        """In all; each part has as many."""
        return round_up(-(-self.conv.oc // self.chunk), self.tile.parts)


def name_of(conv: Conv2d, product: Product, source: str = PIXELS, result: str = PIXELS) -> str:
    """What the kernel is known by."""
    layouts = f" {source} {result}" if PLANES in (source, result) else ""
    return f"sparse {key(conv, product.data)}{layouts}"


def flat(conv: Conv2d) -> Conv2d:
    """The same sums over one row of all pixels, where none depends on where rows end."""
    (kh, kw), same = conv.kernel, conv.strides == (1, 1) and not any(conv.padding)
    return replace(conv, h=1, w=conv.h * conv.w) if kh == kw == 1 and same else conv


def plan(
    conv: Conv2d, isa: Isa, product: Product, density: float, choices: Choices = untuned,
    source: str = PIXELS, result: str = PIXELS,
) -> Plan | None:  # fmt: skip
    """None where windows are so large that no tile is in reach, or rows too long for a layout."""
    if not (found := ranked(conv, isa, product, density, source, result)):
        return None
    return Plan(product, choices(name_of(conv, product, source, result))("tile", found), conv, source, result)


@lru_cache(1024)
def ranked(conv: Conv2d, isa: Isa, product: Product, density: float, source: str, result: str) -> tuple[Tile, ...]:
    """The tiles, the fastest first; layers of one shape and builds of one model ask for the same."""
    plans = [Plan(product, tile, conv, source, result) for tile in tiles(conv, isa, product)]
    # A tile of planes is a run of memory.
    found = [
        (cost(p, isa, density), number, p.tile)
        for number, p in enumerate(plans)
        if result == PIXELS or p.tile.columns == conv.out[1] or (conv.out[0] == 1 and p.direct)
    ]
    return tuple(tile for _, _, tile in sorted(found))


def tiles(conv: Conv2d, isa: Isa, product: Product) -> list[Tile]:
    """Whole rows where a row is short, else parts of one, whose sums registers hold."""
    (oh, ow), most = conv.out, (isa.registers - 3) * product.lanes
    steps = -(-conv.c // product.depth)
    shapes = {(rows, ow) for rows in range(1, oh + 1) if rows * ow <= most and round_up(oh, rows) - oh < rows}
    for count in range(1, isa.registers - 2):
        shapes.add((1, min(count * product.lanes, ow)))
    slices = sorted({steps, *(s for s in (16, 32, 64, 128, 256) if s < steps)})
    chunks = sorted({min(chunk, round_up(conv.oc, isa.lanes)) for chunk in CHUNKS})
    made = [
        Tile(rows, columns, part, chunk, parts, images)
        for images in ((REMAINDERS, COLUMNS, TAPS) if conv.kernel[1] > 1 else (REMAINDERS,))
        for rows, columns in sorted(shapes)
        for part in slices
        for chunk in chunks
        for parts in (1, 2, 4, 8)
        # Outputs are divided only as far as pixels alone make too few tasks.
        if parts == 1 or (parts * chunk <= conv.oc and parts * conv.n * (oh // rows) * (ow // columns) < 8 * isa.cores)
    ]
    return [t for t in made if Plan(product, t, conv).vectors <= isa.registers - 3 and in_reach(Plan(product, t, conv))]


def in_reach(p: Plan) -> bool:
    """Whether offsets within a slice take two bytes."""
    return p.tile.slice * p.plane < 1 << 16


def cost(p: Plan, isa: Isa, density: float) -> float:
    """Estimated cycles of the slowest thread.

    A weight takes `vectors` loads, each with a multiply-add, and one more, at least the time of a multiply-add; what a
    load takes depends on the cache in which the slice and the sums that wait lie, and on whether it reaches into the
    next line of it. A row of a slice moves its sums; where it has another number of weights than the row before, a
    branch is not foreseen. Numbers are fitted to times of 200 kernels of
    ResNet-50's layers on a Zen 4, which they meet within 11%.
    """
    conv, tile, lanes = p.conv, p.tile, p.product.lanes
    oh, ow = conv.out
    taps = conv.kernel[0] * conv.kernel[1]
    tasks = conv.n * math.ceil(oh / tile.rows) * math.ceil(ow / tile.columns) * tile.parts
    rows = p.chunks * p.chunk / tile.parts
    weights = p.steps * taps * density / p.slices
    held = (min(tile.slice, p.steps) * p.plane + p.chunk * p.vectors * lanes / 2) * 4
    load = 1 + FAR * max(1 - 2 * isa.l1d / held, 0)
    load += BEYOND if p.steps * p.plane * 4 > isa.l2 * 3 // 4 else 0
    kh, kw = conv.kernel
    load += ACROSS * sum(p.place(i, j) % lanes > 0 for i in range(kh) for j in range(kw)) / taps
    lengths = min(p.chunk, 1 + 5 * math.sqrt(weights * (1 - density)) / STEP)  # that differ in a chunk, about
    row = (weights + STEP / 4) * max(p.vectors * load + 0.75, LATENCY) + MISSED * lengths / p.chunk + 2
    row += p.vectors * (1 if p.slices == 1 else 2)
    copied = p.steps * p.lines * len(p.origins) * round_up(p.line, lanes)
    written = rows * tile.rows * round_up(tile.columns, lanes)
    moved = (COPIED + (TURNED if p.source == PIXELS else 0)) * copied
    moved += (0 if p.direct else SPREAD + (TURNED if p.result == PIXELS else 0)) * written
    each = rows * row * p.slices + moved
    return each * (math.ceil(tasks / isa.cores) + STRAGGLING)


def pack(weight: np.ndarray, p: Plan) -> Streams:
    """(O, C, KH, KW) as words that are not zero: chunk by chunk, slice by slice, rows by how many they have.

    `pointers` holds for each such row how many STEPs of them it has, and which row it is; behind it comes, for each
    slice of a chunk, where its first STEP is.
    """
    taps = by_depth(weight, p.product.depth)
    o, kh, kw, steps, depth = taps.shape
    padded = np.zeros((p.chunks * p.chunk, kh, kw, p.slices * p.tile.slice, depth), weight.dtype)
    padded[:o, :, :, :steps] = taps
    # (chunk, slice, row, kh, kw, word): as it is walked.
    taps = padded.reshape(p.chunks, p.chunk, kh, kw, p.slices, p.tile.slice, depth).transpose(0, 4, 1, 5, 2, 3, 6)
    taps = np.ascontiguousarray(taps).reshape(p.chunks * p.slices, p.chunk, -1, depth)
    at = np.array([[p.place(i, j) for j in range(kw)] for i in range(kh)])
    where = (np.arange(p.tile.slice)[:, None, None] * p.plane + at).reshape(-1)
    there = taps.any(-1)
    counts = there.sum(-1)
    order = np.argsort(-counts, axis=1, kind="stable")
    there = np.take_along_axis(there, order[..., None], 1)
    taps = np.take_along_axis(taps, order[..., None, None], 1)
    whole = round_up_array(there.sum(-1)).reshape(-1)
    ends = np.cumsum(whole)
    group, row, column = np.nonzero(there)
    flat = group * p.chunk + row
    rank = np.arange(len(flat)) - np.concatenate([[0], np.cumsum(there.sum(-1).reshape(-1))])[flat]
    place = (ends - whole)[flat] + rank
    values = np.zeros((coarse(max(int(ends[-1]), STEP)), depth), weight.dtype)
    values[place] = taps[group, row, column]
    values = as_read(values, p.product)
    offsets = np.zeros(len(values), np.int64)
    offsets[place] = where[column]
    pointers = np.stack([whole // STEP, order.reshape(-1)], 1).astype(np.uint16)
    firsts = ((ends - whole)[:: p.chunk] // STEP).astype(np.int32)
    words = np.ascontiguousarray(values).view(np.int32 if depth > 1 else values.dtype).reshape(-1)
    return Streams(words, narrow(offsets), pointers, (firsts,))


def round_up_array(counts: np.ndarray) -> np.ndarray:
    return -(-counts // STEP) * STEP


PROGRAM = """
@T.prim_func(private=True, s_tir=True)
def sparse_rows(
    x: T.Buffer(image, data),
    values: T.Buffer((count,), word),
    offsets: T.Buffer((count,), index),
    pointers: T.Buffer((slots, 2), "uint16"),
    firsts: T.Buffer((chunks * slices,), "int32"),
    out: T.Buffer(shape, sums),
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 4}})
    tile = T.sblock_alloc_buffer((n, heights, widths, parts, length), kind)
    y = T.sblock_alloc_buffer({scratch}, sums)
    for i, h, w, s in T.grid(n, heights, widths, parts):
        with T.sblock("copy"):
            vi, vh, vw, vs = T.axis.remap("SSSS", [i, h, w, s])
            T.reads({read})
            T.writes(tile[vi, vh, vw, vs, 0:length])
{copies}
        for c in range(chunks // parts):
            with T.sblock("sparse_rows"):
                vi, vh, vw = T.axis.remap("SSS", [i, h, w])
                vc = T.axis.spatial(chunks, s * (chunks // parts) + c)
                T.reads(
                    tile[vi, vh, vw, vc // (chunks // parts), 0:length], values[0:count], offsets[0:count],
                    pointers[vc * (slices * chunk) : vc * (slices * chunk) + slices * chunk, 0:2],
                    firsts[vc * slices : vc * slices + slices],
                )
                T.writes({written})
                T.sblock_attr(facts)
{waiting}{slices}{results}    for {indices} in T.grid({extents}):
        with T.sblock("crop"):
            {axes} = T.axis.remap("{kinds}", [{indices}])
            out[{axes}] = y[{place}]
"""
COPY = """            for l, g in T.grid(lines, groups):
                T.evaluate(call(
                    "{name}", T.address_of(x[vi, T.max(T.min({row}, height - 1), 0), 0, 0]),
                    T.Cast("int32", (vw * columns + g * lanes) * {right} + {column}),
                    T.if_then_else(T.And({row} >= 0, {row} < height), T.Cast("int32", wide), 0),
                    T.address_of(tile[vi, vh, vw, vs, {base} + l * line + g * lanes]), fill,
                    T.address_of(tile[vi, vh, vw, vs, length - 1]),
                ))
"""
LINE = """            for l in T.grid(lines):
                T.evaluate(call(
                    "{name}", T.address_of(x[vi, 0, T.max(T.min({row}, height - 1), 0) * wide]),
                    T.Cast("int32", vw * columns * {right} + {column}),
                    T.if_then_else(T.And({row} >= 0, {row} < height), T.Cast("int32", wide), 0),
                    T.address_of(tile[vi, vh, vw, vs, {base} + l * line]), fill,
                    T.address_of(tile[vi, vh, vw, vs, length - 1]),
                ))
"""
WAITING = """                waiting = T.alloc_buffer((chunk * span,), sums)
"""
SLICE = """                {loop}
                    T.evaluate(call(
                        "{name}", T.address_of(tile[vi, vh, vw, vc // (chunks // parts), {number} * slice]),
                        T.address_of(values[0]), T.address_of(offsets[0]),
                        T.address_of(pointers[(vc * slices + {number}) * chunk, 0]), T.Cast("int32", chunk),
                        firsts[vc * slices + {number}],
                        T.address_of({sums}), T.address_of({next}), T.address_of({end}),
                    ))
"""
RESULT = """                for o, r in T.grid(chunk // lanes, rows):
                    {loop}
                        T.evaluate(call(
                            "{name}", T.address_of(waiting[o * (lanes * span) + r * line + {group} * lanes]),
                            T.address_of(y[vi, vh * rows + r, vw * columns + {group} * lanes, vc * chunk + o * lanes]),
                            T.address_of(y[vi, vh * rows + r, vw * columns + {group} * lanes + 1,
                                           vc * chunk + o * lanes]),
                            T.address_of(y[vi, vh * rows + (rows - 1), vw * columns + (columns - 1),
                                           vc * chunk + (chunk - 1)]),
                        ))
"""
LINES = """                T.evaluate(call(
                    "{name}", T.address_of(waiting[0]), T.address_of({sums}), T.address_of({next}),
                    T.address_of({end}),
                ))
"""
# Of a tile and chunk, in planes: the sums of the first output, of the second, and the last ones.
PLACES = {
    "sums": "y[vi, vc * chunk, (vh * widths + vw) * pixels]",
    "next": "y[vi, vc * chunk + 1, (vh * widths + vw) * pixels]",
    "end": "y[vi, vc * chunk + (chunk - 1), (vh * widths + vw) * pixels + (pixels - 1)]",
}
HELD = {"sums": "waiting[0]", "next": "waiting[span]", "end": "waiting[chunk * span - 1]"}
PIXEL_TEXT = {
    "scratch": "(n, heights * rows, widths * columns, chunks * chunk)",
    "written": "y[vi, vh * rows : vh * rows + rows, vw * columns : vw * columns + columns, "
    "vc * chunk : vc * chunk + chunk]",
}
PLANE_TEXT = {
    "scratch": "(n, chunks * chunk, heights * widths * pixels)",
    "written": "y[vi, vc * chunk : vc * chunk + chunk, "
    "(vh * widths + vw) * pixels : (vh * widths + vw) * pixels + pixels]",
}


def program(p: Plan, streams: Streams, shape: Sequence[int], fill: int = 0) -> PrimFunc:
    """See `written`."""
    values = streams.values
    return written(p, len(values), str(values.dtype), str(streams.offsets.dtype), tuple(shape), fill)


@lru_cache(256)
def written(p: Plan, count: int, word: str, index: str, shape: tuple[int, ...], fill: int) -> PrimFunc:
    """x (n, h, w, c) or planes of it, then `Streams.arrays`; `shape` as in `sparse_blocks`, or that of planes; `fill`
    is what padding holds."""
    conv, product, lanes, words = p.conv, p.product, p.product.lanes, p.product.words
    oh, ow = conv.out
    kind, span = "int32" if product.depth > 1 else product.data, p.vectors * lanes
    channels = round_up(conv.c, product.depth)
    planes_in, planes_out = p.source == PLANES, p.result == PLANES
    first, more = (code.rows(words, p.vectors, STEP, BITS[index], again) for again in (False, True))
    copied, stored = copy_function(p), result_functions(p, span)
    functions = [copied, first, *([more] if p.slices > 1 else []), *stored]
    facts = attributes(NAME, name_of(conv, product, p.source, p.result), conv, product, functions)
    names = {
        "T": T, "n": conv.n, "height": conv.h, "wide": conv.w, "channels": channels, "area": conv.h * conv.w,
        "image": [conv.n, channels, conv.h * conv.w] if planes_in else [conv.n, conv.h, conv.w, channels],
        "data": product.data, "count": count, "word": word, "kind": kind,
        "index": index, "slots": p.chunks * p.chunk * p.slices, "shape": [*shape], "sums": product.sums,
        "heights": -(-oh // p.tile.rows), "widths": -(-ow // p.tile.columns), "rows": p.tile.rows,
        "columns": p.tile.columns, "parts": p.tile.parts, "length": p.length, "chunks": p.chunks, "chunk": p.chunk,
        "slices": p.slices, "slice": p.tile.slice * p.plane, "span": span, "lanes": lanes, "lines": p.lines,
        "line": p.line, "groups": -(-p.line // lanes), "call": called, "fill": fill_word(p, fill), "facts": facts,
        # What the last vector of an output has too much: see `direct`.
        "pixels": round_up(p.pixels, lanes) if p.direct else p.pixels,
    }  # fmt: skip
    axes = result_axes(shape, (conv.n, oh, ow, conv.oc))
    text = PROGRAM.format(
        read="x[vi, 0:channels, 0:area]" if planes_in else "x[vi, 0:height, 0:wide, 0:channels]",
        copies="".join(copy_of(p, image, copied.name) for image in range(len(p.origins))),
        waiting="" if p.direct else WAITING,
        slices=slices(p, first, more, PLACES if p.direct else HELD),
        results=results(p, [one.name for one in stored]),
        place=axes["axes"] if planes_out else "{image}, {across}, {last}".format(**axes),
        **(PLANE_TEXT if planes_out else PIXEL_TEXT),
        **axes,
    )
    return script.program(text, wide(names))


def copy_function(p: Plan) -> code.Function:
    """What fills the copy: lines of all channels."""
    conv, words = p.conv, p.product.words
    if p.source == PLANES:
        groups = -(-p.line // words.lanes)
        return code_planes.copy(words, conv.strides[1], groups, conv.h * conv.w, p.plane, conv.c)
    pixel = round_up(conv.c, p.product.depth) // p.product.depth * 4
    return code.copy(words, pixel, conv.strides[1], p.plane, p.steps // words.lanes, p.steps % words.lanes)


def result_functions(p: Plan, span: int) -> list[code.Function]:
    """What turns sums into results."""
    words, lanes = p.product.words, p.product.lanes
    if p.direct:
        return []
    if p.result == PLANES:
        return [code_planes.lines(words, p.chunk, span, p.tile.rows, p.line, p.tile.columns)]
    wholes, rest = divmod(p.tile.columns, lanes)
    return [code.results(words, span, width) for width in (lanes if wholes else 0, rest) if width]


def copy_of(p: Plan, image: int, name: str) -> str:
    """The text that fills an image of the copy."""
    (a, b), (sh, sw), (top, left, _, _) = p.origins[image], p.conv.strides, p.conv.padding
    row = f"((vh * rows + l) * {sh} + {a - top})"
    text = LINE if p.source == PLANES else COPY
    return text.format(row=row, right=sw, column=b - left, base=image * p.image, name=name)


def slices(p: Plan, first: code.Function, more: code.Function, places: Mapping[str, str]) -> str:
    """The text that sums a chunk's rows, slice by slice."""
    text = SLICE.format(loop="for p in range(1):", name=first.name, number="p", **places)
    if p.slices > 1:
        text += SLICE.format(loop="for p in range(slices - 1):", name=more.name, number="(p + 1)", **places)
    return text


def results(p: Plan, names: Sequence[str]) -> str:
    """The text that turns the sums of a chunk into results: for pixels whole vectors of a row, and what is left."""
    if p.direct:
        return ""
    if p.result == PLANES:
        return LINES.format(name=names[0], **PLACES)
    wholes, rest = divmod(p.tile.columns, p.product.lanes)
    text = RESULT.format(loop=f"for g in range({wholes}):", name=names[0], group="g") if wholes else ""
    if rest:
        text += RESULT.format(loop="for g in range(1):", name=names[-1], group=f"({wholes} + g)")
    return text


def fill_word(p: Plan, fill: int) -> Expr:
    if p.product.depth == 1:
        return T.Cast(p.product.data, fill)
    return T.int32(int(np.full(p.product.depth, fill, p.product.data).view(np.int32)[0]))


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Tasks in parallel; what is fused behind right after each chunk of outputs."""
    _, anchor, after = generic.around_anchor(sch)
    after, larger = broadcast_from(sch, after)
    for block in [*after[:-1], *larger[:-1]]:
        sch.compute_inline(block)
    last = after[-1]
    *tasks, chunk = sch.get_loops(anchor)
    sch.reverse_compute_at(last, chunk, preserve_unit_loops=True)
    if isa.cores > 1:
        small = int(sch.get(anchor).annotations[MACS]) < SPARSE_MACS
        count = choose("tasks", first(0 if small else len(tasks), range(len(tasks) + 1)))
        if count:
            sch.parallel(sch.fuse(*tasks[:count]))
    loop = sch.get_loops(last)[-1]
    _, lanes = sch.split(loop, [None, whole_vectors(sch, last, isa)])
    sch.vectorize(lanes)
    sch.annotate(sch.get_loops(anchor)[0], "pragma_import_llvm", sch.get(anchor).annotations["code"])
    for block in larger[-1:]:
        generic.schedule_elementwise(sch, block, isa, choose)
