"""Depthwise convolution, channels last: vectors along the channels, a few pixels of a row at a time.

    y[n, h, w, c*m + j] = sum over kh, kw of x[n, h*sh + kh*dh - top, w*sw + kw*dw - left, c] * weight[kh, kw, c*m + j]

In integers the products are formed in int16, where u8 x s8 always fits, and summed in int32.
"""

from __future__ import annotations

import numpy as np
from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, MACS, generic
from tvmcompress.kernels.choices import KEY, Choose, first
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.tile import round_up


def pack(weight: np.ndarray, isa: Isa) -> np.ndarray:
    """(O, 1, KH, KW) to (KH, KW, O), O padded with zeros to whole vectors."""
    oc, _, kh, kw = weight.shape
    packed = np.zeros((kh, kw, round_up(oc, isa.lanes)), weight.dtype)
    packed[..., :oc] = weight[:, 0].transpose(1, 2, 0)
    return packed


def strips(isa: Isa, width: int, channels: int) -> list[tuple[int, int]]:
    """Pixels of a row by vectors of channels that registers hold: divisors, so that nothing hangs over."""
    most = isa.registers // 3
    pixels = [p for p in range(min(8, most), 0, -1) if width % p == 0]
    vectors = [v for v in (2, 1) if channels % (v * isa.lanes) == 0]
    found = [(p, v) for p in pixels for v in vectors if v == 1 or p * v + 2 <= isa.registers]
    return sorted(found, key=lambda strip: -strip[0])


def compute(x: te.Tensor, weight: te.Tensor, conv: Conv2d, isa: Isa, fill: int = 0) -> te.Tensor:
    """x (n, h, w, c), packed weight, result (n, oh, ow, oc) in float32 or int32; `fill` is what padding holds."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
    top, left, _, _ = conv.padding
    oh, ow = conv.out
    multiplier = conv.oc // conv.c
    source, channels = x, round_up(conv.oc, isa.lanes)
    # Narrow floats are made wide once for all taps, in the copy that padding costs anyway.
    read = "float32" if str(x.dtype) in ("bfloat16", "float16") else str(x.dtype)
    if any(conv.padding) or channels != conv.oc:
        cp = round_up(conv.c, isa.lanes) if multiplier == 1 else -(-channels // multiplier)
        rows, cols = (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1

        def padded(n, h, w, c):
            inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
            if cp != conv.c:
                inside = tirx.all(inside, c < conv.c)
            return tirx.if_then_else(inside, x[n, h - top, w - left, c].astype(read), tirx.const(fill, read))

        source = te.compute((conv.n, rows, cols, cp), padded, name="pad")
    ry, rx = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    wide = str(weight.dtype) not in ("int8", "uint8")

    def term(n, h, w, c):
        data = source[n, h * sh + ry * dh, w * sw + rx * dw, c // multiplier if multiplier > 1 else c]
        taps = weight[ry, rx, c]
        if not str(x.dtype).startswith(("int", "uint")):
            return data.astype("float32") * taps.astype("float32")
        if wide:
            return data.astype("int32") * taps.astype("int32")
        return (data.astype("int16") * taps.astype("int16")).astype("int32")

    y = te.compute(
        (conv.n, oh, ow, channels),
        lambda n, h, w, c: te.sum(term(n, h, w, c), axis=[ry, rx]),
        name="depthwise",
        attrs={FAMILY: "depthwise", KEY: key(conv, str(x.dtype)), MACS: conv.macs},
    )
    return te.compute((conv.n, oh, ow, conv.oc), lambda *i: y[i], name="crop")


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Rows in parallel; a strip of pixels by one or two vectors of channels in registers."""
    before, anchor, after = generic.around_anchor(sch)
    for block in after[:-1]:
        sch.compute_inline(block)
    last = after[-1]
    work = generic.extent(sch, sch.get_loops(anchor))
    n, h, w, c, kh, kw = sch.get_loops(anchor)
    lanes = isa.lanes
    pixels, vectors = choose("strip", strips(isa, int(sch.get(w).extent), int(sch.get(c).extent)))
    w_outer, w_inner = sch.split(w, [None, pixels])
    c_outer, c_vector, c_inner = sch.split(c, [None, vectors, lanes])
    sch.reorder(n, h, w_outer, c_outer, kh, kw, w_inner, c_vector, c_inner)
    sch.reverse_compute_at(last, c_outer, preserve_unit_loops=True)
    if isa.cores > 1:
        count = choose("tasks", first(2 if work >= generic.PARALLEL_MACS else 0, range(5)))
        if count:
            sch.parallel(sch.fuse(*(n, h, w_outer, c_outer)[:count]))
    sch.unroll(kh)
    sch.unroll(kw)
    sch.unroll(w_inner)
    sch.unroll(c_vector)
    sch.vectorize(c_inner)
    rows, tail = sch.get_loops(last)[-2:]
    outer, inner = sch.split(tail, [None, lanes])
    sch.unroll(rows)
    sch.unroll(outer)
    sch.vectorize(inner)
    init = sch.decompose_reduction(anchor, kh)
    *_, rows, outer, inner = sch.get_loops(init)
    sch.unroll(rows)
    sch.unroll(outer)
    sch.vectorize(inner)
    for block in before:
        generic.schedule_padding(sch, block, isa, choose)
