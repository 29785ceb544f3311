"""A layer of the graph as the convolution that its kernels compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, op_name
from tvmcompress.kernels.conv2d import Conv2d

INTEGERS = ("int8", "uint8")
Definition = Callable[[Expr], Any]


def convolution(definition: Definition, expr: Expr) -> tuple[Expr, Conv2d, int] | None:
    """Of channels last: its data, what it is, and what padding holds."""
    a, weight = expr.attrs, expr.args[1]
    if a.data_layout != "NHWC" or a.kernel_layout != "OIHW":
        return None
    x, padding, fill = absorb_padding(definition, expr.args[0], [int(p) for p in a.padding])
    (n, h, w, c), (oc, _, kh, kw) = graph.shape(x), graph.shape(weight)
    (sh, sw), (dh, dw) = map(int, a.strides), map(int, a.dilation)
    return x, Conv2d(n, h, w, c, oc, (kh, kw), (sh, sw), padding, (dh, dw), int(a.groups)), fill


def row_of_pixels(shape: tuple[int, ...], weight: tuple[int, ...]) -> Conv2d | None:
    """The product x (…, m, k) times (k, n) as a convolution; None where there is another matrix for each product."""
    *lead, m, k = shape
    if len(weight) != 2:
        return None
    return Conv2d(math.prod(lead), 1, m, k, weight[1], (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))


def absorb_padding(definition: Definition, x: Expr, padding: list[int]) -> tuple[Expr, tuple[int, int, int, int], int]:
    """A pad over the two spatial axes right before becomes the convolution's own: (data, padding, fill)."""
    call = definition(x)
    fill = 0
    if call is not None and op_name(call) == "relax.nn.pad" and str(call.attrs.pad_mode) == "constant":
        (n0, n1, top, bottom, left, right, c0, c1) = (int(w) for w in call.attrs.pad_width)
        value = float(call.attrs.pad_value)
        same = not any(padding) and (graph.dtype(x) in INTEGERS or value == 0)
        if not (n0 or n1 or c0 or c1) and (same or (value == 0 and graph.dtype(x) not in INTEGERS)):
            x, fill = call.args[0], int(value)
            padding = [padding[0] + top, padding[1] + left, padding[2] + bottom, padding[3] + right]
    top, left, bottom, right = padding
    return x, (top, left, bottom, right), fill
