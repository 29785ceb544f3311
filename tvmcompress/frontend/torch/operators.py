"""Operators of torch whose stock import is missing or is not in the form that the rest of the compiler reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx
from tvm import relax

from tvmcompress.ir import graph


def argument(node: fx.Node, importer: Any, index: int, name: str, default: Any = None) -> Any:
    """An argument by place or by name, with nodes replaced by what they stand for."""
    value = node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
    return importer._retrieve_args(value)


def linear(node: fx.Node, importer: Any) -> relax.Expr:
    """linear(x (…, i), w (o, i), b (o,)) -> add(matmul(x, permute_dims(w)), b); constants are transposed afterwards."""
    emit = importer.block_builder.emit
    x, weight = importer.retrieve_args(node)[:2]
    bias = argument(node, importer, 2, "bias")
    out = emit(relax.op.matmul(x, emit(relax.op.permute_dims(weight))))
    return out if bias is None else emit(relax.op.add(out, bias))


def matmul(node: fx.Node, importer: Any) -> relax.Expr:
    return importer.block_builder.emit(relax.op.matmul(*importer.retrieve_args(node)[:2]))


def attention(node: fx.Node, importer: Any) -> relax.Expr:
    """q (…, l, e), k (…, s, e), v (…, s, d) -> softmax(q kᵀ scale + mask) v, as two matrix products and a softmax."""
    emit = importer.block_builder.emit
    q, k, v = importer.retrieve_args(node)[:3]
    mask = argument(node, importer, 3, "attn_mask")
    causal = argument(node, importer, 5, "is_causal", False)
    scale = argument(node, importer, 6, "scale")
    if argument(node, importer, 7, "enable_gqa", False):
        repeats = graph.shape(q)[-3] // graph.shape(k)[-3]
        k, v = (emit(relax.op.repeat(t, repeats, axis=len(graph.shape(t)) - 3)) for t in (k, v))
    rank, width = len(graph.shape(k)), graph.shape(q)[-1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    transposed = emit(relax.op.permute_dims(k, [*range(rank - 2), rank - 1, rank - 2]))
    scores = emit(relax.op.matmul(emit(relax.op.multiply(q, relax.const(scale, graph.dtype(q)))), transposed))
    lowest = relax.const(np.finfo(np.float32).min / 2, graph.dtype(q))
    if causal:
        rows, columns = graph.shape(q)[-2], graph.shape(k)[-2]
        mask = relax.const(np.tril(np.ones((rows, columns), bool)))
    if mask is not None and graph.dtype(mask) == "bool":
        scores = emit(relax.op.where(mask, scores, lowest))
    elif mask is not None:
        scores = emit(relax.op.add(scores, mask))
    return emit(relax.op.matmul(emit(relax.op.nn.softmax(scores, axis=-1)), v))


def embedding(node: fx.Node, importer: Any) -> relax.Expr:
    """embedding(table, ids) -> take(table, ids); an id out of range takes the nearest row instead of crashing."""
    table, ids = importer.retrieve_args(node)[:2]
    return importer.block_builder.emit(relax.op.take(table, ids, axis=0, mode="clip"))


CONVERTERS = {
    "embedding.default": embedding,
    "linear.default": linear,
    "matmul.default": matmul,
    "mm.default": matmul,
    "bmm.default": matmul,
    "scaled_dot_product_attention.default": attention,
}
