"""Inner loops in LLVM's language: text that LLVM puts in place where a tensor program calls it.

As statements of a tensor program a loop with hundreds of vectors takes seconds to be read; as text it takes none. What
is written here is of any instruction set: vectors of `lanes` words, dot products as functions of their own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tvmcompress.isa import Dot, Pick

FLOAT = "float"
WORD = "i32"
# The last element that a function may touch of memory that a task has for itself: TVM gives it as much as is named.
END = "ptr %end"
# How names of functions end that want an address last which they fetch, and the bytes to that of the next row.
AHEAD = "_ahead"
LINE_BYTES = 64  # of a cache
FETCH = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n"


@dataclass
class Function:
    """Lines of a function; `new` gives names that are not taken; `needs` is text of functions that it calls."""

    name: str
    params: Sequence[str]
    lines: list[str] = field(default_factory=list)
    count: int = 0
    needs: list[str] = field(default_factory=list)  # but for what all may call

    def new(self, expression: str) -> str:
        self.count += 1
        self.lines.append(f"  %t{self.count} = {expression}")
        return f"%t{self.count}"

    def add(self, line: str) -> None:
        self.lines.append(line if line.endswith(":") else f"  {line}")

    def at(self, pointer: str, offset: int | str) -> str:
        """A pointer `offset` bytes further."""
        return pointer if offset == 0 else self.new(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def text(self) -> str:
        head = f"define linkonce_odr void @{self.name}({', '.join(self.params)}) alwaysinline {{\nentry:\n"
        return head + "\n".join([*self.lines, "  ret void", "}"]) + "\n"


@dataclass(frozen=True)
class Words:
    """Vectors of words and of sums, and how these are multiplied and added. `fused`: floats in one instruction.

    `narrow`: integers without a dot product, 16 bits of data by weights of this LLVM type; they are not words.
    """

    lanes: int
    dot: Dot | None
    fused: bool
    narrow: str = ""

    def sized(self, lanes: int) -> Words:
        """In vectors of so many words."""
        return replace(self, lanes=lanes)

    @property
    def word(self) -> str:
        return WORD if self.dot or self.narrow else FLOAT

    @property
    def sum(self) -> str:
        return WORD if self.narrow or (self.dot and self.dot.weight == "int8") else FLOAT

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.word}>"

    @property
    def sums(self) -> str:
        return f"<{self.lanes} x {self.sum}>"

    @property
    def bytes(self) -> int:
        return 4 * self.lanes

    @property
    def weights(self) -> str:
        """All weights of a vector, as they are read."""
        if self.narrow:
            return f"<{self.lanes} x {self.narrow}>"
        if not self.dot:
            return self.vector
        return f"<{self.lanes * 4} x i8>" if self.dot.taken == "int8" else f"<{self.lanes * 2} x i16>"

    @property
    def tag(self) -> str:
        kind = self.dot.function if self.dot else self.narrow or ("fused" if self.fused else "plain")
        return f"{kind}_{self.lanes}"

    def splat(self, f: Function, scalar: str, kind: str) -> str:
        one = f.new(f"insertelement <{self.lanes} x {kind}> poison, {kind} {scalar}, i32 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return f.new(f"shufflevector <{self.lanes} x {kind}> {one}, <{self.lanes} x {kind}> poison, {zeros}")

    def step(self, f: Function, sums: str, data: str, taps: str) -> str:
        """sums + data . taps; `taps` are floats, or as `weights`."""
        if self.dot:
            arguments = f"{self.sums} {sums}, {self.vector} {data}, {self.weights} {taps}"
            return f.new(f"call {self.sums} @{self.dot.function}({arguments})")
        if self.narrow:
            wide = f.new(f"sext {self.weights} {taps} to {self.sums}")
            return f.new(f"add {self.sums} {f.new(f'mul {self.sums} {data}, {wide}')}, {sums}")
        if self.fused:
            name = f"@llvm.fma.v{self.lanes}f32"
            return f.new(f"call {self.sums} {name}({self.sums} {data}, {self.sums} {taps}, {self.sums} {sums})")
        product = f.new(f"fmul {self.sums} {data}, {taps}")
        return f.new(f"fadd {self.sums} {product}, {sums}")

    def declarations(self) -> str:
        if self.dot:
            return self.dot.body
        return f"declare {self.sums} @llvm.fma.v{self.lanes}f32({self.sums}, {self.sums}, {self.sums})\n" * (
            self.fused and not self.narrow
        )


@dataclass(frozen=True)
class Picked:
    """Data of which each lane takes elements of its own: `words` are read, and repeated to fill a register."""

    pick: Pick
    words: int

    @property
    def places(self) -> str:
        """Which elements, for all of a register."""
        return f"<{32 // self.pick.bits * self.pick.lanes} x i8>"

    def data(self, f: Function, words: Words, pointer: str, places: str) -> str:
        kind = f"<{self.words} x {words.word}>"
        part = f.new(f"load {kind}, ptr {pointer}, align 1")
        order = ", ".join(f"i32 {lane % self.words}" for lane in range(words.lanes))
        whole = f.new(f"shufflevector {kind} {part}, {kind} poison, <{words.lanes} x i32> <{order}>")
        arguments = f"{words.vector} {whole}, {self.places} {places}"
        return f.new(f"call {words.vector} @{self.pick.function}({arguments})")


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
    name += "".join(f"_{value:g}" for value in (how.low, how.high) if math.isfinite(value))
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
        kept = between(f, part.sums, found[v], how.low, how.high)
        store(f, part.sums, kept, places[v], mask if how.direct and v == vectors - 1 else "")
    f.add("%r.next = add i32 %r, 1")
    f.add("%r.more = icmp ult i32 %r.next, %count")
    f.add("br i1 %r.more, label %row, label %finish")
    f.add("finish:")
    return f


def between(f: Function, vector: str, value: str, low: float, high: float) -> str:
    """Floats not above `high`, then not below `low`."""
    for limit, relation in ((high, "olt"), (low, "ogt")):
        if math.isfinite(limit):
            lanes = int(vector.strip("<>").split()[0])
            bits = struct.pack(">d", np.float32(limit)).hex()
            limits = "<" + ", ".join([f"{FLOAT} 0x{bits}"] * lanes) + ">"
            inside = f.new(f"fcmp {relation} {vector} {value}, {limits}")
            value = f.new(f"select <{lanes} x i1> {inside}, {vector} {value}, {vector} {limits}")
    return value


def first_lanes(lanes: int, count: int) -> str:
    """A mask."""
    return "<" + ", ".join(f"i1 {int(lane < count)}" for lane in range(lanes)) + ">"


def suffix(vector: str) -> str:
    """Of names of LLVM's functions for a type such as <16 x float>."""
    lanes, kind = vector.strip("<>").split(" x ")
    return f"v{lanes}{'f32' if kind == FLOAT else kind}"


