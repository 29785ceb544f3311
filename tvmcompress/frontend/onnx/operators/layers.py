"""The anchors: convolutions and matrix products. The anchor itself carries the node's name, its bias `name_bias`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import scalar
from tvmcompress.ir import graph

LAYOUTS = {1: ("NCW", "OIW"), 2: ("NCHW", "OIHW"), 3: ("NCDHW", "OIDHW")}
CONVS = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}


def padding(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """ONNX `pads` (all befores, then all afters), worked out where `auto_pad` says so."""
    auto, n = node.attr("auto_pad", "NOTSET"), len(kernel)
    if auto == "NOTSET":
        return list(node.attr("pads", [0] * 2 * n))
    if auto == "VALID":
        return [0] * 2 * n
    before, after = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before + after


def conv(node: Node) -> graph.Expr:
    return convolve(node, node.x(0), node.x(1), node.x(2) if node.has(2) else None)


def convolve(
    node: Node, x: graph.Expr, weight: graph.Expr, bias: graph.Expr | None, pad_value: float = 0
) -> graph.Expr:
    """A convolution of any of 1 to 3 spatial dimensions, as the node's attributes say, and its bias."""
    dims, kernel_shape = graph.shape(x), graph.shape(weight)
    n = len(dims) - 2
    if n not in CONVS:
        raise ModelError(f"convolution over {n} dimensions; 1 to 3 are supported")
    kernel = kernel_shape[2:]
    strides, dilations = node.attr("strides", [1] * n), node.attr("dilations", [1] * n)
    groups = node.attr("group", 1)
    if dims[1] != kernel_shape[1] * groups:
        raise ModelError(f"{dims[1]} input channels do not fit a weight {kernel_shape} in {groups} group(s)")
    pads = padding(node, dims[2:], kernel, strides, dilations)
    data_layout, kernel_layout = LAYOUTS[n]
    result = CONVS[n](x, weight, strides, pads, dilations, groups, data_layout, kernel_layout)
    result = node.emit(result)
    if bias is None:
        return result
    flat = bias.ty.shape[0] if not graph.has_static_shape(bias) else graph.shape(bias)[0]
    return node.emit(relax.op.add(result, channel_vector(node, bias, int(flat), n)), "bias")


def channel_vector(node: Node, vector: graph.Expr, channels: int, n: int) -> graph.Expr:
    """(C,) as (1, C, 1 …) for `n` spatial dimensions; constants are reshaped at load."""
    shape = (1, channels, *[1] * n)
    if graph.is_const(vector):
        return graph.const(graph.value(vector).reshape(shape))
    return node.emit(relax.op.reshape(vector, shape), "bias_shape")


def gemm(node: Node) -> graph.Expr:
    """alpha A B + beta C, A and B transposed as asked. Known operands are transposed and scaled at load."""
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    a, b = operand(node, 0, node.attr("transA", 0)), operand(node, 1, node.attr("transB", 0))
    result = node.emit(relax.op.matmul(a, b))
    kind = graph.dtype(result)
    if alpha != 1.0:
        result = node.emit(relax.op.multiply(result, scalar(alpha, kind)), "alpha")
    if not node.has(2) or beta == 0.0:
        return result
    c = node.known(2)
    if c is not None and beta != 1.0 and not graph.is_const(node.x(2)):
        bias = node.emit(relax.op.multiply(node.x(2), scalar(beta, kind)), "beta")
    elif c is not None and beta != 1.0:
        bias = graph.const((c * beta).astype(c.dtype))
    else:
        bias = node.x(2)
        if beta != 1.0:
            bias = node.emit(relax.op.multiply(bias, scalar(beta, kind)), "beta")
    return node.emit(relax.op.add(result, bias), "bias")


def operand(node: Node, index: int, transposed: int) -> graph.Expr:
    """A Gemm operand as a matrix in order; a constant, or a dequantized constant, is transposed at load."""
    x = node.x(index)
    if not transposed:
        return x
    if graph.is_const(x):
        return graph.const(np.ascontiguousarray(graph.value(x).T))
    weight = transposed_weight(node, x)
    return weight if weight is not None else node.emit(relax.op.permute_dims(x, [1, 0]), "transpose")


def transposed_weight(node: Node, x: graph.Expr) -> graph.Expr | None:
    """dequantize(W, s, z, axis) transposed into dequantize(W.T, s, z, 1 - axis): the weight stays an operand."""
    definition = node.importer.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
    if definition is None or graph.op_name(definition) != "relax.dequantize" or not graph.is_const(definition.args[0]):
        return None
    data, scale, zero = definition.args
    flipped = graph.const(np.ascontiguousarray(graph.value(data).T))
    axis = 1 - definition.attrs.axis % 2
    return node.emit(relax.op.dequantize(flipped, scale, zero, axis, definition.attrs.out_dtype), "weight")


def matmul(node: Node) -> graph.Expr:
    return relax.op.matmul(node.x(0), node.x(1))


def conv_transpose(node: Node) -> graph.Expr | list:
    """With `output_shape`, which decides the padding; else TVM's converter does it."""
    wanted = node.attr("output_shape")
    if wanted is None:
        return NotImplemented
    sizes, kernel = node.shape(0)[2:], node.shape(1)[2:]
    n = len(kernel)
    strides, dilations = node.attr("strides", [1] * n), node.attr("dilations", [1] * n)
    extra = list(node.attr("output_padding", [0] * n))
    before, after = [], []
    for i, out in enumerate(wanted[-n:]):
        total = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - out
        extra[i] += max(-total, 0)
        total = max(total, 0)
        half = total // 2 if node.attr("auto_pad", "NOTSET") == "SAME_UPPER" else total - total // 2
        before.append(half)
        after.append(total - half)
    attrs = {k: v for k, v in node.attributes.items() if k in ("strides", "dilations", "group", "kernel_shape")}
    return node.call("ConvTranspose", node.inputs, pads=before + after, output_padding=extra, **attrs)


TABLE = {"ConvTranspose": conv_transpose, "Conv": conv, "Gemm": gemm, "MatMul": matmul}
