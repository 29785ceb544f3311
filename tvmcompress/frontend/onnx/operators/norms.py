"""Normalizations whose stock converters lack an output, a mode or a form."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import scalar, take
from tvmcompress.ir import graph, ops

op = relax.op


def layer_norm(node: Node) -> list[graph.Expr]:
    """One output is TVM's operator; mean and inverse deviation come from ONNX's own definition."""
    if len([o for o in node.proto.output if o]) > 1:
        body = node.importer.body(node)
        return NotImplemented if body is None else node.importer.function(node, body)
    x, dims = node.x(0), node.shape(0)
    axes = list(range(node.attr("axis", -1) % len(dims), len(dims)))
    shape = tuple(dims[a] for a in axes)
    if node.shape(1) != shape or (node.has(2) and node.shape(2) != shape):
        return NotImplemented
    kind = graph.dtype(x)
    if kind != "float32":
        return NotImplemented
    beta = node.x(2) if node.has(2) else graph.const(np.zeros(shape, kind))
    return [op.nn.layer_norm(x, node.x(1), beta, axes, node.attr("epsilon", 1e-5))]


def batch_norm(node: Node) -> list[graph.Expr]:
    """Inference is TVM's operator. Training: the batch's own mean and (population) variance, and running ones."""
    if not node.attr("training_mode", 0):
        return NotImplemented
    x, dims = node.x(0), node.shape(0)
    axes = [a for a in range(len(dims)) if a != 1]
    wide = (1, dims[1], *[1] * (len(dims) - 2))
    kind, momentum = graph.dtype(x), node.attr("momentum", 0.9)
    mean = node.emit(op.mean(x, axes, True), "mean")
    centred = node.emit(op.subtract(x, mean), "centred")
    variance = node.emit(op.mean(node.emit(op.multiply(centred, centred), "square"), axes, True), "variance")
    deviation = node.emit(op.sqrt(op.add(variance, scalar(node.attr("epsilon", 1e-5), kind))), "deviation")
    y = node.emit(op.divide(centred, deviation), "normal")
    gamma, beta = (node.emit(op.reshape(node.x(i), wide), "wide") for i in (1, 2))
    y = node.emit(op.add(op.multiply(y, gamma), beta))
    running = []
    for index, now in ((3, mean), (4, variance)):
        flat = node.emit(op.reshape(now, (dims[1],)), "flat")
        old = op.multiply(node.x(index), scalar(momentum, kind))
        running.append(node.emit(op.add(old, op.multiply(flat, scalar(1 - momentum, kind))), "running"))
    return [y, *running]


def rms_norm(node: Node) -> graph.Expr:
    """ONNX's definition where TVM's operator has no kernel (normalizing over every axis)."""
    if node.attr("axis", -1) % len(node.shape(0)) != 0:
        return NotImplemented
    body = node.importer.body(node)
    return NotImplemented if body is None else node.importer.function(node, body)


def lp_norm(node: Node) -> graph.Expr:
    x, axis, p = node.x(0), node.attr("axis", -1), node.attr("p", 2)
    if p == 1:
        norm = op.sum(node.emit(op.abs(x), "abs"), [axis], True)
    else:
        norm = op.sqrt(node.emit(op.sum(node.emit(op.multiply(x, x), "square"), [axis], True), "sum"))
    norm = node.emit(norm, "norm")
    zero = scalar(0.0, graph.dtype(x))
    safe = node.emit(op.where(op.equal(norm, zero), scalar(1.0, graph.dtype(x)), norm), "safe")
    return op.divide(x, safe)


def local_response_norm(node: Node) -> graph.Expr:
    """Over axis 1, which the operator wants last."""
    rank = len(node.shape(0))
    if graph.dtype(node.x(0)) != "float32":
        return NotImplemented
    last, first = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    numbers = [float(node.attr(key, default)) for key, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))]
    x = node.emit(op.permute_dims(node.x(0), last), "last")
    y = node.emit(ops.local_response_norm(x, int(node.attr("size")), *numbers), "normal")
    return op.permute_dims(y, first)


def space_to_depth(node: Node) -> graph.Expr:
    block, (n, c, h, w) = node.attr("blocksize"), node.shape(0)
    split = node.emit(op.reshape(node.x(0), (n, c, h // block, block, w // block, block)), "blocks")
    order = [0, 3, 5, 1, 2, 4] if node.attr("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    moved = node.emit(op.permute_dims(split, order), "moved")
    return op.reshape(moved, (n, c * block * block, h // block, w // block))


def max_pool(node: Node) -> list[graph.Expr]:
    """With indices: windows are gathered, and the position of the first largest element is looked up."""
    if len([o for o in node.proto.output if o]) < 2:
        return NotImplemented
    from tvmcompress.frontend.onnx.operators.layers import padding

    x, dims = node.x(0), node.shape(0)
    kernel = node.attr("kernel_shape")
    n = len(kernel)
    strides, dilations = node.attr("strides", [1] * n), node.attr("dilations", [1] * n)
    pads = padding(node, dims[2:], kernel, strides, dilations)
    rounding = math.ceil if node.attr("ceil_mode", 0) else math.floor
    out = [
        rounding((d + pads[i] + pads[n + i] - (kernel[i] - 1) * dilations[i] - 1) / strides[i]) + 1
        for i, d in enumerate(dims[2:])
    ]
    where = [
        np.arange(o)[:, None] * s - p + np.arange(k) * d for o, s, p, k, d in zip(out, strides, pads, kernel, dilations)
    ]
    grids = np.meshgrid(*[w.reshape(-1) for w in where], indexing="ij")
    inside = np.ones(grids[0].shape, bool)
    flat = np.zeros(grids[0].shape, "int64")
    column = np.zeros(grids[0].shape, "int64")
    for axis, (grid, size) in enumerate(zip(grids, dims[2:])):
        inside &= (grid >= 0) & (grid < size)
        flat = flat * size + np.clip(grid, 0, size - 1)
        stride = math.prod(dims[2 : 2 + axis]) if node.attr("storage_order", 0) else 0
        column = column + np.clip(grid, 0, size - 1) * stride
    split = [v for pair in zip(out, kernel) for v in pair]
    order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
    windows = [v.reshape(split).transpose(order).reshape(-1, math.prod(kernel)) for v in (flat, inside, column)]
    index, mask, by_column = windows
    kind = graph.dtype(x)
    lowest = np.asarray(-np.inf if kind.startswith("float") else np.iinfo(kind).min).astype(kind)
    lines = node.emit(op.reshape(x, (dims[0], dims[1], math.prod(dims[2:]))), "flat")
    taken = node.emit(take(lines, graph.const(index), 2), "windows")
    taken = node.emit(op.where(graph.const(mask), taken, graph.const(lowest)), "inside")
    best = node.emit(op.argmax(taken, 3), "argmax")
    values = node.emit(op.reshape(node.emit(op.max(taken, [3]), "max"), (dims[0], dims[1], *out)))
    look = by_column if node.attr("storage_order", 0) else index
    offsets = graph.const(np.arange(len(index), dtype="int64") * index.shape[1])
    position = node.emit(op.add(node.emit(op.astype(best, "int64"), "best"), offsets), "position")
    found = node.emit(take(graph.const(np.ascontiguousarray(look).reshape(-1)), position, 0), "found")
    bases = np.arange(dims[0] * dims[1], dtype="int64").reshape(dims[0], dims[1], 1) * math.prod(dims[2:])
    found = node.emit(op.add(found, graph.const(bases)), "index")
    return [values, node.emit(op.reshape(found, (dims[0], dims[1], *out)), "indices")]


TABLE = {
    "LayerNormalization": layer_norm,
    "BatchNormalization": batch_norm,
    "RMSNormalization": rms_norm,
    "LpNormalization": lp_norm,
    "LRN": local_response_norm,
    "SpaceToDepth": space_to_depth,
    "MaxPool": max_pool,
}