def load(f: Function, vector: str, pointer: str, mask: str = "", otherwise: str = "zeroinitializer") -> str:
    """Words of a type such as <16 x float>; only those in the mask, if there is one, are read."""
    if not mask:
        return f.new(f"load {vector}, ptr {pointer}, align 4")
    lanes, name = vector.split(" ")[0], f"@llvm.masked.load.{suffix(vector)}.p0"
    f.needs.append(f"declare {vector} {name}(ptr, i32, {lanes} x i1>, {vector})\n")
    return f.new(f"call {vector} {name}(ptr {pointer}, i32 4, {lanes} x i1> {mask}, {vector} {otherwise})")


def store(f: Function, vector: str, value: str, pointer: str, mask: str = "") -> None:
    """As `load`."""
    if not mask:
        f.add(f"store {vector} {value}, ptr {pointer}, align 4")
        return
    lanes, name = vector.split(" ")[0], f"@llvm.masked.store.{suffix(vector)}.p0"
    f.needs.append(f"declare void {name}({vector}, ptr, i32, {lanes} x i1>)\n")
    f.add(f"call void {name}({vector} {value}, ptr {pointer}, i32 4, {lanes} x i1> {mask})")


def broadcast(f: Function, words: Words, pointer: str) -> str:
    """A word of memory in all lanes; of narrow integers one."""
    word = f.new(f"load {'i16' if words.narrow else words.word}, ptr {pointer}, align 1")
    return words.splat(f, f.new(f"sext i16 {word} to i32") if words.narrow else word, words.word)


