"""Resize and Upsample: TVM's operator where it does as ONNX says, else one axis at a time.

Interpolation along one axis is linear in the data: out = M @ in, M made at load from the coordinates. Nearest gathers.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import take
from tvmcompress.ir import graph


def resize(node: Node) -> graph.Expr:
    """X, roi, scales, sizes (opset 10: X, scales)."""
    dims = node.shape(0)
    rank = len(dims)
    old = node.opset < 11
    axes = [a % rank for a in node.attr("axes", range(rank))]
    scales_at, sizes_at = (1, 3) if old else (2, 3)
    scales, sizes = given(node, scales_at), given(node, sizes_at)
    out, factor = list(dims), [1.0] * rank
    if sizes is not None:
        policy = node.attr("keep_aspect_ratio_policy", "stretch")
        ratios = [s / dims[a] for s, a in zip(sizes, axes)]
        if policy != "stretch":
            one = (min if policy == "not_larger" else max)(ratios)
            ratios = [one] * len(axes)
            sizes = [math.floor(one * dims[a] + 0.5) for a in axes]
        for a, size, ratio in zip(axes, sizes, ratios):
            out[a], factor[a] = int(size), ratio
    elif scales is not None:
        for a, scale in zip(axes, scales):
            out[a], factor[a] = math.floor(dims[a] * scale), float(scale)
    else:
        stated = node.declared()
        index = sizes_at if node.has(sizes_at) else scales_at
        if stated is None or (index == scales_at and any(s % d for s, d in zip(stated, dims))):
            raise node.unknown(index, "sizes" if index == sizes_at else "scales")
        if node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise node.unknown(index, "sizes")
        out, factor = list(stated), [s / d for s, d in zip(stated, dims)]
    mode = node.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    roi = [0.0] * rank + [1.0] * rank
    if mode == "tf_crop_and_resize":
        values = node.need(1, "roi").reshape(-1)
        for i, a in enumerate(axes):
            roi[a], roi[rank + a] = float(values[i]), float(values[len(axes) + i])
    return resized(node, out, factor, mode, roi)


def given(node: Node, index: int) -> list[float] | None:
    """Known scales or sizes; None where absent, empty (as older opsets have it) or only known at run time."""
    values = node.known(index)
    return None if values is None or values.size == 0 else values.reshape(-1).tolist()


def upsample(node: Node) -> graph.Expr:
    dims = node.shape(0)
    scales = node.attr("scales")
    if scales is None and node.op == "Upsample" and node.has(1):
        known = node.known(1)
        stated = node.declared()
        if known is None and (stated is None or any(s % d for s, d in zip(stated, dims))):
            raise node.unknown(1, "scales")
        scales = known.tolist() if known is not None else [s / d for s, d in zip(stated or (), dims)]
    if scales is None:
        raise ModelError("it has no scales")
    out = [math.floor(d * s) for d, s in zip(dims, scales)]
    return resized(node, out, list(scales), "asymmetric", [])


def resized(node: Node, out: list[int], factor: list[float], mode: str, roi: list[float]) -> graph.Expr:
    dims, kind = node.shape(0), node.attr("mode", "nearest")
    changed = [a for a in range(len(dims)) if out[a] != dims[a] or factor[a] != 1.0 or mode == "tf_crop_and_resize"]
    stock = stock_form(node, dims, out, factor, mode, kind, changed)
    if stock is not None:
        return stock
    x = node.x(0)
    for axis in changed:
        inside, x_at = coordinates(dims[axis], out[axis], factor[axis], mode, axis, roi)
        if kind == "nearest":
            index = nearest(x_at, node.attr("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor"))
            index = np.clip(index, 0, dims[axis] - 1).astype("int64")
            x = node.emit(take(x, graph.const(index), axis), f"axis{axis}")
        else:
            matrix = weights(node, x_at, dims[axis], factor[axis], kind)
            x = along(node, x, matrix.astype(node.dtype(0)), axis)
        if not inside.all():
            shape = [1] * len(dims)
            shape[axis] = out[axis]
            value = np.asarray(node.attr("extrapolation_value", 0.0)).astype(node.dtype(0))
            x = node.emit(relax.op.where(graph.const(inside.reshape(shape)), x, graph.const(value)), f"outside{axis}")
    return x


def stock_form(
    node: Node, dims: tuple[int, ...], out: list[int], factor: list[float], mode: str, kind: str, changed: list[int]
) -> graph.Expr | None:
    """relax.image.resize2d, for images whose scale is the ratio of the sizes."""
    exact = all(abs(factor[a] * dims[a] - out[a]) < 1e-6 for a in changed)
    modes = {"half_pixel", "asymmetric", "align_corners"}
    if len(dims) != 4 or not exact or mode not in modes or set(changed) - {2, 3} or node.attr("antialias", 0):
        return None
    if kind == "cubic" or node.attr("exclude_outside", 0) or not node.dtype(0).startswith("float"):
        return None
    rounding = node.attr("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    if kind == "nearest" and (mode, rounding) != ("asymmetric", "floor"):
        return None
    method = "nearest_neighbor" if kind == "nearest" else "linear"
    return relax.op.image.resize2d(
        node.x(0), relax.ShapeExpr(out[2:]), layout="NCHW", method=method, coordinate_transformation_mode=mode,
        rounding_method=rounding if kind == "nearest" else "",
    )  # fmt: skip


def along(node: Node, x: graph.Expr, matrix: np.ndarray, axis: int) -> graph.Expr:
    """matrix (out, in) applied along one axis."""
    rank = len(graph.shape(x))
    order = [a for a in range(rank) if a != axis] + [axis]
    moved = x if axis == rank - 1 else node.emit(relax.op.permute_dims(x, order), "moved")
    product = node.emit(relax.op.matmul(moved, graph.const(np.ascontiguousarray(matrix.T))), f"axis{axis}")
    back = [order.index(a) for a in range(rank)]
    return product if axis == rank - 1 else node.emit(relax.op.permute_dims(product, back), "back")


def coordinates(
    size: int, out: int, scale: float, mode: str, axis: int, roi: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each output element lies on the input, and whether that is inside (only crops can leave it)."""
    at = np.arange(out, dtype="float64")
    inside = np.ones(out, bool)
    if mode == "half_pixel":
        x = (at + 0.5) / scale - 0.5
    elif mode == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        x = size / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
    elif mode == "pytorch_half_pixel":
        x = (at + 0.5) / scale - 0.5 if out > 1 else np.zeros(out)
    elif mode == "align_corners":
        full = scale * size
        x = at * (size - 1) / (full - 1) if full > 1 else np.zeros(out)
    elif mode == "asymmetric":
        x = at / scale
    elif mode == "tf_half_pixel_for_nn":
        x = (at + 0.5) / scale
    elif mode == "tf_crop_and_resize":
        start, end = roi[axis], roi[len(roi) // 2 + axis]
        x = (
            start * (size - 1) + at * (end - start) * (size - 1) / (out - 1)
            if out > 1
            else np.full(out, 0.5 * (start + end) * (size - 1))
        )
        inside = (x >= 0) & (x <= size - 1)
    else:
        raise ModelError(f"unknown coordinate_transformation_mode '{mode}'")
    return inside, x


def nearest(x: np.ndarray, mode: str) -> np.ndarray:
    if mode == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(x + 0.5)
    return np.ceil(x) if mode == "ceil" else np.floor(x)


def weights(node: Node, x: np.ndarray, size: int, scale: float, kind: str) -> np.ndarray:
    """The interpolation matrix (out, in) of one axis. Downscaling with antialias widens the filter."""
    stretch = min(scale, 1.0) if node.attr("antialias", 0) else 1.0
    radius = 2 if kind == "cubic" else 1
    first = np.floor(x - radius / stretch).astype(int)
    width = math.ceil(2 * radius / stretch) + 3
    taps = first[:, None] + np.arange(width)
    distance = np.abs(x[:, None] - taps) * stretch
    value = cubic(distance, node.attr("cubic_coeff_a", -0.75)) if kind == "cubic" else np.maximum(1 - distance, 0)
    if node.attr("exclude_outside", 0):
        value = np.where((taps < 0) | (taps >= size), 0, value)
    if node.attr("exclude_outside", 0) or stretch < 1:
        value = value / value.sum(1, keepdims=True)
    matrix = np.zeros((len(x), size))
    np.add.at(matrix, (np.arange(len(x))[:, None], np.clip(taps, 0, size - 1)), value)
    return matrix


def cubic(d: np.ndarray, a: float) -> np.ndarray:
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


TABLE = {"Resize": resize, "Upsample": upsample}
