"""Operators of ONNX Runtime's own domain, com.microsoft: the quantized ones and the common fusions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators import quantized as q
from tvmcompress.frontend.onnx.operators.common import scalar
from tvmcompress.frontend.onnx.operators.layers import convolve
from tvmcompress.frontend.onnx.operators.recurrent import activation
from tvmcompress.ir import graph

op = relax.op


def qgemm(node: Node) -> graph.Expr:
    """A, a_scale, a_zero, B, b_scale, b_zero, C (int32), y_scale, y_zero; without y_scale the result is float32."""
    trans_a, trans_b, alpha = node.attr("transA", 0), node.attr("transB", 0), node.attr("alpha", 1.0)
    a = q.dequantized(node, 0, 1, 2)
    if trans_a:
        a = node.emit(op.permute_dims(a, [1, 0]), "transpose")
    b = gemm_weight(node, trans_b)
    y = node.emit(op.matmul(a, b))
    if alpha != 1.0:
        y = node.emit(op.multiply(y, scalar(alpha, "float32")), "alpha")
    if node.has(6):
        shape = node.shape(6)
        bias = q.int_bias(node, 6, 1, 4, shape, max(len(shape) - 1, 0))
        if alpha != 1.0:  # the bias is in units of alpha * a_scale * b_scale
            bias = node.emit(op.multiply(bias, scalar(alpha, "float32")), "bias_alpha")
        y = node.emit(op.add(y, bias), "bias")
    return q.requantized(node, y, 7, 8, q.out_kind(node, 8)) if node.has(7) else y


def gemm_weight(node: Node, transposed: int) -> graph.Expr:
    """B as (K, N) under its dequantize; a known one is transposed at load. Its scale goes by column."""
    known = node.known(3)
    if not transposed or known is None:
        b = q.dequantized(node, 3, 4, 5, axis=-2 if transposed else -1)
        return node.emit(op.permute_dims(b, [1, 0]), "weight") if transposed else b
    scale = q.vector(node, 4)
    zero = q.vector(node, 5) if node.has(5) else q.zero_like(node, scale, node.dtype(3))
    flipped = graph.const(np.ascontiguousarray(known.T))
    return node.emit(op.dequantize(flipped, scale, zero, 1, "float32"), "weight")


def qlinear_binary(function: Callable) -> Callable:
    """A, a_scale, a_zero, B, b_scale, b_zero, y_scale, y_zero."""

    def convert(node: Node) -> graph.Expr:
        y = function(q.dequantized(node, 0, 1, 2), q.dequantized(node, 3, 4, 5))
        return q.requantized(node, y, 6, 7, q.out_kind(node, 7))

    return convert


def qlinear_unary(function: Callable[[Node, graph.Expr], graph.Expr]) -> Callable:
    """X, x_scale, x_zero, y_scale, y_zero."""

    def convert(node: Node) -> graph.Expr:
        return q.requantized(node, function(node, q.dequantized(node, 0, 1, 2)), 3, 4, q.out_kind(node, 4))

    return convert


def leaky_relu(node: Node, x: graph.Expr) -> graph.Expr:
    return op.nn.leakyrelu(x, node.attr("alpha", 0.01))


def softmax(node: Node, x: graph.Expr) -> graph.Expr:
    """Before opset 13 everything from the axis on is one distribution."""
    dims = graph.shape(x)
    axis = node.attr("axis", -1 if node.attr("opset", 13) >= 13 else 1) % len(dims)
    if node.attr("opset", 13) >= 13 or axis == len(dims) - 1:
        return op.nn.softmax(x, axis)
    flat = node.emit(op.reshape(x, (int(np.prod(dims[:axis])), int(np.prod(dims[axis:])))), "flat")
    return op.reshape(node.emit(op.nn.softmax(flat, -1), "softmax"), dims)


def global_average(node: Node, x: graph.Expr) -> graph.Expr:
    dims = graph.shape(x)
    if node.attr("channels_last", 0):
        return op.mean(x, list(range(1, len(dims) - 1)), True)
    return op.nn.adaptive_avg_pool2d(x, (1, 1)) if len(dims) == 4 else op.mean(x, list(range(2, len(dims))), True)


def average(node: Node, x: graph.Expr) -> graph.Expr:
    if node.attr("channels_last", 0):
        raise ModelError("channels_last is not supported; export the model in NCHW")
    given = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad")
    attrs = {k: v for k, v in node.attributes.items() if k in given}
    return node.as_expr(node.call("AveragePool", [x], "", 13, **attrs)[0])


def qlinear_concat(node: Node) -> graph.Expr:
    """y_scale, y_zero, then (tensor, scale, zero) by threes."""
    parts = [q.dequantized(node, i, i + 1, i + 2) for i in range(2, len(node.inputs), 3)]
    axis = node.attr("axis", 0) % len(graph.shape(parts[0]))
    return q.requantized(node, op.concat(parts, axis), 0, 1, q.out_kind(node, 1, 2))


def matmul_integer_to_float(node: Node) -> graph.Expr:
    """A, B, a_scale, b_scale, a_zero, b_zero, bias (float)."""
    a, b = q.dequantized(node, 0, 2, 4, axis=-2), q.dequantized(node, 1, 3, 5, axis=-1)
    return with_bias(node, node.emit(op.matmul(a, b)), 6)


def dynamic_quantize_matmul(node: Node) -> graph.Expr:
    """A (float), B, b_scale, b_zero, bias (float): A is quantized to uint8 by its own range."""
    data, scale, zero = q.dynamic(node, node.x(0))
    a = node.emit(op.dequantize(data, scale, zero, -1, "float32"), "input0")
    b = q.dequantized(node, 1, 2, 3, axis=-1)
    return with_bias(node, node.emit(op.matmul(a, b)), 4)


def with_bias(node: Node, y: graph.Expr, index: int) -> graph.Expr:
    return node.emit(op.add(y, node.x(index)), "bias") if node.has(index) else y


def activated(node: Node, y: graph.Expr, name: str, params: Sequence[float]) -> graph.Expr:
    """The activation of a fused operator, with its parameters in order."""
    if not name:
        return y
    if name == "Clip":
        low, high = (scalar(p, graph.dtype(y)) for p in params)
        return node.emit(op.minimum(op.maximum(y, low), high), "clip")
    alpha, beta = [*params, None, None][:2]
    return node.emit(activation(name, alpha, beta, graph.dtype(y))(y), name.lower())


def fused_conv(node: Node) -> graph.Expr:
    """X, W, B, Z (added before the activation)."""
    y = convolve(node, node.x(0), node.x(1), node.x(2) if node.has(2) else None)
    y = node.emit(op.add(y, node.x(3)), "sum") if node.has(3) else y
    return activated(node, y, node.attr("activation", ""), node.attr("activation_params", []))


def fused_gemm(node: Node) -> graph.Expr:
    attrs = {k: v for k, v in node.attributes.items() if k in ("alpha", "beta", "transA", "transB")}
    y = node.as_expr(node.call("Gemm", node.inputs, "", 13, **attrs)[0])
    names = ("activation_alpha", "activation_beta")
    return activated(node, y, node.attr("activation", ""), [node.attr(n) for n in names if n in node.attributes])


def fused_matmul(node: Node) -> graph.Expr:
    """alpha A B with the last two axes swapped as asked."""
    sides = []
    for index, flag in enumerate(("transA", "transB")):
        x = node.x(index)
        if node.attr(flag.replace("trans", "transBatch"), 0):
            raise ModelError(f"{flag.replace('trans', 'transBatch')} is not supported")
        rank = len(graph.shape(x))
        order = [*range(rank - 2), rank - 1, rank - 2]
        swap = node.attr(flag, 0) and rank > 1
        if swap and graph.is_const(x):
            x = graph.const(np.ascontiguousarray(graph.value(x).transpose(order)))
        sides.append(node.emit(op.permute_dims(x, order), "transpose") if swap and not graph.is_const(x) else x)
    y, alpha = node.emit(op.matmul(*sides)), node.attr("alpha", 1.0)
    return y if alpha == 1.0 else node.emit(op.multiply(y, scalar(alpha, graph.dtype(y))), "alpha")


def gelu(node: Node) -> graph.Expr:
    return op.nn.gelu(node.x(0))


def bias_gelu(node: Node) -> graph.Expr:
    return op.nn.gelu(node.emit(op.add(node.x(0), node.x(1)), "bias"))


def fast_gelu(node: Node) -> graph.Expr:
    return op.nn.gelu_tanh(with_bias(node, node.x(0), 1))


def skip_layer_norm(node: Node) -> list[graph.Expr | None]:
    """input, skip, gamma, beta, bias; outputs: result, (mean, inverse deviation: not given), the sum."""
    total = with_bias(node, node.emit(op.add(node.x(0), node.x(1)), "skip"), 4)
    kind, width = graph.dtype(total), graph.shape(total)[-1]
    beta = node.x(3) if node.has(3) else graph.const(np.zeros(width, kind))
    y = op.nn.layer_norm(total, node.x(2), beta, [-1], node.attr("epsilon", 1e-12))
    return [node.emit(y), None, None, total]


TABLE: dict[str, Callable] = {
    "QuantizeLinear": q.quantize_linear,
    "DequantizeLinear": q.dequantize_linear,
    "QGemm": qgemm,
    "QLinearAdd": qlinear_binary(op.add),
    "QLinearMul": qlinear_binary(op.multiply),
    "QLinearSigmoid": qlinear_unary(lambda _, x: op.sigmoid(x)),
    "QLinearLeakyRelu": qlinear_unary(leaky_relu),
    "QLinearSoftmax": qlinear_unary(softmax),
    "QLinearGlobalAveragePool": qlinear_unary(global_average),
    "QLinearAveragePool": qlinear_unary(average),
    "QLinearConcat": qlinear_concat,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "Gelu": gelu,
    "BiasGelu": bias_gelu,
    "FastGelu": fast_gelu,
    "SkipLayerNormalization": skip_layer_norm,
}
