"""Depthwise convolution, channels last: vectors along the channels, a few pixels of a row at a time.

    y[n, h, w, c*m + j] = sum over kh, kw of x[n, h*sh + kh*dh - top, w*sw + kw*dw - left, c] * weight[kh, kw, c*m + j]

In integers the products are formed in int16, where u8 x s8 always fits, and summed in int32.
"""

from __future__ import annotations

import numpy as np
from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.tirx import PrimFunc

from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, MACS, generic
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.tile import round_up


def pack(weight: np.ndarray, isa: Isa) -> np.ndarray:
    """(O, 1, KH, KW) to (KH, KW, O), O padded with zeros to whole vectors."""
    oc, _, kh, kw = weight.shape
    packed = np.zeros((kh, kw, round_up(oc, isa.lanes)), weight.dtype)
    packed[..., :oc] = weight[:, 0].transpose(1, 2, 0)
    return packed


def choose_pixels(isa: Isa, width: int) -> int:
    """Pixels of a row kept in registers at a time: a divisor of the width, so that nothing hangs over."""
    return max(p for p in range(1, min(8, isa.registers // 3) + 1) if width % p == 0)


def compute(x: te.Tensor, weight: te.Tensor, conv: Conv2d, isa: Isa, fill: int = 0) -> te.Tensor:
    """x (n, h, w, c), packed weight, result (n, oh, ow, oc) in float32 or int32; `fill` is what padding holds."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
    top, left, _, _ = conv.padding
    oh, ow = conv.out
    multiplier = conv.oc // conv.c
    source, channels = x, round_up(conv.oc, isa.lanes)
    if any(conv.padding) or channels != conv.oc:
        cp = round_up(conv.c, isa.lanes) if multiplier == 1 else -(-channels // multiplier)
        rows, cols = (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1

        def padded(n, h, w, c):
            inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
            if cp != conv.c:
                inside = tirx.all(inside, c < conv.c)
            return tirx.if_then_else(inside, x[n, h - top, w - left, c], tirx.const(fill, x.dtype))

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
        attrs={FAMILY: "depthwise", MACS: conv.macs, "pixels": choose_pixels(isa, ow)},
    )
    return te.compute((conv.n, oh, ow, conv.oc), lambda *i: y[i], name="crop")


def schedule(func: PrimFunc, isa: Isa) -> Schedule:
    """Rows in parallel; a strip of pixels by one vector of channels in registers."""
    sch = Schedule(func)
    before, anchor, after = generic.around_anchor(sch)
    pixels = int(sch.get(anchor).annotations["pixels"])
    for block in after[:-1]:
        sch.compute_inline(block)
    last = after[-1]
    work = generic.extent(sch, sch.get_loops(anchor))
    n, h, w, c, kh, kw = sch.get_loops(anchor)
    channels = int(sch.get(c).extent)
    lanes = isa.lanes
    vectors = 2 if channels % (2 * lanes) == 0 and pixels * 2 + 2 <= isa.registers else 1
    w_outer, w_inner = sch.split(w, [None, pixels])
    c_outer, c_vector, c_inner = sch.split(c, [None, vectors, lanes])
    sch.reorder(n, h, w_outer, c_outer, kh, kw, w_inner, c_vector, c_inner)
    sch.reverse_compute_at(last, c_outer, preserve_unit_loops=True)
    if work >= generic.PARALLEL_MACS and isa.cores > 1:
        sch.parallel(sch.fuse(n, h))
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
        generic.schedule_padding(sch, block, isa)
    return sch
