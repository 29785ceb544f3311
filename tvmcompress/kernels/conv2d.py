"""Convolution over two axes, channels last, as a register tile over pixels of a row.

    y[n, h, w, o] = sum over kh, kw, c of x[n, h*sh + kh*dh - top, w*sw + kw*dw - left, c] * weight[o, c, kh, kw]

Weights are packed to [blocks, KH, KW, C, block], or for dot products of depth d to [blocks, KH, KW, C/d, block, d].
With groups, each group's output channels are padded to whole blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import te, tirx

from tvmcompress.isa import BF16_BITS, Dot, Isa
from tvmcompress.kernels.choices import Choices, untuned
from tvmcompress.kernels.tile import Plan, attributes, crop, product
from tvmcompress.kernels.tiles import Product, Tile, lanes_for, parts, round_up, tiles


@dataclass(frozen=True)
class Conv2d:
    """Shape of a convolution: data (n, h, w, c), `oc` output channels, padding (top, left, bottom, right).

    `zeros` of the c input channels only fill up the last step of a dot product.
    """

    n: int
    h: int
    w: int
    c: int
    oc: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int = 1
    zeros: int = 0

    @property
    def out(self) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.strides, self.dilation
        return (self.h + top + bottom - (kh - 1) * dh - 1) // sh + 1, (
            self.w + left + right - (kw - 1) * dw - 1
        ) // sw + 1

    @property
    def macs(self) -> int:
        oh, ow = self.out
        return self.n * oh * ow * self.oc * ((self.c - self.zeros) // self.groups) * self.kernel[0] * self.kernel[1]


def key(conv: Conv2d, data: str) -> str:
    """What the kernel is known by: `data` is the dtype in which it reads."""
    window = f"{conv.kernel[0]}x{conv.kernel[1]}/{conv.strides[0]}x{conv.strides[1]}"
    if conv.dilation != (1, 1):
        window += f" dilated {conv.dilation[0]}x{conv.dilation[1]}"
    groups = f" groups {conv.groups}" if conv.groups > 1 else ""
    padding = ",".join(str(p) for p in conv.padding)
    return f"conv2d {data} {conv.n}x{conv.h}x{conv.w}x{conv.c} to {conv.oc}, {window} pad {padding}{groups}"


def plan(conv: Conv2d, isa: Isa, data: str, weight: str, choices: Choices = untuned) -> Plan:
    """Integers use the dot product when the weights fit it."""
    oh, ow = conv.out
    dot, data = instruction(conv, isa, data, weight)
    size, group = tvm.DataType(data).bits // 8, conv.c // conv.groups
    depth = dot.depth if dot else 1
    in_place = not any(conv.padding) and group % depth == 0
    wanted = Product(
        rows=ow,
        channels=conv.oc // conv.groups,
        steps=math.prod(conv.kernel) * -(-group // depth),
        outer=conv.n * oh * conv.groups,
        pitch=conv.c * conv.strides[1] * size,
        copied=conv.n * conv.h * conv.w * conv.c * size if in_place else 0,
        bytes=dot is not None and is_integer(data),
        whole=conv.groups > 1,
        taken=dot.rows if dot else 1,
        lanes=0 if dot else lanes_for(isa, conv.oc // conv.groups),
    )
    found = tiles(isa, wanted)
    if dot and dot.spaced:
        dot = dot.spaced(conv.strides[1])
    return planned(choices(key(conv, data))("tile", found), dot, data)


def instruction(conv: Conv2d, isa: Isa, data: str, weight: str) -> tuple[Dot | None, str]:
    """The dot product of a convolution, and the dtype in which the kernel reads its activations.

    With groups one pixel at a time: the padded pixels of a group do not lie beside each other.
    """
    return operands(isa, data, weight, conv.out[1] if conv.groups == 1 else 1, conv.c // conv.groups)


def operands(isa: Isa, data: str, weight: str, rows: int, k: int, whole: bool = False) -> tuple[Dot | None, str]:
    """The dot product for these dtypes, and the dtype in which the kernel reads its activations.

    Of several the one that takes `rows` rows of length k in the fewest steps; `whole`: k is a multiple of its depth.
    """
    integer = is_integer(data)
    if integer:
        wanted = isa.integer_data, weight
    else:
        wanted = (BF16_BITS, BF16_BITS) if data == weight == "bfloat16" else (data, weight)
    fitting = [d for d in isa.dots if (d.data, d.weight) == wanted and d.rows <= rows and not (whole and k % d.depth)]
    if fitting:
        best = min(fitting, key=lambda d: (-(-k // d.depth), d.rows))
        return best, best.data
    if integer:
        return None, "int16"
    return None, "float32" if data == "float16" and isa.widens else data


def is_integer(dtype: str) -> bool:
    return dtype.startswith(("int", "uint")) and dtype != BF16_BITS


def planned(tile: Tile, dot: Dot | None, data: str) -> Plan:
    return Plan(tile, dot.depth, dot.intrinsic, data, dot.rows) if dot else Plan(tile, 1, "", data)


def pack(weight: np.ndarray, conv: Conv2d, p: Plan) -> np.ndarray:
    """(O, C/groups, KH, KW) to the kernel's layout, zeros where blocks hang over."""
    oc, ic, kh, kw = weight.shape
    group, blocks, block = oc // conv.groups, p.blocks(conv.oc // conv.groups), p.tile.block
    icp = round_up(ic, p.depth)
    padded = np.zeros((conv.groups, blocks * block, icp, kh, kw), weight.dtype)
    padded[:, :group, :ic] = weight.reshape(conv.groups, group, ic, kh, kw)
    padded = padded.reshape(conv.groups * blocks, block, icp // p.depth, p.depth, kh, kw)
    packed = padded.transpose(0, 4, 5, 2, 1, 3)
    return stored(np.ascontiguousarray(packed if p.depth > 1 else packed[..., 0]), p)


def stored(packed: np.ndarray, p: Plan) -> np.ndarray:
    """Weights in the dtype in which the kernel reads them: for bfloat16 dot products, their bits."""
    return packed.view(np.uint16) if p.data == BF16_BITS else packed


def packed_shape(conv: Conv2d, p: Plan) -> tuple[int, ...]:
    icp = round_up(conv.c // conv.groups, p.depth)
    shape = (conv.groups * p.blocks(conv.oc // conv.groups), *conv.kernel, icp // p.depth, p.tile.block)
    return (*shape, p.depth) if p.depth > 1 else shape


def compute(x: te.Tensor, weight: te.Tensor, conv: Conv2d, p: Plan, fill: int = 0) -> te.Tensor:
    """The convolution as tensor expressions: x (n, h, w, c), packed weight, result (n, oh, ow, oc) in float32 or int32.

    `fill` is what padding holds: the zero point, so that its part is the same for every pixel.
    """
    sums = p.sums
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel, conv.strides, conv.dilation
    top, left, _, _ = conv.padding
    oh, ow = conv.out
    group_in, group_out = conv.c // conv.groups, conv.oc // conv.groups
    gp, blocks, tile = round_up(group_in, p.depth), p.blocks(conv.oc // conv.groups), p.tile
    owp = round_up(ow, tile.pixels)
    rows, cols = (oh - 1) * sh + (kh - 1) * dh + 1, (owp - 1) * sw + (kw - 1) * dw + 1

    source = x
    if any(conv.padding) or cols > conv.w or gp != group_in or str(x.dtype) != p.data:
        inside_always = not any(conv.padding) and cols <= conv.w and gp == group_in

        def padded(n, h, w, g, c):
            value = x[n, h - top, w - left, g * group_in + c]
            value = value.astype(p.data)
            if inside_always:
                return value
            inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left, c < group_in)
            return tirx.if_then_else(inside, value, tirx.const(fill, p.data))

        if conv.groups > 1:
            source = te.compute((conv.n, rows, cols, conv.groups, gp), padded, name="pad")
            read = lambda n, h, w, g, c: source[n, h, w, g, c]  # noqa: E731
        else:  # the last two axes are what an instruction for several pixels reads
            source = te.compute((conv.n, rows, cols, gp), lambda n, h, w, c: padded(n, h, w, 0, c), name="pad")
            read = lambda n, h, w, g, c: source[n, h, w, c]  # noqa: E731
    else:
        read = lambda n, h, w, g, c: source[n, h, w, g * group_in + c if conv.groups > 1 else c]  # noqa: E731

    ry, rx = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    rc = te.reduce_axis((0, gp // p.depth), "c")
    axes = [ry, rx, rc]
    if p.depth > 1:
        rd = te.reduce_axis((0, p.depth), "d")
        axes.append(rd)

        def term(n, h, w, b, v):
            return product(
                read(n, h * sh + ry * dh, w * sw + rx * dw, b // blocks, rc * p.depth + rd),
                weight[b, ry, rx, rc, v, rd],
                sums,
            )
    else:

        def term(n, h, w, b, v):
            return product(read(n, h * sh + ry * dh, w * sw + rx * dw, b // blocks, rc), weight[b, ry, rx, rc, v], sums)

    y = te.compute(
        (conv.n, oh, owp, conv.groups * blocks, tile.block),
        lambda n, h, w, b, v: te.sum(term(n, h, w, b, v), axis=axes),
        name="conv2d",
        attrs=attributes(key(conv, p.data), conv.macs, p, 2, conv.groups > 1 and not parts(group_out, tile.block)),
    )
    return crop(y, (conv.n, oh, ow, conv.oc), tile.block, group_out if conv.groups > 1 else 0, blocks)
