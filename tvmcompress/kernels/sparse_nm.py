"""Convolution and matrix product with N weights for each M inputs, channels last: lanes pick what they multiply.

    y[n, pixel, p, v] = sum over vectors j of panel p, d of x[n, pixel + offset[j] + place[j, v, d]] * values[j, v, d]

A panel is a vector of outputs. The inputs of a tap are cut into windows, as long as what an instruction picks from
(`isa.Pick`). Of each window a panel has as many vectors as its fullest output needs: one input of each output in a
vector, or as many as a dot product takes, wherever in the window they are. So where N of each M inputs are left, and
windows hold whole groups of M, N / M of the multiply-adds are left, each behind a permutation. Zeros anywhere are
stored too, if less evenly: a panel waits for its fullest output.

The tile and its loop are those of `sparse_blocks`, with a permuted register of x in place of a broadcast element.
"""

from __future__ import annotations

import numpy as np

from tvmcompress.ir.sparsity import FULL, joined
from tvmcompress.isa import Isa
from tvmcompress.kernels.code_blocks import Picked
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.generic import power_of_two
from tvmcompress.kernels.sparse import Product, Streams, as_read, coarse, narrow
from tvmcompress.kernels.sparse_blocks import Plan, source
from tvmcompress.kernels.tiles import round_up

LEAST = 4  # the smallest M
ALIKE = 1.1  # times the density that N:M allows: of two so close the smaller M is told


def picked(conv: Conv2d, isa: Isa, product: Product) -> Picked | None:
    """None where nothing picks what is multiplied here. A window is no longer than the channels of a pixel."""
    bits, words = 32 // product.depth, -(-conv.c // product.depth)
    fitting = (one for one in isa.picks if (one.bits, one.lanes) == (bits, product.lanes))
    pick = None if product.words.narrow else next(fitting, None)
    return Picked(pick, min(power_of_two(words), pick.reach // 4)) if pick else None


def windows(weight: np.ndarray, conv: Conv2d, product: Product, words: int) -> tuple[np.ndarray, np.ndarray]:
    """(O, C, KH, KW) as (panels, lanes, KH * KW, windows, elements), and the channel with which each window begins.

    The last window ends with the channels; what it shares with the one before is zero in it.
    """
    o, c, kh, kw = weight.shape
    length, channels = words * product.depth, round_up(conv.c, product.depth)
    starts = np.arange(0, channels, length)
    taps = np.zeros((round_up(o, product.lanes), kh * kw, len(starts) * length), weight.dtype)
    taps[:o, :, :c] = weight.transpose(0, 2, 3, 1).reshape(o, kh * kw, c)
    over = taps.shape[-1] - channels
    taps[..., -length:] = np.roll(taps[..., -length:], over, -1)
    starts[-1] -= over
    return taps.reshape(-1, product.lanes, kh * kw, len(starts), length), starts


def needed(alive: np.ndarray, depth: int) -> np.ndarray:
    """Vectors for each window (panels, KH * KW, windows): as many as its fullest output needs."""
    return (-(-alive.sum(-1, dtype=np.int64) // depth)).max(1)


def density(weight: np.ndarray, conv: Conv2d, product: Product, words: int) -> float:
    """The share of vectors that are needed, of all that would be full."""
    found = needed(windows(weight != 0, conv, product, words)[0], product.depth)
    full = found.shape[0] * found.shape[1] * -(-conv.c // product.depth)
    return max(round(float(found.sum()) / full, 2), 0.01)  # layers of about one density share plans, and so kernels


def suits(weight: np.ndarray, product: Product, density: float) -> bool:
    """Words of several inputs always; of floats only patterns that fill vectors: other zeros are for `sparse_rows`."""
    return product.depth > 1 or bool(np.count_nonzero(weight) >= FULL * density * weight.size)


def pattern(weight: np.ndarray, most: int) -> str:
    """The tightest N:M that holds for every output, M a power of two up to `most` and the inputs."""
    alive = (weight != 0).transpose(0, 2, 3, 1).astype(np.uint8)
    sizes = [LEAST << i for i in range(max(min(most, weight.shape[1]) // LEAST, 1).bit_length())]
    found = [(max(int(joined(alive, 3, m).max()), 1), m) for m in sizes]
    tightest = min(n / m for n, m in found)
    n, m = next((n, m) for n, m in found if n / m <= ALIKE * tightest)
    return f"{n}:{m}"


def pack(weight: np.ndarray, conv: Conv2d, p: Plan) -> Streams:
    """(O, C, KH, KW) as vectors, panel by panel, tap by tap, window by window; places count from an offset.

    Where an output has fewer weights than its panel's fullest, zeros are at place 0.
    """
    assert p.picked is not None
    depth, (kh, kw), (dh, dw) = p.product.depth, conv.kernel, conv.dilation
    taps, starts = windows(weight, conv, p.product, p.picked.words)
    alive = taps != 0
    counts = needed(alive, depth)
    firsts = (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)
    panel, lane, tap, window, place = np.nonzero(alive)
    rank = (np.cumsum(alive, -1, dtype=np.uint8) - 1)[alive]
    at = firsts[panel, tap, window] + rank // depth, lane, rank % depth
    total = int(counts.sum())
    values = np.zeros((coarse(max(total, 1)), p.width, depth), weight.dtype)
    places = np.zeros(values.shape, np.uint8)
    values[at], places[at] = taps[alive], place
    pixels = np.arange(kh)[:, None] * dh * source(conv, p).columns + np.arange(kw) * dw
    where = pixels.reshape(-1, 1) * round_up(conv.c, depth) + starts
    offsets = np.zeros(len(values), np.int64)
    offsets[:total] = np.repeat(np.broadcast_to(where, counts.shape).reshape(-1), counts.reshape(-1))
    pointers = np.concatenate([[0], np.cumsum(counts.sum((1, 2)))]).astype(np.int32)
    words, picks = (array.reshape(len(array), -1) for array in (values, places))
    return Streams(as_read(words, p.product), narrow(offsets), pointers, (picks,))
