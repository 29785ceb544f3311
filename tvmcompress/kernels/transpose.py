"""Two axes that change places, y[b, j, i] = x[b, i, j], in registers: words of 32 bits.

Element by element a transposition reads, or writes, a line of the cache for each word. Here tiles of as many rows as a
vector has lanes are read and written in vectors. Fewer rows, or columns, than that are all woven, or taken apart, at
once. The last tile begins where it still fits: what it shares with the one before is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm.tirx import PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, code_pixels
from tvmcompress.kernels.code import END, Function, Words, module

TASK = 1 << 12  # words, from which a task is worth it
ENOUGH = 1 << 15  # words that are worth starting threads

ARGUMENTS = ("ptr noalias %x", "ptr noalias %y", "ptr %next", END)

TEMPLATE = """
@T.prim_func(private=True, s_tir=True)
def transpose(
    x: T.Buffer(({count}, {rows}, {columns}), "{dtype}"), y: T.Buffer(({count}, {columns}, {rows}), "{dtype}")
):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    for i in T.{loop}({tasks}, annotations={{"pragma_import_llvm": CODE}}):
        with T.sblock("transpose"):
            task = T.axis.spatial({tasks}, i)
            T.reads(x[task // {blocks}, 0:{rows}, 0:{columns}])
            T.writes(y[task // {blocks}, 0:{columns}, 0:{rows}])
            T.sblock_attr({{"{family}": "ready"}})
{loops}
"""
CALL = """{indent}T.evaluate(T.call_extern(
{indent}    "void", "{name}", T.address_of(x[task // {blocks}, {row}, {column}]),
{indent}    T.address_of(y[task // {blocks}, {column}, {row}]), T.address_of(y[task // {blocks}, {column} + 1, {row}]),
{indent}    T.address_of(y[task // {blocks}, {columns} - 1, {rows} - 1]),
{indent}))
"""


@dataclass(frozen=True)
class Swap:
    """`count` times `rows` by `columns`."""

    count: int
    rows: int
    columns: int


def swap_of(shape: Sequence[int], axes: Sequence[int]) -> Swap | None:
    """What a permutation of axes is, once those that stay together are one; None where it is anything else."""
    left = [a for a, size in enumerate(shape) if size != 1]
    merged: list[list[int]] = []
    for axis in (left.index(a) for a in axes if shape[a] != 1):
        if merged and merged[-1][-1] == axis - 1:
            merged[-1].append(axis)
        else:
            merged.append([axis])
    order = [group[0] for group in merged]
    sizes = [math.prod(shape[left[axis]] for axis in group) for group in merged]
    if len(order) not in (2, 3) or order[-2] < order[-1] or (len(order) == 3 and order[0] > 0):
        return None
    return Swap(math.prod(sizes[:-2]), sizes[-1], sizes[-2])


def suits(swap: Swap, dtype: str, isa: Isa) -> bool:
    """Whether at least one side is whole vectors."""
    longest = max(swap.rows, swap.columns)
    return dtype in ("float32", "int32") and longest >= isa.lanes and swap.count * swap.rows * swap.columns >= TASK


def transpose(swap: Swap, dtype: str, isa: Isa) -> PrimFunc:
    """x (count, rows, columns) to y (count, columns, rows)."""
    lanes, words = isa.lanes, Words(isa.lanes, None, isa.fused)
    few = min(swap.rows, swap.columns) < lanes
    if few:
        made = woven(words, swap.rows, swap.columns) if swap.rows < lanes else parted(words, swap.columns, swap.rows)
    else:
        made = code_pixels.results(words, swap.columns, lanes)
    # Tasks are tiles along the longer side, so many that each is worth it.
    wide = swap.columns >= swap.rows
    longer, shorter = (swap.columns, swap.rows) if wide else (swap.rows, swap.columns)
    tiles = -(-longer // lanes)
    each = min(max(TASK // (lanes * shorter), 1), tiles)
    blocks = -(-tiles // each)
    far = f"T.min((task % {blocks} * {each} + t) * {lanes}, {longer - lanes})"
    near = "0" if few else f"T.min(s * {lanes}, {shorter - lanes})"
    row, column = (near, far) if wide else (far, near)
    indent = 3 * "    "
    loops = "" if few else f"{indent}for s in range({-(-shorter // lanes)}):\n"
    indent += "" if few else "    "
    loops += f"{indent}for t in range({each}):\n"
    loops += CALL.format(
        indent=indent + "    ", name=made.name, blocks=blocks, row=row, column=column, rows=swap.rows,
        columns=swap.columns,
    )  # fmt: skip
    several = isa.cores > 1 and swap.count * swap.rows * swap.columns >= ENOUGH
    text = TEMPLATE.format(
        count=swap.count, rows=swap.rows, columns=swap.columns, dtype=dtype, tasks=swap.count * blocks, blocks=blocks,
        loop="parallel" if several else "serial", loops=loops, family=FAMILY,
    )  # fmt: skip
    return script.read(text, module(words, [made]))


def woven(words: Words, rows: int, span: int) -> Function:
    """A vector of each of a few rows, `span` words apart, to as many vectors: the first words of all, then the second.

    Arguments: the first row, the results, one that is not used.
    """
    f = Function(f"tvmcompress_woven_{words.tag}_{rows}_{span}", ARGUMENTS)
    read = [f.new(f"load {words.sums}, ptr {f.at('%x', r * span * 4)}, align 4") for r in range(rows)]
    for v in range(rows):
        places = [divmod(v * words.lanes + lane, rows) for lane in range(words.lanes)]
        found = gathered(f, words, read, [(r, column) for column, r in places])
        f.add(f"store {words.sums} {found}, ptr {f.at('%y', v * words.bytes)}, align 4")
    return f


def parted(words: Words, columns: int, span: int) -> Function:
    """Vectors of rows with a few columns, to a vector of each column, `span` words apart. Arguments: as above."""
    f = Function(f"tvmcompress_parted_{words.tag}_{columns}_{span}", ARGUMENTS)
    read = [f.new(f"load {words.sums}, ptr {f.at('%x', v * words.bytes)}, align 4") for v in range(columns)]
    for c in range(columns):
        found = gathered(f, words, read, [divmod(lane * columns + c, words.lanes) for lane in range(words.lanes)])
        f.add(f"store {words.sums} {found}, ptr {f.at('%y', c * span * 4)}, align 4")
    return f


def gathered(f: Function, words: Words, vectors: Sequence[str], places: Sequence[tuple[int, int]]) -> str:
    """A vector of elements, each by its vector and its lane there."""
    found = "poison"
    for number in sorted({vector for vector, _ in places}):
        order = [words.lanes + at if vector == number else lane for lane, (vector, at) in enumerate(places)]
        indices = ", ".join(f"i32 {one}" for one in order)
        pair = f"{words.sums} {found}, {words.sums} {vectors[number]}"
        found = f.new(f"shufflevector {pair}, <{words.lanes} x i32> <{indices}>")
    return found
