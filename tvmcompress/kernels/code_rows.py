"""The inner loop of `sparse_rows` in LLVM's language: rows of weights, each times vectors of pixels."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

import numpy as np

from tvmcompress.kernels.code import END, FLOAT, LINE_BYTES, Function, Words, first_lanes, load, store

# How names of functions end that want an address last which they fetch, and the bytes to that of the next row.
AHEAD = "_ahead"
FETCH = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n"


def tail(words: Words, count: int) -> int:
    """Words of the register that holds what is left of `count` behind whole vectors; those of a whole one where
    nothing is left, or a dot product takes no less."""
    rest = count % words.lanes
    return 1 << (rest - 1).bit_length() if rest and not words.dot else words.lanes


@dataclass(frozen=True)
class Rows:
    """What `rows` sums: `span` pixels, with `step` weights at a time and offsets that are integers of type `index` and
    count `unit` words.

    With `bare` nothing is read behind the last pixel, with `direct` nothing is written there; else a few words are.
    `lines` of the cache are fetched with each row. Sums begin with a `bias` of their row and end between `low` and
    `high`.
    """

    span: int
    step: int
    index: str
    unit: int = 1
    bare: bool = False
    direct: bool = False
    lines: int = 0
    bias: bool = False
    low: float = -math.inf
    high: float = math.inf

    @property
    def tag(self) -> str:
        name = f"{self.span}_{self.step}_{self.index}" + (f"_by_{self.unit}" if self.unit > 1 else "")
        return name + "_bare" * self.bare + "_direct" * self.direct

    @property
    def limits(self) -> list[tuple[str, float, str]]:
        """What each is called, and how a value stands to it that stays; `high` goes first."""
        high = [("high", self.high, "olt")] if self.high != math.inf else []
        return high + ([("low", self.low, "ogt")] if self.low != -math.inf else [])

    def part(self, first: bool, last: bool) -> Rows:
        """Of sums over several slices: what the first of them does, or the last."""
        return replace(
            self, bias=self.bias and first, lines=self.lines if first else 0, low=self.low if last else -math.inf,
            high=self.high if last else math.inf,
        )  # fmt: skip


def rows(words: Words, how: Rows, more: bool = False) -> Function:
    """Sums of rows of outputs: for each, weights times vectors of pixels.

    `more`: sums are added to. Arguments: tile, values, offsets, counts (of weights of a row, and which row it is), how
    many rows, where the first weight is, sums of the first row and of the second; weights are counted in steps. With
    `bias` its values. With `lines` two more, for what is fetched: an address and bytes to that of the next row, see
    AHEAD.
    """
    span, step, index, lines, unit = how.span, how.step, how.index, how.lines, how.unit
    vectors, last = -(-span // words.lanes), tail(words, span)
    rest = (span - 1) % words.lanes + 1  # what the last vector is to hold
    name = f"tvmcompress_rows_{words.tag}_{how.tag}_{'more' if more else 'first'}" + "_bias" * how.bias
    name += "".join(f"_{side}_{bits(value)}" for side, value, _ in how.limits)
    name += f"_{lines}{AHEAD}" if lines else ""
    arrays = [f"ptr noalias %{name}" for name in ("tile", "values", "offsets", "counts")]
    ahead = ["ptr %ahead", "i64 %pitch"] if lines else []
    bias = ["ptr noalias %bias"] if how.bias else []
    f = Function(name, [*arrays, "i32 %count", "i32 %first", "ptr %sums", "ptr %next", END, *bias, *ahead])
    if lines:
        f.needs.append(FETCH)
    parts = [words] * (vectors - 1) + [words.sized(last) if last < words.lanes else words]
    f.needs += [one.declarations() for one in {words, parts[-1]} - {words}]
    # Of the last vector, where it holds more than there is.
    mask = first_lanes(last, rest) if rest < last else ""
    first = f.new("zext i32 %first to i64")
    apart = f.new(f"sub i64 {f.new('ptrtoint ptr %next to i64')}, {f.new('ptrtoint ptr %sums to i64')}")
    f.add("br label %row")
    f.add("row:")
    f.add("%r = phi i32 [0, %entry], [%r.next, %done]")
    f.add(f"%begin = phi i64 [{first}, %entry], [%stop, %done]")
    slot = f.at("%counts", f.new(f"mul i64 {f.new('zext i32 %r to i64')}, 4"))
    many, which = (f.new(f"zext i16 {f.new(f'load i16, ptr {f.at(slot, 2 * i)}, align 2')} to i64") for i in range(2))
    f.add(f"%stop = add i64 %begin, {many}")
    begin, end = "%begin", "%stop"
    if lines:
        far = f.at("%ahead", f.new(f"mul i64 {which}, %pitch"))
        for line in range(lines):
            f.add(f"call void @llvm.prefetch.p0(ptr {f.at(far, LINE_BYTES * line)}, i32 1, i32 3, i32 1)")
    out = f.at("%sums", f.new(f"mul i64 {which}, {apart}"))
    places = [f.at(out, v * words.bytes) for v in range(vectors)]
    start = ["zeroinitializer"] * vectors
    if more:
        start = [f.new(f"load {part.sums}, ptr {place}, align 4") for part, place in zip(parts[:-1], places)]
        start.append(load(f, parts[-1].sums, places[-1], mask if how.direct else ""))
    elif how.bias:
        one = f.new(f"load {words.sum}, ptr {f.at('%bias', f.new(f'mul i64 {which}, 4'))}, align 4")
        start = [part.splat(f, one, part.sum) for part in parts]
    f.add(f"%empty = icmp uge i64 {begin}, {end}")
    f.add("br i1 %empty, label %done, label %weight")
    f.add("weight:")
    f.add(f"%j = phi i64 [{begin}, %row], [%j.next, %weight]")
    totals = [f"%s{v}" for v in range(vectors)]
    head = len(f.lines)
    at = f.new(f"mul i64 %j, {step}")
    # One load for the offsets of a step and one for its weights: loads are what the loop waits for.
    wide = f"i{step * int(index[1:])}"
    offsets = f.new(f"load {wide}, ptr {f.new(f'getelementptr {index}, ptr %offsets, i64 {at}')}, align 2")
    several = f"<{step} x {words.word}>"
    together = f.new(f"load {several}, ptr {f.new(f'getelementptr {words.word}, ptr %values, i64 {at}')}, align 4")
    for u in range(step):
        shifted = offsets if u == 0 else f.new(f"lshr {wide} {offsets}, {u * int(index[1:])}")
        offset = f.new(f"trunc {wide} {shifted} to {index}")
        picked = ", ".join([f"i32 {u}"] * words.lanes)
        taps = f.new(f"shufflevector {several} {together}, {several} poison, <{words.lanes} x i32> <{picked}>")
        if words.dot:
            taps = f.new(f"bitcast {words.vector} {taps} to {words.weights}")
        far = f.new(f"zext {index} {offset} to i64")
        data = f.new(f"getelementptr [{unit} x {words.word}], ptr %tile, i64 {far}")
        fewer = taps
        if last < words.lanes:
            order = ", ".join(f"i32 {lane}" for lane in range(last))
            fewer = f.new(f"shufflevector {words.vector} {taps}, {words.vector} poison, <{last} x i32> <{order}>")
        for v, part in enumerate(parts):
            behind = v == vectors - 1
            read = load(f, part.vector, f.at(data, v * words.bytes), mask if behind and how.bare else "")
            totals[v] = part.step(f, totals[v], read, fewer if behind else taps)
    phis = [f"  %s{v} = phi {part.sums} [{start[v]}, %row], [{totals[v]}, %weight]" for v, part in enumerate(parts)]
    f.lines[head:head] = phis
    f.add("%j.next = add i64 %j, 1")
    f.add(f"%j.more = icmp ult i64 %j.next, {end}")
    f.add("br i1 %j.more, label %weight, label %done")
    f.add("done:")
    found = [f.new(f"phi {part.sums} [{start[v]}, %row], [{totals[v]}, %weight]") for v, part in enumerate(parts)]
    for v, part in enumerate(parts):
        kept = between(f, part, found[v], how)
        store(f, part.sums, kept, places[v], mask if how.direct and v == vectors - 1 else "")
    f.add("%r.next = add i32 %r, 1")
    f.add("%r.more = icmp ult i32 %r.next, %count")
    f.add("br i1 %r.more, label %row, label %finish")
    f.add("finish:")
    return f


def bits(value: float) -> str:
    """A float as LLVM writes it: as the double that it is."""
    return "0x" + struct.pack(">d", np.float32(value)).hex()


def between(f: Function, words: Words, value: str, how: Rows) -> str:
    """Floats within limits."""
    for _, limit, relation in how.limits:
        limits = "<" + ", ".join([f"{FLOAT} {bits(limit)}"] * words.lanes) + ">"
        inside = f.new(f"fcmp {relation} {words.sums} {value}, {limits}")
        value = f.new(f"select <{words.lanes} x i1> {inside}, {words.sums} {value}, {words.sums} {limits}")
    return value
