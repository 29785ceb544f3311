"""How `sparse_rows` divides a convolution or matrix product: which tile, what is copied for it, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from tvmcompress.isa import Isa
from tvmcompress.kernels.choices import Choices, untuned
from tvmcompress.kernels.code import LINE_BYTES
from tvmcompress.kernels.code_rows import tail
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import Product
from tvmcompress.kernels.tiles import round_up

PIXELS, PLANES = "pixels", "planes"  # layouts: (n, h, w, channels) and (n, channels, h * w)
CHUNKS = (64, 32, 16)  # outputs, whose sums wait in the cache to be transposed
REMAINDERS, COLUMNS, TAPS, NONE = "remainders", "columns", "taps", "none"
LATENCY = 4  # cycles of a multiply-add
FAR, BEYOND = 0.75, 1.5  # cycles that a load takes longer from the second cache, and from beyond
FILLED = 0.4  # for a line of a slice that comes to the first cache for a chunk
ACROSS = 0.5  # and one from two lines
SHORTER = 0.7  # what a vector of half a line or less takes of a whole one, about: 0.5 where nothing but loads counts
MISSED = 10  # of a branch that was not foreseen
COPIED = 0.3  # for a word of the copy
TOUCHED = 0.12  # for a word that is read as it lies, the first time
REMOTE = 0.45  # and for one that comes from the cache of another core
SPREAD = 0.3  # for a word of sums that wait; with what dense kernels take too for their results it is three times that
AGAIN = 0.3  # for a word of results that what is fused behind has to read and write
DISPLACED = 0.25  # and for one that drives the slice from the first cache, or has left it by then
RAGGED = 1.0  # for a word of results, more, where some tiles have fewer pixels and vectors do not end with them
SHARED = 350  # of a row of sums that ends in the middle of a line of the cache, which another task writes, too
TURNED = 0.1  # for a word that is transposed, more
STRAGGLING = 0.1  # of a task, by which threads end one after the other
WAYS = 8  # lines of a set
LEAST = 2  # outputs of planes: of a single one TVM uses what it has taken out of expressions before it is defined
STEP = 2  # weights of a row come in multiples of it: a loop of so many has half the branches


@dataclass(frozen=True)
class Tile:
    """`rows` by `columns` pixels of the result; `slice` words of channels and `chunk` outputs at a time; outputs in
    `parts`, which are tasks each; what there is an image for, or NONE where planes are read as they lie: see
    `sparse_rows`."""

    rows: int
    columns: int
    slice: int
    chunk: int
    parts: int
    images: str = REMAINDERS


@dataclass(frozen=True)
class Plan:
    """Where everything lies, in words of 32 bits."""

    product: Product
    tile: Tile
    conv: Conv2d
    source: str = PIXELS
    result: str = PIXELS

    @property
    def steps(self) -> int:
        """Words of channels."""
        return -(-self.conv.c // self.product.depth)

    def origin(self, i: int, j: int) -> tuple[int, int]:
        """Where the image begins that a tap reads, counted in x from the first tap of the first pixel."""
        (sh, sw), row, column = self.conv.strides, i * self.conv.dilation[0], j * self.conv.dilation[1]
        if self.tile.images == TAPS:
            return row, column
        return row % sh, column if self.tile.images == COLUMNS else column % sw

    @cached_property
    def origins(self) -> list[tuple[int, int]]:
        """Of all images."""
        kh, kw = self.conv.kernel
        return sorted({self.origin(i, j) for i in range(kh) for j in range(kw)})

    def place(self, i: int, j: int) -> int:
        """Words from the begin of a channel to what a tap reads for the first pixel."""
        (sh, sw), (dh, dw), (a, b) = self.conv.strides, self.conv.dilation, self.origin(i, j)
        return self.origins.index((a, b)) * self.image + (i * dh - a) // sh * self.line + (j * dw - b) // sw

    @property
    def copied(self) -> bool:
        return self.tile.images != NONE

    @property
    def unit(self) -> int:
        """Words that offsets are multiples of."""
        return 1 if self.copied else math.gcd(self.plane, self.product.lanes)

    @property
    def line(self) -> int:
        """Words of a row of the copy."""
        if self.tile.images == TAPS or (self.tile.images == COLUMNS and self.tile.rows == 1):
            return self.tile.columns
        if self.tile.images == COLUMNS:
            return round_up(self.tile.columns, self.product.lanes)
        return self.tile.columns + (self.conv.kernel[1] - 1) * self.conv.dilation[1] // self.conv.strides[1]

    @property
    def lines(self) -> int:
        if self.tile.images == TAPS:
            return self.tile.rows
        return self.tile.rows + (self.conv.kernel[0] - 1) * self.conv.dilation[0] // self.conv.strides[0]

    @cached_property
    def image(self) -> int:
        """Words from one image of a channel to the next: whole vectors; what is copied in such fits."""
        lanes = self.product.lanes
        return round_up((self.lines - 1) * self.line + round_up(self.line, lanes), lanes)

    @cached_property
    def plane(self) -> int:
        """Words from one channel to the next: an odd number of vectors, so that channels do not share one set of the
        cache. Without a copy as they are."""
        if not self.copied:
            return self.conv.h * self.conv.w
        vectors = self.image * len(self.origins) // self.product.lanes
        return (vectors + 1 - vectors % 2) * self.product.lanes

    @property
    def span(self) -> int:
        """Words of the sums of one output."""
        return (self.tile.rows - 1) * self.line + self.tile.columns

    @cached_property
    def vectors(self) -> int:
        """Of the sums of one output."""
        return -(-self.span // self.product.lanes)

    @property
    def length(self) -> int:
        """Words of a copy, and what the last sums read beyond it."""
        return self.steps * self.plane + (self.vectors + 1) * self.product.lanes

    @property
    def slices(self) -> int:
        return -(-self.steps // self.tile.slice)

    @property
    def chunk(self) -> int:
        return self.tile.chunk

    @property
    def pixels(self) -> int:
        """Of a tile, as results lie in planes."""
        return self.tile.rows * self.tile.columns

    @property
    def direct(self) -> bool:
        """Whether sums are results: planes, where nothing lies between rows."""
        return self.result == PLANES and self.span == self.pixels

    @property
    def whole(self) -> bool:
        """Whether tiles and chunks are all of planes, so that these are written once."""
        (oh, ow), tile = self.conv.out, self.tile
        divided = oh % tile.rows == ow % tile.columns == 0 and self.chunks * self.chunk == self.conv.oc
        return self.result == PLANES and divided

    @property
    def chunks(self) -> int:
        """In all; each part has as many."""
        return round_up(-(-self.conv.oc // self.chunk), self.tile.parts)


def name_of(conv: Conv2d, product: Product, source: str = PIXELS, result: str = PIXELS) -> str:
    """What the kernel is known by."""
    layouts = f" {source} {result}" if PLANES in (source, result) else ""
    return f"sparse {key(conv, product.data)}{layouts}"


def flat(conv: Conv2d) -> Conv2d:
    """The same sums over one row of all pixels, where none depends on where rows end."""
    (kh, kw), same = conv.kernel, conv.strides == (1, 1) and not any(conv.padding)
    return replace(conv, h=1, w=conv.h * conv.w) if kh == kw == 1 and same else conv


def plan(
    conv: Conv2d, isa: Isa, product: Product, density: float, choices: Choices = untuned,
    source: str = PIXELS, result: str = PIXELS,
) -> Plan | None:  # fmt: skip
    """None where windows are so large that no tile is in reach, or rows too long for a layout."""
    if result == PLANES and conv.oc < LEAST:
        return None
    if not (found := ranked(conv, isa, product, density, source, result)):
        return None
    return Plan(product, choices(name_of(conv, product, source, result))("tile", found), conv, source, result)


def estimate(p: Plan, isa: Isa, density: float) -> float:
    """Cycles of the tile that is thought the fastest, whichever a tuner chose: what it measures is not estimated."""
    first = ranked(p.conv, isa, p.product, density, p.source, p.result)[0]
    return cost(replace(p, tile=first), isa, density)


@lru_cache(1024)
def ranked(conv: Conv2d, isa: Isa, product: Product, density: float, source: str, result: str) -> tuple[Tile, ...]:
    """The tiles, the fastest first; layers of one shape and builds of one model ask for the same."""
    plans = [Plan(product, tile, conv, source, result) for tile in tiles(conv, isa, product)]
    # A tile of planes is a run of memory.
    found = [
        (cost(p, isa, density), number, p.tile)
        for number, p in enumerate(plans)
        if (result == PIXELS or p.tile.columns == conv.out[1] or (conv.out[0] == 1 and p.direct))
        and (p.copied or source == PLANES)
    ]
    return tuple(tile for _, _, tile in sorted(found))


def tiles(conv: Conv2d, isa: Isa, product: Product) -> list[Tile]:
    """Whole rows where a row is short, else parts of one, whose sums registers hold."""
    (oh, ow), most = conv.out, (isa.registers - 3) * product.lanes
    steps = -(-conv.c // product.depth)
    shapes = {(rows, ow) for rows in range(1, oh + 1) if rows * ow <= most and round_up(oh, rows) - oh < rows}
    for count in range(1, isa.registers - 2):
        shapes |= {(1, min(count * product.lanes, ow)), (1, -(-ow // -(-ow // (count * product.lanes))))}
    slices = sorted({steps, *(s for s in (16, 32, 64, 128, 256) if s < steps)})
    chunks = sorted({min(chunk, round_up(conv.oc, isa.lanes)) for chunk in CHUNKS})
    kinds = (REMAINDERS, COLUMNS, TAPS) if conv.kernel[1] > 1 else (REMAINDERS,)
    made = [
        Tile(rows, columns, part, chunk, parts, images)
        for rows, columns in sorted(shapes)
        for images in (*kinds, *([NONE] if as_they_lie(conv, isa, product, rows, columns) else []))
        for part in slices
        for chunk in chunks
        for parts in (1, 2, 4, 8)
        # Outputs are divided only as far as pixels alone make too few tasks.
        if parts == 1 or (parts * chunk <= conv.oc and parts * conv.n * (oh // rows) * (ow // columns) < 8 * isa.cores)
    ]
    return [t for t in made if Plan(product, t, conv).vectors <= isa.registers - 3 and in_reach(Plan(product, t, conv))]


def as_they_lie(conv: Conv2d, isa: Isa, product: Product, rows: int, columns: int) -> bool:
    """Whether a tile of planes can be read without a copy: it is a run of memory in each, and its last words are read
    as fast as a vector."""
    rest = columns % product.lanes
    plain = conv.kernel == conv.strides == (1, 1) and not any(conv.padding) and product.depth == 1
    return plain and rows == conv.h == 1 and conv.w % columns == 0 and (isa.masked or rest & (rest - 1) == 0)


def in_reach(p: Plan) -> bool:
    """Whether offsets within a slice take two bytes."""
    return p.tile.slice * p.plane // p.unit < 1 << 16


def sets(p: Plan, isa: Isa) -> float:
    """The share of the first cache's sets in which a tile lies: planes as they lie may be a power of two apart, which
    the copy avoids."""
    if p.copied:
        return 1.0
    line = LINE_BYTES // 4
    apart = math.gcd(-(-p.plane // line), isa.l1d // LINE_BYTES // WAYS)
    return min(-(-p.tile.columns // line) / apart, 1.0)


def cost(p: Plan, isa: Isa, density: float) -> float:
    """Estimated cycles of the slowest thread.

    A weight takes `vectors` loads, each with a multiply-add, and one more, at least the time of a multiply-add; what a
    load takes depends on the cache in which the slice and the sums that wait lie, and on whether it reaches into the
    next line of it. A row of a slice moves its sums; where it has another number of weights than the row before, a
    branch is not foreseen. With several slices each comes to the first cache again for every chunk. Numbers are fitted
    to times of 200 kernels of ResNet-50's layers on a Zen 4; those for planes to 2300 more, also of MobileNetV2's,
    which they meet within 13% (the median). SHARED, REMOTE, SHORTER, TOUCHED and AGAIN are not
    fitted: they are set to what a dozen layers of 14 x 14 pixels took, alone and within MobileNetV2.
    """
    conv, tile, lanes = p.conv, p.tile, p.product.lanes
    oh, ow = conv.out
    taps = conv.kernel[0] * conv.kernel[1]
    tasks = conv.n * math.ceil(oh / tile.rows) * math.ceil(ow / tile.columns) * tile.parts
    rows = p.chunks * p.chunk / tile.parts
    weights = p.steps * taps * density / p.slices
    channel = p.plane if p.copied else tile.columns
    held = (min(tile.slice, p.steps) * channel / sets(p, isa) + p.chunk * p.vectors * lanes / 2) * 4
    load = 1 + FAR * max(1 - 2 * isa.l1d / held, 0)
    load += BEYOND if p.steps * channel * 4 > isa.l2 * 3 // 4 else 0
    kh, kw = conv.kernel
    if p.copied:
        load += ACROSS * sum(p.place(i, j) % lanes > 0 for i in range(kh) for j in range(kw)) / taps
    else:
        load += ACROSS * (1 - math.gcd(p.plane, tile.columns, lanes) / lanes)
    lengths = min(p.chunk, 1 + 5 * math.sqrt(weights * (1 - density)) / STEP)  # that differ in a chunk, about
    vectors = p.vectors - (1 - SHORTER) * (tail(p.product.words, p.span) * 2 <= lanes and lanes * 4 == LINE_BYTES)
    row = (weights + STEP / 4) * max(vectors * load + 0.75, LATENCY) + MISSED * lengths / p.chunk + 2
    row += p.vectors * (1 if p.slices == 1 else 2)
    filled = 0 if p.slices == 1 else FILLED * p.slices * min(tile.slice, p.steps) * channel * 4 / LINE_BYTES
    copied = p.steps * p.lines * len(p.origins) * round_up(p.line, lanes)
    written = rows * tile.rows * round_up(tile.columns, lanes)
    moved = (COPIED + (TURNED if p.source == PIXELS else 0) if p.copied else TOUCHED) * copied
    # Dense layers before are divided by pixels: with fewer tiles than cores a task needs what other cores have made.
    moved += REMOTE * max(1 - tasks / tile.parts / isa.cores, 0) * copied * (p.source == PIXELS)
    moved += (0 if p.direct else SPREAD + (TURNED if p.result == PIXELS else 0)) * written
    beside = tasks // tile.parts // conv.n  # tiles, of which neighbours are summed at once where there are as few
    if p.result == PLANES and 1 < beside <= isa.cores and math.gcd(oh * ow, p.pixels) * 4 % LINE_BYTES:
        moved += SHARED * rows
    results = p.chunk * tile.rows * tile.columns * 4
    away = max(1 - isa.l1d / (results + min(tile.slice, p.steps) * channel * 4), 0)
    moved += (AGAIN * (not p.whole) + DISPLACED * away) * (p.result == PLANES) * written
    over = (oh % tile.rows or ow % tile.columns) and math.gcd(oh * ow, p.pixels) % lanes
    moved += (RAGGED if p.result == PLANES and over else 0) * written
    each = rows * row * p.slices + filled * p.chunks / tile.parts + moved
    return each * (math.ceil(tasks / isa.cores) + STRAGGLING)
