"""What dense layers of float32 take on a target, as estimated: for passes that weigh several small ones against a
large one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmcompress.isa import Isa
from tvmcompress.kernels.choices import untuned
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse import product
from tvmcompress.lower.sparse import EFFICIENCY, dense_cycles

START = 5000  # cycles until all cores work on a kernel, and until the last is done
MOVED = 16  # bytes of activations in a cycle and core, from caches that others share
GROUPED = 0.3  # of the peak, that depthwise kernels reach
FLOAT = "float32"


def cycles(
    isa: Isa, rows: int, before: Sequence[int], after: Sequence[int], inputs: int, outputs: int, taps: Sequence[int],
    groups: int,
) -> float:  # fmt: skip
    """`rows` products or images; `before` and `after`: pixels along each axis, none for a matrix product."""
    conv = as_conv(rows, before, after, inputs, outputs, taps, groups)
    how = product(conv, isa, FLOAT, FLOAT) if groups == 1 else None
    work = rows * math.prod(after) * outputs * (inputs // groups) * math.prod(taps)
    if how is not None:
        busy = dense_cycles(conv, isa, how, untuned)
    else:
        busy = work / (2 * isa.lanes) / (EFFICIENCY[FLOAT] if groups == 1 else GROUPED) / isa.cores
    moved = 4 * rows * (inputs * math.prod(before) + outputs * math.prod(after))
    return START * (isa.cores > 1) + busy + moved / MOVED / isa.cores


def as_conv(
    rows: int, before: Sequence[int], after: Sequence[int], inputs: int, outputs: int, taps: Sequence[int], groups: int
) -> Conv2d:
    """A layer as the kernels see it; of one axis, or of more than two, with pixels in a row."""
    if len(before) != 2:
        images, width = (rows, math.prod(after)) if before else (1, rows)
        long = math.prod(taps)
        return Conv2d(images, long, width, inputs, outputs, (long, 1), (1, 1), (0, 0, 0, 0), (1, 1), groups)
    strides = [max(round(size / left), 1) for size, left in zip(before, after)]
    missing = [max((left - 1) * s + reach - size, 0) for size, left, s, reach in zip(before, after, strides, taps)]
    (h, w), (sh, sw), (kh, kw) = before, strides, taps
    top, left = (one // 2 for one in missing)
    padding = (top, left, missing[0] - top, missing[1] - left)
    return Conv2d(rows, h, w, inputs, outputs, (kh, kw), (sh, sw), padding, (1, 1), groups)
