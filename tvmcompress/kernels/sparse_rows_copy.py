"""The copy that `sparse_rows` makes of a tile: images of it, one for each remainder of a stride, column or tap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tvmcompress.kernels import code, code_pixels, code_planes
from tvmcompress.kernels.sparse_rows_plan import PLANES, Plan
from tvmcompress.kernels.tiles import round_up

COPY = """            for a, b, l in T.grid({counts}, lines):
{groups}"""
GROUP = """                {loop}
                    T.evaluate(call(
                        "{name}", T.address_of(x[vi, T.max(T.min({row}, height - 1), 0), 0, 0]),
                        T.Cast("int32", (vw * columns + {group} * lanes) * {right} + {column}),
                        T.if_then_else(T.And({row} >= 0, {row} < height), T.Cast("int32", wide), 0),
                        T.address_of(tile[vi, vh, vw, vs, {base} + l * line + {group} * lanes]), fill,
                        T.address_of(tile[vi, vh, vw, vs, length - 1]),
                    ))
"""
LINE = """            for a, b, l in T.grid({counts}, lines):
                T.evaluate(call(
                    "{name}", T.address_of(x[vi, 0, T.max(T.min({row}, height - 1), 0) * wide]),
                    T.Cast("int32", vw * columns * {right} + {column}),
                    T.if_then_else(T.And({row} >= 0, {row} < height), T.Cast("int32", wide), 0),
                    T.address_of(tile[vi, vh, vw, vs, {base} + l * line]), fill,
                    T.address_of(tile[vi, vh, vw, vs, length - 1]),
                ))
"""


def copy_functions(p: Plan) -> list[code.Function]:
    """What fills the copy: lines of all channels; of pixels whole vectors, and what is left of a line."""
    conv, words, lanes = p.conv, p.product.words, p.product.lanes
    if p.source == PLANES:
        return [code_planes.copy(words, conv.strides[1], -(-p.line // lanes), conv.h * conv.w, p.plane, conv.c)]
    pixel = round_up(conv.c, p.product.depth) // p.product.depth * 4
    return [
        code_pixels.copy(words, width, pixel, conv.strides[1], p.plane, *divmod(p.steps, lanes))
        for width in widths(p.line, lanes)
    ]


def widths(pixels: int, lanes: int) -> list[int]:
    """A vector, if there is a whole one in a line, and what is left of it."""
    return [width for width in (lanes if pixels >= lanes else 0, pixels % lanes) if width]


def groups(pixels: int, lanes: int, names: Sequence[str], text: str, **places: object) -> str:
    """The text that calls for each vector of a line the function for it."""
    wholes, rest = divmod(pixels, lanes)
    calls = [(f"for g in range({wholes}):", names[0], "g")] if wholes else []
    calls += [("for g in range(1):", names[-1], f"({wholes} + g)")] if rest else []
    return "".join(text.format(loop=loop, name=name, group=group, **places) for loop, name, group in calls)


def copy_of(p: Plan, names: Sequence[str]) -> str:
    """The text that fills the images of the copy: loops over them, for a large window has many."""
    (sh, sw), (top, left, _, _) = p.conv.strides, p.conv.padding
    rows, columns = sorted({a for a, _ in p.origins}), sorted({b for _, b in p.origins})
    text = ""
    for above, right in itertools.product(runs(rows), runs(columns)):
        places = {
            "row": f"((vh * rows + l) * {sh} + a * {above.step} + {above.first - top})", "right": sw,
            "column": f"b * {right.step} + {right.first - left}",
            "base": f"((a + {above.at}) * {len(columns)} + b + {right.at}) * {p.image}",
            "counts": f"{above.count}, {right.count}",
        }  # fmt: skip
        if p.source == PLANES:
            text += LINE.format(name=names[0], **places)
        else:
            loops = groups(p.line, p.product.lanes, names, GROUP, **places)
            text += COPY.format(groups=loops, counts=places["counts"])
    return text


@dataclass
class Run:
    """Numbers that lie `step` apart, and the place of the first among all."""

    first: int
    step: int
    count: int
    at: int


def runs(numbers: Sequence[int]) -> list[Run]:
    """Numbers in their order as few runs."""
    found: list[Run] = []
    for at, number in enumerate(numbers):
        last = found[-1] if found else None
        if last and (last.count == 1 or number == last.first + last.count * last.step):
            last.step, last.count = number - last.first if last.count == 1 else last.step, last.count + 1
        else:
            found.append(Run(number, 1, 1, at))
    return found
