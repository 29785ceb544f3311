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
they are, and sums go to where they belong. Where tiles are whole vectors of planes, which begin where lines of the
cache do, they need no copy either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.script import tirx as T
from tvm.tirx import Expr, PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import CODE, MACS, code, code_pixels, code_planes, code_rows, generic
from tvmcompress.kernels.choices import Choose, first
from tvmcompress.kernels.sparse import (
    BITS,
    SPARSE_MACS,
    UNLIMITED,
    Limits,
    Streams,
    attributes,
    called,
    result_axes,
    wide,
)
from tvmcompress.kernels.sparse_rows_copy import copy_functions, copy_of, groups, widths
from tvmcompress.kernels.sparse_rows_plan import PLANES, STEP, Plan, name_of
from tvmcompress.kernels.tile import broadcast_from, whole_vectors
from tvmcompress.kernels.tiles import round_up

NAME = "sparse_rows"

PROGRAM = """
@T.prim_func(private=True, s_tir=True)
def sparse_rows(
    x: T.Buffer(image, data),
    values: T.Buffer((count,), word),
    offsets: T.Buffer((count,), index),
    pointers: T.Buffer((slots, 2), "uint16"),
    firsts: T.Buffer((chunks * slices,), "int32"),
{bias}    {result}: T.Buffer(shape, sums),
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 4}})
{tile}{scratch}    for i, h, w, s in T.grid(n, heights, widths, parts):
{copies}        for c in range(chunks // parts):
            with T.sblock("sparse_rows"):
                vi, vh, vw = T.axis.remap("SSS", [i, h, w])
                vc = T.axis.spatial(chunks, s * (chunks // parts) + c)
                T.reads(
                    {read}, values[0:count], offsets[0:count],
                    pointers[vc * (slices * chunk) : vc * (slices * chunk) + slices * chunk, 0:2],
                    firsts[vc * slices : vc * slices + slices],{biased}
                )
                T.writes({written})
                T.sblock_attr(facts)
{waiting}{slices}{results}{crop}"""
SCRATCH = """    y = T.sblock_alloc_buffer({size}, sums)
"""
CROP = """    for {indices} in T.grid({extents}):
        with T.sblock("crop"):
            {axes} = T.axis.remap("{kinds}", [{indices}])
            out[{axes}] = y[{place}]
"""
BIAS = """    bias: T.Buffer((chunks * chunk,), sums),
"""
BIASED = """
                    bias[vc * chunk : vc * chunk + chunk],"""
