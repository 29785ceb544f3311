"""Inner loops in LLVM's language that move pixels, (pixels, channels), and transpose them: see `code`."""

from __future__ import annotations

from tvmcompress.kernels.code import END, Function, Words


def transposed(f: Function, rows: list[str], kind: str) -> list[str]:
    """As many vectors as they have lanes: log2(lanes) times, halves of pairs of vectors change places."""
    lanes, distance = len(rows), 1
    vector = f"<{lanes} x {kind}>"
    while distance < lanes:
        fresh = []
        for i in range(lanes):
            picked = [lane | distance if i & distance else lane & ~distance for lane in range(lanes)]
            order = ", ".join(f"i32 {picked[n] + (lanes if n & distance else 0)}" for n in range(lanes))
            pair = f"{vector} {rows[i & ~distance]}, {vector} {rows[i | distance]}"
            fresh.append(f.new(f"shufflevector {pair}, <{lanes} x i32> <{order}>"))
        rows, distance = fresh, 2 * distance
    return rows


def copy(words: Words, pixels: int, depth_bytes: int, stride: int, plane: int, full: int, rest: int) -> Function:
    """Columns of an image to planes: `pixels` of them, at most lanes, of `full` times lanes words and `rest` more.

        planes[k, j] = row[first + j * stride, k], or `fill` where that is not in 0 … width

    Whole vectors are written, whatever is in them behind the last pixel. A pixel takes `depth_bytes`; planes lie
    `plane` words apart. Arguments: row, first, width, planes, fill.
    """
    lanes = words.lanes
    name = f"tvmcompress_copy_{words.tag}_{pixels}_{depth_bytes}_{stride}_{plane}_{full}_{rest}"
    f = Function(name, ["ptr %row", "i32 %first", "i32 %width", "ptr noalias %planes", f"{words.word} %fill", END])
    last = f.new("sub i32 %width, 1")
    columns, inside = [], []
    for j in range(pixels):
        at = f.new(f"add i32 %first, {j * stride}")
        inside.append(f.new(f"icmp ult i32 {at}, %width"))
        positive = f.new(f"call i32 @llvm.smax.i32(i32 {at}, i32 0)")
        clamped = f.new(f"call i32 @llvm.smin.i32(i32 {positive}, i32 {last})")
        valid = f.new(f"call i32 @llvm.smax.i32(i32 {clamped}, i32 0)")
        wide = f.new(f"sext i32 {valid} to i64")
        columns.append(f.at("%row", f.new(f"mul i64 {wide}, {depth_bytes}")))
    whole = inside[0]
    for one in inside[1:]:
        whole = f.new(f"and i1 {whole}, {one}")
    fill = words.splat(f, "%fill", words.word)
    if full:
        transpose(f, words, columns, inside, whole, fill, plane, full * lanes + rest)
        return f
    for r in range(rest):
        vector = "poison"
        for j, (column, ok) in enumerate(zip(columns, inside)):
            one = f.new(f"load {words.word}, ptr {f.at(column, r * 4)}, align 4")
            one = f.new(f"select i1 {ok}, {words.word} {one}, {words.word} %fill")
            vector = f.new(f"insertelement {words.vector} {vector}, {words.word} {one}, i32 {j}")
        f.add(f"store {words.vector} {vector}, ptr {f.at('%planes', r * plane * 4)}, align 4")
    return f


def transpose(
    f: Function, words: Words, columns: list[str], inside: list[str], whole: str, fill: str, plane: int, count: int
) -> None:
    """`count` words of each column, at least as many as a vector has: of the last vector some once more."""
    lanes = words.lanes
    f.add("br label %k")
    f.add("k:")
    f.add("%i = phi i64 [0, %entry], [%i.next, %turned]")
    start = f.new(f"mul i64 %i, {lanes}")
    if count % lanes:
        start = f.new(f"call i64 @llvm.umin.i64(i64 {start}, i64 {count - lanes})")
    source, target = f.new(f"mul i64 {start}, 4"), f.at("%planes", f.new(f"mul i64 {start}, {plane * 4}"))
    places = [f.at(column, source) for column in columns]
    f.add(f"br i1 {whole}, label %fast, label %slow")
    f.add("fast:")
    fast = [f.new(f"load {words.vector}, ptr {place}, align 4") for place in places]
    f.add("br label %turned")
    f.add("slow:")
    slow = [f.new(f"load {words.vector}, ptr {place}, align 4") for place in places]
    slow = [f.new(f"select i1 {ok}, {words.vector} {row}, {words.vector} {fill}") for ok, row in zip(inside, slow)]
    f.add("br label %turned")
    f.add("turned:")
    rows = [f.new(f"phi {words.vector} [{a}, %fast], [{b}, %slow]") for a, b in zip(fast, slow)]
    rows += ["poison"] * (lanes - len(rows))
    for v, row in enumerate(transposed(f, rows, words.word)):
        f.add(f"store {words.vector} {row}, ptr {f.at(target, v * plane * 4)}, align 4")
    f.add("%i.next = add i64 %i, 1")
    f.add(f"%more = icmp ult i64 %i.next, {-(-count // lanes)}")
    f.add("br i1 %more, label %k, label %done")
    f.add("done:")


def results(words: Words, span: int, columns: int) -> Function:
    """Sums, pixels innermost, to results, channels innermost: lanes outputs of `columns` pixels, at most lanes.

    Arguments: sums of the first output, results of the first pixel and of the second.
    """
    f = Function(
        f"tvmcompress_results_{words.tag}_{span}_{columns}", ["ptr noalias %sums", "ptr %out", "ptr %next", END]
    )
    apart = f.new(f"sub i64 {f.new('ptrtoint ptr %next to i64')}, {f.new('ptrtoint ptr %out to i64')}")
    read = [f.new(f"load {words.sums}, ptr {f.at('%sums', j * span * 4)}, align 4") for j in range(words.lanes)]
    place = "%out"
    for j, row in enumerate(transposed(f, read, words.sum)[:columns]):
        place = place if j == 0 else f.at(place, apart)
        f.add(f"store {words.sums} {row}, ptr {place}, align 4")
    return f
