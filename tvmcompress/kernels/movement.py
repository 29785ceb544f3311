"""Concatenation as one copy for each part, and the shuffling of channels as that of vectors.

TVM's own are one expression that asks of every element where it comes from; along the innermost axis that is neither a
vector nor a plain copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

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
            C[{target}] = A{number}[{axes}]
"""


def concat(shapes: Sequence[Sequence[int]], axis: int, dtype: str) -> PrimFunc:
    """Copies arrays of `shapes` one behind the other along `axis`."""
    rank = len(shapes[0])
    out = [sum(s[axis] for s in shapes) if i == axis else shapes[0][i] for i in range(rank)]
    parameters = [f'A{n}: T.Buffer({tuple(s)}, "{dtype}")' for n, s in enumerate([*shapes])]
    parameters.append(f'C: T.Buffer({tuple(out)}, "{dtype}")')
    copies, offset = [], 0
    for number, shape in enumerate(shapes):
        names = [f"v{i}" for i in range(rank)]
        target = [f"{name} + {offset}" if i == axis else name for i, name in enumerate(names)]
        copies.append(
            COPY.format(
                indices=", ".join(f"i{i}" for i in range(rank)),
                extents=", ".join(str(d) for d in shape),
                number=number,
                axes=", ".join(names),
                kinds="S" * rank,
                target=", ".join(target),
            )
        )
        offset += shape[axis]
    source = TEMPLATE.format(parameters=", ".join(parameters), copies="".join(copies))
    return tvm.script.from_source(source, {"T": T})


SHUFFLE = """
@T.prim_func(private=True, s_tir=True)
def shuffle(x: T.Buffer({shape}, "{dtype}"), y: T.Buffer({shape}, "{dtype}")):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    for i in T.{loop}({rows}):
        for j in range({columns}):
            with T.sblock("shuffle"):
                row, column = T.axis.remap("SS", [i, j])
                T.reads(x[{whole}])
                T.writes(y[{whole}])
                T.sblock_attr({{"{family}": "ready"}})
{vectors}
"""
VECTOR = """                y[{at}, T.ramp({start}, 1, {lanes})] = T.Shuffle([{parts}], {order})
"""
PART = "x[{at}, T.ramp({start}, 1, {lanes})]"
MOST_GROUPS = 8
ENOUGH = 65536  # bytes that are worth starting threads


def shuffle(shape: Sequence[int], groups: int, dtype: str, isa: Isa) -> PrimFunc:
    """y[pixel, i, g] = x[pixel, g, i]: `groups` groups of channels, at most MOST_GROUPS, become the innermost axis."""
    *outer, columns, channels = shape
    size, bytes_ = channels // groups, tvm.DataType(dtype).bits // 8
    index, left = [], math.prod(outer)
    for dim in outer:
        left //= dim
        index.append(f"row // {left} % {dim}")
    at, longest, vectors = ", ".join([*index, "column"]), max(4 * isa.lanes // bytes_, 1), ""
    for start in range(0, size, longest):
        lanes = min(longest, size - start)
        parts = [PART.format(at=at, start=group * size + start, lanes=lanes) for group in range(groups)]
        order = [group * lanes + lane for lane in range(lanes) for group in range(groups)]
        vectors += VECTOR.format(at=at, start=start * groups, lanes=lanes * groups, parts=", ".join(parts), order=order)
    several = isa.cores > 1 and math.prod(shape) * bytes_ >= ENOUGH
    source = SHUFFLE.format(
        shape=tuple(shape), dtype=dtype, rows=math.prod(outer), columns=columns, whole=f"{at}, 0:{channels}",
        loop="parallel" if several else "serial", vectors=vectors, family=FAMILY,
    )  # fmt: skip
    return tvm.script.from_source(source, {"T": T})
