"""DFT and STFT as products with the Fourier matrix, and Col2Im as one product: all of known length."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import take
from tvmcompress.ir import graph

op = relax.op


def fourier(node: Node, length: int, points: int, bins: int, sign: float, kind: str) -> tuple[graph.Expr, graph.Expr]:
    """cos and sin (length, bins) of `points`-point transforms of `length` samples."""
    angle = 2 * np.pi * np.outer(np.arange(length), np.arange(bins)) / points
    return graph.const(np.cos(angle).astype(kind)), graph.const((sign * np.sin(angle)).astype(kind))


def dft(node: Node) -> graph.Expr:
    """input (…, 1 or 2), dft_length, axis (opset 20; an attribute before). The last axis holds real and imaginary."""
    dims = node.shape(0)
    rank = len(dims)
    inverse, onesided = node.attr("inverse", 0), node.attr("onesided", 0)
    axis = node.attr("axis", 1) if node.opset < 20 else -2
    if node.opset >= 20 and node.has(2):
        axis = dft_axis(node, dims)
    axis %= rank
    points = int(node.need(1, "dft_length").reshape(-1)[0]) if node.has(1) else dims[axis]
    if onesided and inverse and not node.has(1):
        points = 2 * (dims[axis] - 1)
    kind, length = node.dtype(0), min(dims[axis], points)
    x = node.x(0)
    if onesided and inverse:
        return inverse_real(node, x, axis, points, kind)
    if dims[axis] > length:
        x = node.emit(op.strided_slice(x, [axis], [0], [length]), "cut")
    bins = points // 2 + 1 if onesided else points
    cos, sin = fourier(node, length, points, bins, 1.0 if inverse else -1.0, kind)
    real = component(node, x, axis, 0)
    imaginary = component(node, x, axis, 1) if dims[-1] == 2 else None
    re, im = node.emit(op.matmul(real, cos), "re"), node.emit(op.matmul(real, sin), "im")
    if imaginary is not None:
        re = node.emit(op.subtract(re, op.matmul(imaginary, sin)), "re")
        im = node.emit(op.add(im, op.matmul(imaginary, cos)), "im")
    return placed(node, [re, im], axis, rank, 1 / points if inverse else 1.0, kind)


def dft_axis(node: Node, dims: tuple[int, ...]) -> int:
    """The axis; unknown, it is the one whose length the stated shape changes, or the only one there is."""
    known = node.known(2)
    if known is not None:
        return int(known.reshape(-1)[0])
    stated = node.declared()
    if len(dims) == 2:
        return 0
    if stated is not None:
        changed = [i for i in range(len(dims) - 1) if dims[i] != stated[i]]
        if len(changed) == 1:
            return changed[0]
    raise node.unknown(2, "axis")


def component(node: Node, x: graph.Expr, axis: int, which: int) -> graph.Expr:
    """The real or imaginary part with the transformed axis last."""
    part = node.emit(take(x, graph.const(np.array(which, "int64")), len(graph.shape(x)) - 1), "part")
    rank = len(graph.shape(part))
    order = [a for a in range(rank) if a != axis] + [axis]
    return part if axis == rank - 1 else node.emit(op.permute_dims(part, order), "last")


def placed(node: Node, parts: list[graph.Expr], axis: int, rank: int, factor: float, kind: str) -> graph.Expr:
    """Real and imaginary stacked last, the transformed axis back in its place."""
    if factor != 1.0:
        parts = [node.emit(op.multiply(p, graph.const(np.asarray(factor).astype(kind))), "scaled") for p in parts]
    whole = node.emit(op.stack(parts, rank - 1) if len(parts) > 1 else op.expand_dims(parts[0], rank - 1), "parts")
    order = [a for a in range(rank - 1) if a != axis] + [axis, rank - 1]
    back = [order.index(a) for a in range(rank)]
    return whole if back == list(range(rank)) else op.permute_dims(whole, back)


def inverse_real(node: Node, x: graph.Expr, axis: int, points: int, kind: str) -> graph.Expr:
    """The real signal whose one-sided spectrum is given: inner bins count twice."""
    bins = min(graph.shape(x)[axis], points // 2 + 1)
    if graph.shape(x)[axis] > bins:
        x = node.emit(op.strided_slice(x, [axis], [0], [bins]), "cut")
    angle = 2 * np.pi * np.outer(np.arange(bins), np.arange(points)) / points
    twice = np.full((bins, 1), 2.0)
    twice[0] = 1.0
    if points % 2 == 0 and bins == points // 2 + 1:
        twice[-1] = 1.0
    cos, sin = (graph.const((f(angle) * twice / points).astype(kind)) for f in (np.cos, np.sin))
    real = node.emit(op.matmul(component(node, x, axis, 0), cos), "re")
    if graph.shape(x)[-1] == 2:
        real = node.emit(op.subtract(real, op.matmul(component(node, x, axis, 1), sin)), "real")
    return placed(node, [real], axis, len(graph.shape(x)), 1.0, kind)


def stft(node: Node) -> graph.Expr:
    """signal (N, L, 1 or 2), frame_step, window, frame_length -> (N, frames, bins, 2)."""
    batch, length, parts = (*node.shape(0), 1)[:3]
    kind, onesided = node.dtype(0), node.attr("onesided", 1)
    window = node.known(2) if node.has(2) else None
    stated = node.declared()
    node.need_all({1: "frame_step", 3: "frame_length"} if not node.has(2) else {1: "frame_step"})
    frame = stft_frame(node, stated, onesided)
    step = int(node.need(1, "frame_step").reshape(-1)[0])
    frames = (length - frame) // step + 1
    index = np.arange(frames)[:, None] * step + np.arange(frame)
    x = node.emit(op.reshape(node.x(0), (batch, length, parts)), "signal")
    x = node.emit(take(x, graph.const(index.astype("int64")), 1), "frames")  # (N, frames, frame, parts)
    bins = frame // 2 + 1 if onesided else frame
    if node.has(2):
        shaped = (
            graph.const(window.reshape(1, 1, -1, 1))
            if window is not None
            else node.emit(op.reshape(node.x(2), (1, 1, frame, 1)), "window")
        )
        x = node.emit(op.multiply(x, shaped), "windowed")
    cos, sin = fourier(node, frame, frame, bins, -1.0, kind)
    real = component(node, x, 2, 0)
    re, im = node.emit(op.matmul(real, cos), "re"), node.emit(op.matmul(real, sin), "im")
    if parts == 2:
        imaginary = component(node, x, 2, 1)
        re = node.emit(op.subtract(re, op.matmul(imaginary, sin)), "re")
        im = node.emit(op.add(im, op.matmul(imaginary, cos)), "im")
    return placed(node, [re, im], 2, 4, 1.0, kind)


def stft_frame(node: Node, stated: tuple[int, ...] | None, onesided: int) -> int:
    if node.has(3) and node.known(3) is not None:
        return int(node.need(3, "frame_length").reshape(-1)[0])
    if node.has(2):
        return node.shape(2)[0]
    if not onesided and stated is not None:
        return stated[2]
    if not node.has(3):
        raise ModelError("it has neither window nor frame_length")
    raise node.unknown(3, "frame_length")


def col2im(node: Node) -> graph.Expr:
    """(N, C * block, L), image_shape, block_shape: columns are added up where they overlap."""
    n, rows, columns = node.shape(0)
    image = [int(v) for v in known_or_stated(node, 1, "image_shape")]
    block = [int(v) for v in known_or_stated(node, 2, "block_shape")]
    d = len(image)
    pads, strides, dilations = (
        node.attr("pads", [0] * 2 * d),
        node.attr("strides", [1] * d),
        node.attr("dilations", [1] * d),
    )
    channels = rows // math.prod(block)
    counts = [
        (image[i] + pads[i] + pads[d + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(d)
    ]
    size = math.prod(image)
    scatter = np.zeros((math.prod(block) * columns, size), "float32")
    for b, offset in enumerate(np.ndindex(*block)):
        for column, at in enumerate(np.ndindex(*counts)):
            where = [a * s - p + o * di for a, s, p, o, di in zip(at, strides, pads, offset, dilations)]
            if all(0 <= w < i for w, i in zip(where, image)):
                scatter[b * columns + column, int(np.ravel_multi_index(where, image))] = 1
    x = node.emit(op.reshape(node.x(0), (n, channels, math.prod(block) * columns)), "columns")
    y = node.emit(op.matmul(x, graph.const(scatter.astype(node.dtype(0)))), "added")
    return op.reshape(y, (n, channels, *image))


def known_or_stated(node: Node, index: int, what: str) -> np.ndarray:
    known = node.known(index)
    stated = node.declared()
    if known is None and index == 1 and stated is not None:
        return np.array(stated[2:])
    return node.need(index, what) if known is None else known


TABLE = {"DFT": dft, "STFT": stft, "Col2Im": col2im}
