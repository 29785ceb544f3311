"""The inner loop of `sparse_blocks` and `sparse_nm` in LLVM's language: blocks of weights times a tile of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvmcompress.isa import Pick
from tvmcompress.kernels.code import END, Function, Words


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


def broadcast(f: Function, words: Words, pointer: str) -> str:
    """A word of memory in all lanes; of narrow integers one."""
    word = f.new(f"load {'i16' if words.narrow else words.word}, ptr {pointer}, align 1")
    return words.splat(f, f.new(f"sext i16 {word} to i32") if words.narrow else word, words.word)


def blocks(
    words: Words, pixels: Sequence[tuple[int, int]], vectors: int, right: int, down: int, index: str, element: int,
    picked: Picked | None = None, more: int = 0,
) -> Function:  # fmt: skip
    """Sums of a tile: for each block, broadcast words of `pixels` (row, column) times `vectors` of weights.

    Pixels lie `right` and `down` bytes apart; offsets, of type `index`, count elements of `element` bytes. Arguments:
    image, values, offsets, how many blocks, results of the first pixel, of the next column and of the next row.

    `more`: ends of further memory, see `END`.
    `picked`: words of one vector of outputs that differ from lane to lane; their places come behind the offsets.
    """
    name = f"tvmcompress_blocks_{words.tag}_{len(pixels)}_{pixels[-1][0]}_{vectors}_{right}_{down}_{index}_{element}"
    name += f"_{more}" if more else ""
    name += f"_{picked.pick.function}_{picked.words}" if picked else ""
    arrays = [f"ptr noalias %{name}" for name in ("image", "values", "offsets", *(["places"] if picked else []))]
    f = Function(
        name, [*arrays, "i32 %count", "ptr %out", "ptr %column", "ptr %line", END, *(f"{END}{i}" for i in range(more))]
    )
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