TILE = """    tile = T.sblock_alloc_buffer((n, heights, widths, parts, length), kind)
"""
COPIES = """        with T.sblock("copy"):
            vi, vh, vw, vs = T.axis.remap("SSSS", [i, h, w, s])
            T.reads({image})
            T.writes(tile[vi, vh, vw, vs, 0:length])
{copies}"""
WAITING = """                waiting = T.alloc_buffer((chunk * span,), sums)
"""
SLICE = """                {loop}
                    T.evaluate(call(
                        "{name}", T.address_of({data}),
                        T.address_of(values[0]), T.address_of(offsets[0]),
                        T.address_of(pointers[(vc * slices + {number}) * chunk, 0]), T.Cast("int32", chunk),
                        firsts[vc * slices + {number}],
                        T.address_of({sums}), T.address_of({next}), T.address_of({end}){more},
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
    "size": "(n, heights * rows, widths * columns, chunks * chunk)",
    "written": "y[vi, vh * rows : vh * rows + rows, vw * columns : vw * columns + columns, "
    "vc * chunk : vc * chunk + chunk]",
}
PLANE_TEXT = {
    "size": "(n, chunks * chunk, heights * widths * pixels)",
    "written": "y[vi, vc * chunk : vc * chunk + chunk, "
    "(vh * widths + vw) * pixels : (vh * widths + vw) * pixels + pixels]",
}


def program(
    p: Plan, streams: Streams, shape: Sequence[int], fill: int = 0, bias: bool = False, limits: Limits = UNLIMITED
) -> PrimFunc:
    """See `written`."""
    values = streams.values
    return written(p, len(values), str(values.dtype), str(streams.offsets.dtype), tuple(shape), fill, bias, limits)


@lru_cache(256)
def written(
    p: Plan, count: int, word: str, index: str, shape: tuple[int, ...], fill: int, bias: bool, limits: Limits
) -> PrimFunc:
    """x (n, h, w, c) or planes of it, then `Streams.arrays`, and with `bias` one for each output; `shape` as in
    `sparse_blocks`, or that of planes; `fill` is what padding holds."""
    conv, product, lanes, words = p.conv, p.product, p.product.lanes, p.product.words
    oh, ow = conv.out
    kind, span = "int32" if product.depth > 1 else product.data, p.vectors * lanes
    channels = round_up(conv.c, product.depth)
    planes_in, planes_out = p.source == PLANES, p.result == PLANES
    # Of results in planes a row is a run of memory.
    lines = -(-p.pixels * 4 // code.LINE_BYTES) if planes_out else 0
    how = code_rows.Rows(
        p.span, STEP, BITS[index], p.unit, not p.copied, p.direct, lines, bias, low=limits.low, high=limits.high
    )  # fmt: skip
    sums = functions_of(p, words, how)
    copied, stored = copy_functions(p) if p.copied else [], result_functions(p, span)
    functions = [*copied, *(one for _, one in sums), *stored]
    facts = attributes(NAME, name_of(conv, product, p.source, p.result), conv, product, functions)
    names = {
        "T": T, "n": conv.n, "height": conv.h, "wide": conv.w, "channels": channels, "area": conv.h * conv.w,
        "image": [conv.n, channels, conv.h * conv.w] if planes_in else [conv.n, conv.h, conv.w, channels],
        "data": product.data, "count": count, "word": word, "kind": kind,
        "index": index, "slots": p.chunks * p.chunk * p.slices, "shape": [*shape], "sums": product.sums,
        "heights": -(-oh // p.tile.rows), "widths": -(-ow // p.tile.columns), "rows": p.tile.rows,
        "columns": p.tile.columns, "parts": p.tile.parts, "length": p.length if p.copied else 0,
        "chunks": p.chunks, "chunk": p.chunk, "slices": p.slices,
        "slice": p.tile.slice * (p.plane if p.copied else 1), "span": span, "lanes": lanes, "lines": p.lines,
        "line": p.line, "call": called, "fill": fill_word(p, fill), "facts": facts,
        "pixels": p.pixels,
    }  # fmt: skip
    axes = result_axes(shape, (conv.n, oh, ow, conv.oc))
    image = "x[vi, 0:channels, 0:area]" if planes_in else "x[vi, 0:height, 0:wide, 0:channels]"
    copying = [one.name for one in copied]
    copies = copy_of(p, copying) if copied else ""
    layout = PLANE_TEXT if planes_out else PIXEL_TEXT
    place = axes["axes"] if planes_out else "{image}, {across}, {last}".format(**axes)
    text = PROGRAM.format(
        tile=TILE if p.copied else "",
        copies=COPIES.format(image=image, copies=copies) if p.copied else "",
        read="tile[vi, vh, vw, vc // (chunks // parts), 0:length]" if p.copied else image,
        waiting="" if p.direct else WAITING,
        slices=slices(p, sums, PLACES if p.direct else HELD, bias),
        results=results(p, [one.name for one in stored]),
        bias=BIAS if bias else "",
        biased=BIASED if bias else "",
        result="y" if p.whole else "out",
        scratch="" if p.whole else SCRATCH.format(**layout),
        crop="" if p.whole else CROP.format(place=place, **axes),
        written=layout["written"],
    )
    return script.program(text, wide(names))


def result_functions(p: Plan, span: int) -> list[code.Function]:
    """What turns sums into results."""
    words, lanes = p.product.words, p.product.lanes
    if p.direct:
        return []
    if p.result == PLANES:
        return [code_planes.lines(words, p.chunk, span, p.tile.rows, p.line, p.tile.columns)]
    return [code_pixels.results(words, span, width) for width in widths(p.tile.columns, lanes)]


def functions_of(p: Plan, words: code.Words, how: code_rows.Rows) -> list[tuple[int, code.Function]]:
    """What sums the first slice, those between, and the last; and how many slices that is each time."""
    if p.slices == 1:
        return [(1, code_rows.rows(words, how))]
    between = [(p.slices - 2, code_rows.rows(words, how.part(False, False), True))] if p.slices > 2 else []
    last = code_rows.rows(words, how.part(False, True), True)
    return [(1, code_rows.rows(words, how.part(True, False))), *between, (1, last)]


def slices(p: Plan, sums: Sequence[tuple[int, code.Function]], places: Mapping[str, str], bias: bool) -> str:
    """The text that sums a chunk's rows, slice by slice."""
    data = "tile[vi, vh, vw, vc // (chunks // parts), {} * slice]" if p.copied else "x[vi, {} * slice, vw * columns]"
    text, done = "", 0
    for count, function in sums:
        more = ", T.address_of(bias[vc * chunk])" * (bias and done == 0)
        if function.name.endswith(code_rows.AHEAD):
            # Of what is whole the results; else `lower.ahead` knows.
            place, pitch = (PLACES["sums"], 4 * math.prod(p.conv.out)) if p.whole else (places["sums"], 0)
            more += f", T.address_of({place}), T.int64({pitch})"
        number = f"({done} + p)"
        text += SLICE.format(
            loop=f"for p in range({count}):", name=function.name, number=number, more=more, data=data.format(number),
            **places,
        )  # fmt: skip
        done += count
    return text


