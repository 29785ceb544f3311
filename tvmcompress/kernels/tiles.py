"""Which register tile will be fast: an estimate of cycles, whose order is that of the tuner's candidates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from tvmcompress.isa import Isa

LEAST_LANES = 4
CACHE_WAY = 4096  # bytes: first-level caches are indexed by an address within a page, so a way is one page
LATENCY, LATENCY_BYTES = 8, 5  # multiply-adds in flight that keep the ports busy, and products of bytes
PROLOGUE, PROLOGUE_BYTES = 0.5, 0.75  # cycles of a step of a tile, whatever its size
REQUANTIZE = 14  # instructions for each vector of int32 sums
AHEAD = 80  # vector instructions that wait for their operands at a time
WRITE, WRITE_FAR = 4, 10  # cycles for each vector of other sums, and where results are too many for the caches
WRITTEN_AHEAD = 12  # vectors of results that are finished and written beside the next tile's products
COPY = 0.5  # cycles for a byte


@dataclass(frozen=True)
class Tile:
    """`pixels` rows by `vectors` registers of `lanes` sums."""

    pixels: int
    vectors: int
    lanes: int

    @property
    def block(self) -> int:
        """Output channels of one tile."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Product:
    """`outer` independent products of `rows` x `steps` by `steps` x `channels`.

    pitch: bytes from one row of the activations to the next. copied: bytes of activations that are copied if tiles hang
    over the last row; 0 where they are in any case, or never. bytes: the sums are int32, and are requantized. whole: a
    whole number of tiles should make `channels`, or one all of them. taken: rows that an instruction takes at a time,
    then of as many fewer channels. lanes: of a vector of sums, all of a register if 0.
    """

    rows: int
    channels: int
    steps: int = 1
    outer: int = 1
    pitch: int = 0
    copied: int = 0
    bytes: bool = False
    whole: bool = False
    taken: int = 1
    lanes: int = 0


def tiles(isa: Isa, product: Product) -> list[Tile]:
    """Tiles by their estimated cycles, the lowest first; of equal ones those of more vectors, whose bytes fill whole
    lines of the cache.

    One register holds a broadcast, and `vectors` hold the weights: `taken` times as many for an instruction that takes
    several rows. Where rows share one set of the first-level cache, because their pitch is a multiple of a way, only as
    many rows as leave some of its ways to the weights.
    """
    p, found = product, list[tuple[float, Tile]]()
    lanes, most = p.lanes or isa.lanes, p.rows
    if p.pitch and p.pitch % CACHE_WAY == 0:
        most = min(p.rows, max(isa.l1d // CACHE_WAY * 2 // 3, 1))
    for vectors in range(1, isa.registers // 2 if p.whole else 9):
        if vectors > 1 and (vectors - 1) * lanes >= p.channels:
            break
        if p.whole and not parts(p.channels, vectors * lanes):
            continue
        for pixels in range(p.taken, min(round_up(most, p.taken), isa.registers) + 1, p.taken):
            if pixels * vectors + vectors * p.taken + 1 > isa.registers:
                break
            tile = Tile(pixels, vectors, lanes)
            found.append((cycles(isa, p, tile), tile))
    if p.whole and not found:
        return tiles(isa, dataclasses.replace(p, whole=False))
    found.sort(key=lambda pair: (pair[0], -pair[1].vectors if p.bytes else 0))
    return [tile for _, tile in found] or [Tile(p.taken, 1, lanes)]


def cycles(isa: Isa, p: Product, tile: Tile) -> float:
    """An estimate for all of a product, on one core.

    A step of a tile is `pixels * vectors` multiply-adds on two ports, and as many broadcasts as pixels and loads as
    registers of weights on two others, twice as many for weights from beyond the first-level cache; at least as many as
    hide a multiply-add's latency. Putting rows together costs an instruction each. Edges waste what they pad. Fewer,
    larger tiles amortise their loops, and read weights less often; but a few that cores cannot share evenly take as
    long as if there were more.

    Requantization runs beside the next tile's products as far as the processor looks ahead: past a small tile's end.
    So do other sums' biases, activations and stores, of as many vectors as wait to be written. The constants of both
    are fitted to random tiles timed within MobileNetV2, and those of bytes within ResNet-50 too, on a Zen 4.
    """
    count = p.outer * math.ceil(p.rows / tile.pixels) * math.ceil(p.channels / tile.block)
    sums = tile.pixels * tile.vectors + (tile.pixels // p.taken if p.taken > 1 else 0)
    far = 4 * p.steps * tile.block > isa.l1d // 2
    loads = tile.pixels + tile.vectors * p.taken * (1 + far)
    latency, prologue = (LATENCY_BYTES, PROLOGUE_BYTES) if p.bytes else (LATENCY, PROLOGUE)
    step = max(sums, loads, latency if p.rows * p.channels > tile.lanes else sums)
    products = p.steps * (step + prologue)
    if p.bytes:
        rest, seen = REQUANTIZE / 2 * sums, min(AHEAD / (p.steps * (sums + loads) + REQUANTIZE * sums), 1.0)
    else:
        near = 4 * p.outer * p.rows * p.channels <= isa.cores * isa.l2
        rest, seen = (WRITE if near else WRITE_FAR) * sums, min(WRITTEN_AHEAD / sums, 1.0)
    total = count * (products + rest - seen * min(products, rest))
    if p.rows % tile.pixels:
        total += p.copied * COPY
    return total / count * isa.cores * math.ceil(count / isa.cores)


def parts(channels: int, block: int) -> bool:
    """Whether blocks hang over the channels of a group only when there is one block."""
    return block >= channels or channels % block == 0


def lanes_for(isa: Isa, channels: int) -> int:
    """Lanes of vectors for so many channels: half of a register, or a quarter, where these are enough.

    An instruction takes no longer for shorter vectors, and half as long where registers are wider than the arithmetic;
    and copies that are padded to whole vectors are as much smaller.
    """
    lanes = isa.lanes
    while lanes > LEAST_LANES and 2 * channels <= lanes:
        lanes //= 2
    return lanes


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
