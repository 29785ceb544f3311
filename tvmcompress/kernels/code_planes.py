"""Inner loops in LLVM's language that move planes, (channels, pixels), as `code` has those that multiply.

Nothing is transposed: a line of pixels is a run of memory on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvmcompress.kernels.code import END, Function, Words, first_lanes, load, store


def every(f: Function, words: Words, vectors: Sequence[str], stride: int) -> str:
    """Each `stride`th word of vectors that lie one behind the other."""
    found = vectors[0]
    for number, vector in enumerate(vectors):
        if number and number * words.lanes > (words.lanes - 1) * stride:
            break
        picked = []
        for lane in range(words.lanes):
            where, at = divmod(lane * stride, words.lanes)
            picked.append((at if number == 0 else words.lanes + at) if where == number else lane)
        order = ", ".join(f"i32 {p}" for p in picked)
        pair = f"{words.vector} {found}, {words.vector} {vector}"
        found = f.new(f"shufflevector {pair}, <{words.lanes} x i32> <{order}>")
    return found


def copy(words: Words, stride: int, groups: int, pitch: int, plane: int, channels: int) -> Function:
    """A line of each channel to planes that lie `plane` words apart, from planes that lie `pitch` words apart.

        planes[k, j] = line[k, first + j * stride], or `fill` where that is not in 0 … width

    for j of `groups` vectors. Arguments: line of the first channel, first, width, planes, fill.
    """
    lanes = words.lanes
    name = f"tvmcompress_planes_{words.tag}_{stride}_{groups}_{pitch}_{plane}_{channels}"
    f = Function(name, ["ptr %line", "i32 %first", "i32 %width", "ptr noalias %planes", f"{words.word} %fill", END])
    fill = words.splat(f, "%fill", words.word)
    count = groups * stride  # vectors that are read
    # The last of them only as far as it is wanted.
    last = f.new(f"add i32 %first, {(groups * lanes - 1) * stride}")
    positive, short = f.new("icmp sge i32 %first, 0"), f.new(f"icmp slt i32 {last}, %width")
    whole = f.new(f"and i1 {positive}, {short}")
    if stride > 1:  # whole vectors are read, beyond the last word that is wanted
        beyond = f.new(f"add i32 {last}, {stride}")
        whole = f.new(f"and i1 {whole}, {f.new(f'icmp slt i32 {beyond}, %width')}")
    begin = f.at("%line", f.new(f"mul i64 {f.new('sext i32 %first to i64')}, 4"))
    iota = "<" + ", ".join(f"i32 {lane}" for lane in range(lanes)) + ">"
    start, width = words.splat(f, "%first", "i32"), words.splat(f, "%width", "i32")
    here = f.new(f"add <{lanes} x i32> {start}, {iota}")
    masks = []
    for v in range(count):
        at = f.new(f"add <{lanes} x i32> {here}, {constant(words, v * lanes)}")
        masks.append(f.new(f"icmp ult <{lanes} x i32> {at}, {width}"))
    f.add(f"br i1 {whole}, label %fast, label %slow")
    for label, selected in (("fast", False), ("slow", True)):
        f.add(f"{label}:")
        f.add(f"br label %{label}.k")
        f.add(f"{label}.k:")
        k = f"%{label}.i"
        f.add(f"{k} = phi i64 [0, %{label}], [{k}.next, %{label}.k]")
        source = f.at(begin, f.new(f"mul i64 {k}, {pitch * 4}"))
        target = f.at("%planes", f.new(f"mul i64 {k}, {plane * 4}"))
        for g in range(groups):
            read = []
            for v in range(g * stride, (g + 1) * stride):
                place = f.at(source, v * words.bytes)
                read.append(load(f, words.vector, place, masks[v] if selected else "", fill))
            value = every(f, words, read, stride) if stride > 1 else read[0]
            f.add(f"store {words.vector} {value}, ptr {f.at(target, g * words.bytes)}, align 4")
        f.add(f"{k}.next = add i64 {k}, 1")
        f.add(f"%{label}.more = icmp ult i64 {k}.next, {channels}")
        f.add(f"br i1 %{label}.more, label %{label}.k, label %done")
    f.add("done:")
    return f


def constant(words: Words, value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * words.lanes) + ">"


def lines(words: Words, outputs: int, span: int, rows: int, line: int, columns: int) -> Function:
    """Sums of a tile, `span` words from one output to the next and `line` from one row of pixels to the next, to
    planes: `rows` by `columns` pixels without gaps. Arguments: sums, planes of the first output and of the second."""
    f = Function(
        f"tvmcompress_lines_{words.tag}_{outputs}_{span}_{rows}_{line}_{columns}",
        ["ptr noalias %sums", "ptr %out", "ptr %next", END],
    )
    apart = f.new(f"sub i64 {f.new('ptrtoint ptr %next to i64')}, {f.new('ptrtoint ptr %out to i64')}")
    f.add("br label %output")
    f.add("output:")
    f.add("%o = phi i64 [0, %entry], [%o.next, %output]")
    source = f.at("%sums", f.new(f"mul i64 %o, {span * 4}"))
    target = f.at("%out", f.new(f"mul i64 %o, {apart}"))
    wholes, rest = divmod(columns, words.lanes)
    for r in range(rows):
        for v in range(wholes):
            one = load(f, words.sums, f.at(source, (r * line + v * words.lanes) * 4))
            store(f, words.sums, one, f.at(target, (r * columns + v * words.lanes) * 4))
        if rest:
            one = load(f, words.sums, f.at(source, (r * line + wholes * words.lanes) * 4))
            place = f.at(target, (r * columns + wholes * words.lanes) * 4)
            store(f, words.sums, one, place, first_lanes(words.lanes, rest))
    f.add("%o.next = add i64 %o, 1")
    f.add(f"%o.more = icmp ult i64 %o.next, {outputs}")
    f.add("br i1 %o.more, label %output, label %done")
    f.add("done:")
    return f
