"""LLVM's language: functions, vectors of words, and what moves these. LLVM puts their text in place where a tensor
program calls them.

As statements of a tensor program a loop with hundreds of vectors takes seconds to be read; as text it takes none. What
is written here is of any instruction set: vectors of `lanes` words, dot products as functions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tvmcompress.isa import Dot

FLOAT = "float"
WORD = "i32"
# The last element that a function may touch of memory that a task has for itself: TVM gives it as much as is named.
END = "ptr %end"
LINE_BYTES = 64  # of a cache


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


HELPERS = (
    "declare i32 @llvm.smax.i32(i32, i32)\ndeclare i32 @llvm.smin.i32(i32, i32)\ndeclare i64 @llvm.umin.i64(i64, i64)\n"
)


def module(words: Words, functions: Sequence[Function]) -> str:
    """Text of them all."""
    needs = dict.fromkeys(text for f in functions for text in f.needs)
    return HELPERS + "".join([words.declarations(), *needs, *{f.name: f.text() for f in functions}.values()])
