"""Concatenation as one copy for each part, and the shuffling of channels as that of vectors.

Both read channels where they are, also in the middle of an array that has more of them.

TVM's own are one expression that asks of every element where it comes from; along the innermost axis that is neither a
vector nor a plain copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm.tirx import PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY

TEMPLATE = """
@T.prim_func(private=True, s_tir=True)
def concat({parameters}):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
{copies}
"""
COPY = """    for {indices} in T.grid({extents}):
        with T.sblock("copy_{number}"):
            {axes} = T.axis.remap("{kinds}", [{indices}])
            C[{target}] = A{number}[{source}]
"""


@dataclass(frozen=True)
class Copied:
    """`channels` of an array of `shape`, from `begin` on."""

    shape: Sequence[int]
    begin: int
    channels: int


def concat(parts: Sequence[Copied], axis: int, dtype: str) -> PrimFunc:
    """Copies parts of arrays one behind the other along `axis`."""
    shapes = [(*part.shape[:-1], part.channels) for part in parts]
    rank = len(shapes[0])
    out = [sum(s[axis] for s in shapes) if i == axis else shapes[0][i] for i in range(rank)]
    parameters = [f'A{n}: T.Buffer({tuple(part.shape)}, "{dtype}")' for n, part in enumerate(parts)]
    parameters.append(f'C: T.Buffer({tuple(out)}, "{dtype}")')
    copies, offset = [], 0
    for number, (part, shape) in enumerate(zip(parts, shapes)):
        names = [f"v{i}" for i in range(rank)]
        target = [f"{name} + {offset}" if i == axis else name for i, name in enumerate(names)]
        copies.append(
            COPY.format(
                indices=", ".join(f"i{i}" for i in range(rank)),
                extents=", ".join(str(d) for d in shape),
                number=number,
                axes=", ".join(names),
                source=", ".join([*names[:-1], f"{names[-1]} + {part.begin}"]),
                kinds="S" * rank,
                target=", ".join(target),
            )
        )
        offset += shape[axis]
    source = TEMPLATE.format(parameters=", ".join(parameters), copies="".join(copies))
    return script.read(source)


SHUFFLE = """
@T.prim_func(private=True, s_tir=True)
def shuffle({parameters}, y: T.Buffer({shape}, "{dtype}")):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    for i in T.{loop}({rows}):
        for j in range({columns}):
            with T.sblock("shuffle"):
                row, column = T.axis.remap("SS", [i, j])
                T.reads({reads})
                T.writes(y[{at}, 0:{channels}])
                T.sblock_attr({{"{family}": "ready"}})
{vectors}
"""
VECTOR = """                y[{at}, T.ramp({start}, 1, {lanes})] = T.Shuffle([{parts}], {order})
"""
PART = "x{array}[{at}, {where}]"
MOST_GROUPS = 8
ENOUGH = 65536  # bytes that are worth starting threads


@dataclass(frozen=True)
class Group:
    """Channels of an array, by its number, from `begin` on."""

    array: int
    begin: int


def shuffle(shapes: Sequence[Sequence[int]], groups: Sequence[Group], size: int, dtype: str, isa: Isa) -> PrimFunc:
    """y[pixel, i, g] = x[pixel, g, i]: at most MOST_GROUPS groups of `size` channels become the innermost axis.

    `shapes` of the arrays that they are in, but for the last axis alike.
    """
    *outer, columns, _ = shapes[0]
    shape, count, bytes_ = (*outer, columns, size * len(groups)), len(groups), tvm.DataType(dtype).bits // 8
    index, left = [], math.prod(outer)
    for dim in outer:
        left //= dim
        index.append(f"row // {left} % {dim}")
    at, longest, vectors = ", ".join([*index, "column"]), max(4 * isa.lanes // bytes_, 1), ""
    for start in range(0, size, longest):
        lanes = min(longest, size - start)
        parts = [PART.format(array=g.array, at=at, where=ramp(g.begin + start, lanes)) for g in groups]
        order = [group * lanes + lane for lane in range(lanes) for group in range(count)]
        vectors += VECTOR.format(at=at, start=start * count, lanes=lanes * count, parts=", ".join(parts), order=order)
    several = isa.cores > 1 and math.prod(shape) * bytes_ >= ENOUGH
    source = SHUFFLE.format(
        parameters=", ".join(f'x{n}: T.Buffer({tuple(s)}, "{dtype}")' for n, s in enumerate(shapes)),
        reads=", ".join(f"x{n}[{at}, 0:{s[-1]}]" for n, s in enumerate(shapes)),
        shape=shape, dtype=dtype, rows=math.prod(outer), columns=columns, at=at, channels=shape[-1],
        loop="parallel" if several else "serial", vectors=vectors, family=FAMILY,
    )  # fmt: skip
    return script.read(source)


def ramp(start: int, lanes: int) -> str:
    return f"T.ramp({start}, 1, {lanes})" if lanes > 1 else str(start)