def results(p: Plan, names: Sequence[str]) -> str:
    """The text that turns the sums of a chunk into results: for pixels whole vectors of a row, and what is left."""
    if p.direct:
        return ""
    if p.result == PLANES:
        return LINES.format(name=names[0], **PLACES)
    return groups(p.tile.columns, p.product.lanes, names, RESULT)


def fill_word(p: Plan, fill: int) -> Expr:
    if p.product.depth == 1:
        return T.Cast(p.product.data, fill)
    return T.int32(int(np.full(p.product.depth, fill, p.product.data).view(np.int32)[0]))


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Tasks in parallel; what is fused behind right after each chunk of outputs."""
    _, anchor, after = generic.around_anchor(sch)
    after, larger = broadcast_from(sch, after) if after else ([], [])
    for block in [*after[:-1], *larger[:-1]]:
        sch.compute_inline(block)
    *tasks, chunk = sch.get_loops(anchor)
    for last in after[-1:]:
        sch.reverse_compute_at(last, chunk, preserve_unit_loops=True)
    if isa.cores > 1:
        small = int(sch.get(anchor).annotations[MACS]) < SPARSE_MACS
        count = choose("tasks", first(0 if small else len(tasks), range(len(tasks) + 1)))
        if count:
            sch.parallel(sch.fuse(*tasks[:count]))
    for last in after[-1:]:
        in_vectors(sch, last, isa)
    sch.annotate(sch.get_loops(anchor)[0], "pragma_import_llvm", sch.get(anchor).annotations[CODE])
    for block in larger[-1:]:
        generic.schedule_elementwise(sch, block, isa, choose)


def in_vectors(sch: Schedule, block: SBlockRV, isa: Isa) -> None:
    """The innermost loop of a block; what is left of it behind whole vectors is one that is shorter. A vector with a
    condition on its lanes would become one element after the other."""
    lanes, loop = whole_vectors(sch, block, isa), sch.get_loops(block)[-1]
    count, rest = divmod(generic.extent(sch, [loop]), lanes)
    if count and rest:
        loop, tail = sch.loop_partition(loop, [count * lanes, None], preserve_unit_iters=False)
        sch.vectorize(tail)
    _, vector = sch.split(loop, [None, lanes])
    sch.vectorize(vector)
