"""Depthwise convolution of bytes on dot products: several taps of a row in one instruction, each lane its own channel.

    g[n, h, i, c, d]   = x[n, h - top, S*i + d - left, c]                                      D neighbours of a channel
    y[n, h, P*j + r, c] = sum over kh, q, d of g[n, h*sh + kh, j + q*D/S, c, d] * w[r, kh, q, c, d]

A group of D pixels begins at every S-th one, and serves the P = S/sw results that begin within its first S pixels: for
each of these the taps lie further back in the group, with zeros before them. Groups are made for a band of rows at a
time, where they stay in the first cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx

from tvmcompress.isa import Dot, Isa
from tvmcompress.isa.intrinsics import dot_of_word, word
from tvmcompress.kernels import FAMILY, MACS
from tvmcompress.kernels.choices import KEY, Choices, untuned
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.tiles import round_up

GROUP = 6  # products that making a vector of groups takes as long as


@dataclass(frozen=True)
class Woven:
    """Decisions: the instruction, S and P as in the module, and how many groups a row of taps reaches over."""

    dot: Dot
    step: int
    outputs: int
    groups: int


def plan(conv: Conv2d, isa: Isa, data: str, weight: str, choices: Choices = untuned) -> Woven | None:
    """None where the taps are too far apart, or there is no instruction for these dtypes."""
    dot = isa.dot
    one_each = conv.groups == conv.c == conv.oc
    if dot is None or not dot.lanewise or weight != dot.weight or data not in ("int8", "uint8") or not one_each:
        return None
    if dot.depth == 4 and data != dot.data:
        return None
    (kh, kw), (sh, sw) = conv.kernel, conv.strides
    found = []
    for step in (dot.depth, dot.depth // 2):
        if step % sw == 0 and step > 1 and conv.dilation[1] == 1:
            outputs = step // sw
            groups = -(-((outputs - 1) * sw + kw) // dot.depth)
            waste = round_up(conv.out[1], outputs) / conv.out[1]
            found.append((waste * kh * groups + GROUP * sh / outputs, Woven(dot, step, outputs, groups)))
    found.sort(key=lambda pair: pair[0])
    if not found or found[0][0] > 2 * kh * kw:
        return None
    return choices(key(conv, data))("groups", [woven for _, woven in found])


def pack(weight: te.Tensor, conv: Conv2d, isa: Isa, p: Woven) -> te.Tensor:
    """(C, 1, KH, KW) to the kernel's layout (P, KH, groups, C in whole vectors, D)."""
    (kh, kw), (_, sw) = conv.kernel, conv.strides

    def element(r, h, q, c, d):
        tap = q * p.dot.depth + d - r * sw
        inside = tirx.all(tap >= 0, tap < kw, c < conv.c)
        return tirx.if_then_else(inside, weight[c, 0, h, tap], tirx.const(0, weight.dtype))

    shape = (p.outputs, kh, p.groups, round_up(conv.c, isa.lanes), p.dot.depth)
    return te.compute(shape, element, name="pack")


def compute(x: te.Tensor, weight: te.Tensor, conv: Conv2d, isa: Isa, p: Woven, fill: int = 0) -> te.Tensor:
    """x (n, h, w, c), packed weight, result (n, oh, ow, oc) in int32; `fill` is what padding holds."""
    (kh, _), (sh, _), (dh, _) = conv.kernel, conv.strides, conv.dilation
    top, left, _, _ = conv.padding
    oh, ow = conv.out
    depth, channels, next_group = p.dot.depth, round_up(conv.oc, isa.lanes), p.dot.depth // p.step
    across = -(-ow // p.outputs)
    groups = across + (p.groups - 1) * next_group
    rows, columns = (oh - 1) * sh + (kh - 1) * dh + 1, (groups - 1) * p.step + depth

    def padded(n, h, w, c):
        inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
        if channels != conv.c:
            inside = tirx.all(inside, c < conv.c)
        value = x[n, h - top, w - left, c].astype(p.dot.data)
        return tirx.if_then_else(inside, value, tirx.const(fill, p.dot.data))

    source = te.compute((conv.n, rows, columns, channels), padded, name="pad")

    def group(n, h, i, c):
        return word([source[n, h, i * p.step + d, c] for d in range(depth)])

    woven = te.compute((conv.n, rows, groups, channels), group, name="groups")
    ry, rq = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, p.groups), "q")

    def term(n, h, j, r, b, v):
        c = b * isa.lanes + v
        data = woven[n, h * sh + ry * dh, j + rq * next_group, c]
        return dot_of_word(data, [weight[r, ry, rq, c, d] for d in range(depth)], p.dot.data)

    y = te.compute(
        (conv.n, oh, across, p.outputs, channels // isa.lanes, isa.lanes),
        lambda *i: te.sum(term(*i), axis=[ry, rq]),
        name="depthwise",
        attrs={
            FAMILY: "depthwise",
            KEY: key(conv, p.dot.data),
            MACS: conv.macs,
            "stride": sh,
            "dot": p.dot.lanewise,
        },
    )
    return te.compute(
        (conv.n, oh, ow, conv.oc),
        lambda n, h, w, c: y[n, h, w // p.outputs, w % p.outputs, c // isa.lanes, c % isa.lanes],
        name="crop",
    )
