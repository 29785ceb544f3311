"""The operators of PT2E-quantized graphs, `quantized_decomposed.*`, in the internal quantized form.

    quantize_per_tensor(x, scale, zero, low, high, dtype) -> clip(quantize(x, scale, zero), low, high)
    dequantize_per_channel(q, scales, zeros, axis, …)     -> dequantize(q, scales, zeros, axis)

The clip is there only where the range is narrower than the dtype. Zero points arrive as int64 and take the dtype of q.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax

from tvmcompress.frontend.torch.operators import argument
from tvmcompress.ir import graph

FULL_RANGE = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parameter(value: Any, importer: Any, dtype: str, scalar: bool) -> relax.Expr:
    """A scale or zero point as a Relax expression of `dtype`; per-tensor ones become scalars."""
    if isinstance(value, relax.Expr):
        emit = importer.block_builder.emit
        if scalar and graph.shape(value) != ():
            value = emit(relax.op.reshape(value, []))
        return value if graph.dtype(value) == dtype else emit(relax.op.astype(value, dtype))
    return relax.const(np.asarray(value, dtype))


def quantize(node: fx.Node, importer: Any) -> relax.Expr:
    channel = "channel" in node.target.__name__
    low, high, dtype = (argument(node, importer, (4 if channel else 3) + i, n) for i, n in enumerate(LIMITS))
    axis = argument(node, importer, 3, "axis") if channel else -1
    x, scale, zero = importer.retrieve_args(node)[:3]
    kind = dtype_name(dtype)
    emit = importer.block_builder.emit
    scale = parameter(scale, importer, "float32", not channel)
    zero = parameter(zero, importer, kind, not channel)
    q = emit(relax.op.quantize(x, scale, zero, axis, kind))
    if (low, high) == FULL_RANGE.get(kind):
        return q
    return emit(relax.op.clip(q, low, high))


def dequantize(node: fx.Node, importer: Any) -> relax.Expr:
    channel = "channel" in node.target.__name__
    q, scale, zero = importer.retrieve_args(node)[:3]
    axis = argument(node, importer, 3, "axis") if channel else -1
    kind = graph.dtype(q)
    scale = parameter(scale, importer, "float32", not channel)
    if zero is None:
        zero = np.zeros(graph.shape(scale), kind)
    zero = parameter(zero, importer, kind, not channel)
    return importer.block_builder.emit(relax.op.dequantize(q, scale, zero, axis, "float32"))


LIMITS = ("quant_min", "quant_max", "dtype")


def choose_qparams(node: fx.Node, importer: Any) -> relax.Expr:
    """choose_qparams(x, quant_min, quant_max, eps, dtype) -> (scale, zero), asymmetric, from the extremes of x."""
    x, low, high, eps = importer.retrieve_args(node)[:4]
    emit = importer.block_builder.emit
    nil = relax.const(0.0, "float32")
    smallest = emit(relax.op.minimum(emit(relax.op.min(x)), nil))
    largest = emit(relax.op.maximum(emit(relax.op.max(x)), nil))
    if "symmetric" in node.target.__name__:
        reach = emit(relax.op.maximum(emit(relax.op.negative(smallest)), largest))
        scale = emit(relax.op.divide(reach, relax.const((high - low) / 2, "float32")))
    else:
        scale = emit(
            relax.op.divide(emit(relax.op.subtract(largest, smallest)), relax.const(float(high - low), "float32"))
        )
    scale = emit(relax.op.maximum(scale, relax.const(eps, "float32")))
    if "symmetric" in node.target.__name__:
        middle = 128 if dtype_name(argument(node, importer, 4, "dtype")) == "uint8" else 0
        return emit(relax.Tuple([scale, relax.const(middle, "int64")]))
    zero = emit(relax.op.round(emit(relax.op.divide(smallest, scale))))
    zero = emit(relax.op.subtract(relax.const(float(low), "float32"), zero))
    zero = emit(relax.op.clip(zero, low, high))
    return emit(relax.Tuple([scale, emit(relax.op.astype(zero, "int64"))]))


CONVERTERS = {
    "quantize_per_tensor.default": quantize,
    "quantize_per_tensor.tensor": quantize,
    "quantize_per_channel.default": quantize,
    "dequantize_per_tensor.default": dequantize,
    "dequantize_per_tensor.tensor": dequantize,
    "dequantize_per_channel.default": dequantize,
    "choose_qparams.tensor": choose_qparams,
    "choose_qparams_symmetric.tensor": choose_qparams,
}