def blocks(
    words: Words, pixels: Sequence[tuple[int, int]], vectors: int, right: int, down: int, index: str, element: int,
    picked: Picked | None = None,
) -> Function:  # fmt: skip
    """Sums of a tile: for each block, broadcast words of `pixels` (row, column) times `vectors` of weights.

    Pixels lie `right` and `down` bytes apart; offsets, of type `index`, count elements of `element` bytes. Arguments:
    image, values, offsets, how many blocks, results of the first pixel, of the next column and of the next row.

    `picked`: words of one vector of outputs that differ from lane to lane; their places come behind the offsets.
    """
    name = f"tvmcompress_blocks_{words.tag}_{len(pixels)}_{pixels[-1][0]}_{vectors}_{right}_{down}_{index}_{element}"
    name += f"_{picked.pick.function}_{picked.words}" if picked else ""
    arrays = [f"ptr noalias %{name}" for name in ("image", "values", "offsets", *(["places"] if picked else []))]
    f = Function(name, [*arrays, "i32 %count", "ptr %out", "ptr %column", "ptr %line", END])
    f.needs += [picked.pick.body] if picked else []
    first, column, line = (f.new(f"ptrtoint ptr %{n} to i64") for n in ("out", "column", "line"))
    apart, below = f.new(f"sub i64 {column}, {first}"), f.new(f"sub i64 {line}, {first}")
    bytes_ = words.bytes if not words.narrow else words.lanes * int(words.narrow[1:]) // 8
    f.add("%none = icmp eq i32 %count, 0")
    f.add("br i1 %none, label %done, label %start")
    f.add("start:")
    f.add("%total = zext i32 %count to i64")
    f.add("br label %block")
    f.add("block:")
    f.add("%j = phi i64 [0, %start], [%j.next, %block]")
    count = len(pixels) * vectors
    sums, head = [f"%s{i}" for i in range(count)], len(f.lines)
    offset = f.new(f"load {index}, ptr {f.new(f'getelementptr {index}, ptr %offsets, i64 %j')}, align 2")
    base = f.at("%image", f.new(f"mul i64 {f.new(f'zext {index} {offset} to i64')}, {element}"))
    values = f.at("%values", f.new(f"mul i64 %j, {vectors * bytes_}"))
    taps = [f.new(f"load {words.weights}, ptr {f.at(values, v * bytes_)}, align 4") for v in range(vectors)]
    if picked:
        at = f.new(f"getelementptr {picked.places}, ptr %places, i64 %j")
        places = f.new(f"load {picked.places}, ptr {at}, align 4")
    for i, (r, q) in enumerate(pixels):
        at = f.at(base, r * down + q * right)
        data = picked.data(f, words, at, places) if picked else broadcast(f, words, at)
        for v in range(vectors):
            sums[i * vectors + v] = words.step(f, sums[i * vectors + v], data, taps[v])
    f.lines[head:head] = [
        f"  %s{i} = phi {words.sums} [zeroinitializer, %start], [{sums[i]}, %block]" for i in range(count)
    ]
    f.add("%j.next = add i64 %j, 1")
    f.add("%j.more = icmp ult i64 %j.next, %total")
    f.add("br i1 %j.more, label %block, label %done")
    f.add("done:")
    found = [f.new(f"phi {words.sums} [zeroinitializer, %entry], [{sums[i]}, %block]") for i in range(count)]
    for i, (r, q) in enumerate(pixels):
        place = f.at("%out", f.new(f"mul i64 {below}, {r}")) if r else "%out"
        place = f.at(place, f.new(f"mul i64 {apart}, {q}")) if q else place
        for v in range(vectors):
            f.add(f"store {words.sums} {found[i * vectors + v]}, ptr {f.at(place, v * words.bytes)}, align 4")
    return f


HELPERS = (
    "declare i32 @llvm.smax.i32(i32, i32)\ndeclare i32 @llvm.smin.i32(i32, i32)\ndeclare i64 @llvm.umin.i64(i64, i64)\n"
)


def module(words: Words, functions: Sequence[Function]) -> str:
    """Text of them all."""
    needs = dict.fromkeys(text for f in functions for text in f.needs)
    return HELPERS + "".join([words.declarations(), *needs, *{f.name: f.text() for f in functions}.values()])
