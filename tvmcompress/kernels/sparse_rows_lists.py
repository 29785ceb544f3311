"""Weights as `sparse_rows` reads them."""

from __future__ import annotations

import numpy as np

from tvmcompress.kernels.sparse import Streams, as_read, by_depth, coarse, narrow
from tvmcompress.kernels.sparse_rows_plan import STEP, Plan


def pack(weight: np.ndarray, p: Plan) -> Streams:
    """(O, C, KH, KW) as words that are not zero: chunk by chunk, slice by slice, rows by how many they have.

    `pointers` holds for each such row how many STEPs of them it has, and which row it is; behind it comes, for each
    slice of a chunk, where its first STEP is.
    """
    taps = by_depth(weight, p.product.depth)
    o, kh, kw, steps, depth = taps.shape
    padded = np.zeros((p.chunks * p.chunk, kh, kw, p.slices * p.tile.slice, depth), weight.dtype)
    padded[:o, :, :, :steps] = taps
    # (chunk, slice, row, kh, kw, word): as it is walked.
    taps = padded.reshape(p.chunks, p.chunk, kh, kw, p.slices, p.tile.slice, depth).transpose(0, 4, 1, 5, 2, 3, 6)
    taps = np.ascontiguousarray(taps).reshape(p.chunks * p.slices, p.chunk, -1, depth)
    at = np.array([[p.place(i, j) for j in range(kw)] for i in range(kh)])
    where = (np.arange(p.tile.slice)[:, None, None] * p.plane + at).reshape(-1)
    there = taps.any(-1)
    counts = there.sum(-1)
    order = np.argsort(-counts, axis=1, kind="stable")
    there = np.take_along_axis(there, order[..., None], 1)
    taps = np.take_along_axis(taps, order[..., None, None], 1)
    whole = round_up_array(there.sum(-1)).reshape(-1)
    ends = np.cumsum(whole)
    group, row, column = np.nonzero(there)
    flat = group * p.chunk + row
    rank = np.arange(len(flat)) - np.concatenate([[0], np.cumsum(there.sum(-1).reshape(-1))])[flat]
    place = (ends - whole)[flat] + rank
    values = np.zeros((coarse(max(int(ends[-1]), STEP)), depth), weight.dtype)
    values[place] = taps[group, row, column]
    values = as_read(values, p.product)
    offsets = np.zeros(len(values), np.int64)
    offsets[place] = where[column]
    pointers = np.stack([whole // STEP, order.reshape(-1)], 1).astype(np.uint16)
    firsts = ((ends - whole)[:: p.chunk] // STEP).astype(np.int32)
    words = np.ascontiguousarray(values).view(np.int32 if depth > 1 else values.dtype).reshape(-1)
    return Streams(words, narrow(offsets // p.unit), pointers, (firsts,))


def round_up_array(counts: np.ndarray) -> np.ndarray:
    return -(-counts // STEP) * STEP
