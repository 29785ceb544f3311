"""ClusterWeights: the weights of a layer share few values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph, ops
from tvmcompress.ir.macs import constants
from tvmcompress.passes.support import clustering
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.layers import Layer, layers, skipped
from tvmcompress.passes.support.select import WIDE, notes


@dataclass(frozen=True)
class ClusterWeights(Pass):
    """conv(x, W) -> conv(x, reshape(look_up(packed, codebook), shape of W))                           sharing "kmeans"
    conv(x, dequantize(Q, s)) -> conv(x, dequantize(reshape(look_up(packed, codebook), shape of Q), s))
    conv(x, W) -> conv(x, hashed(values, shape of W))                                                  sharing "hashed"

    kmeans: every weight becomes the nearest of `clusters` values, stored once, and is stored as their number in 4 bits
    (up to 16 values) or 8 (up to 256); up to 4 and 2 values take 2 bits and 1. The values have the least squared error;
    those of weights that are int8 already are int8, found with each channel's scale in mind. Zeros stay zero.
    hashed: a hash of its position decides which of `buckets` (a share of the layer's size) a weight belongs to, and no
    number is stored; the value is the mean of the bucket. Made for training with it: without, expect large errors.

    Size: 16 values an eighth of float32. Unpacked when the package is loaded, so arithmetic, and its speed, stay those
    of the layer as it was. Han et al., "Deep Compression", 2016; Chen et al., "Compressing neural networks with the
    hashing trick", 2015.
    """

    clusters: int = option(16, "values that the weights of a layer share", low=2, high=256)
    sharing: str = option("kmeans", "which weights share a value", choices=("kmeans", "hashed"))
    group: int = option(0, "output channels that share a codebook; 0: the whole layer", low=0)
    buckets: float = option(0.125, "values as a share of the weights, for sharing 'hashed'", low=0.0001, high=1.0)
    preserve_zeros: bool = option(True, "zeros, as pruning leaves them, stay zero")
    min_size: int = option(1024, "weights with fewer elements stay as they are", low=0)
    skip: tuple[str, ...] = option((), "names of layers to leave alone; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), "kinds of layers to leave alone: conv, depthwise, conv_transpose, matmul")

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        everything, defs, fixed = list(layers(mod)), graph.definitions(mod), constants(mod)
        reasons = skipped(everything, self.skip, self.skip_kinds, self.key)
        weights: dict[str, Weight] = {}
        for layer in everything:
            if layer.name not in reasons:
                weight = weight_of(layer, defs)
                if why := self.why_not(layer, weight, fixed):
                    reasons[layer.name] = why
                elif weight is not None:
                    weights[layer.name] = weight
        readers = {weight.reader: weight for weight in weights.values()}
        made: dict[tuple, Made] = {}  # constants that are equal are stored once: steps of a recurrent layer stay alike
        rows: dict[relax.Var, dict] = {}

        def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
            weight = readers.get(var)
            if weight is None:
                return None
            key = weight.key()
            if key not in made:
                made[key] = self.make(rewriter, weight)
            rows[var] = made[key].row
            args = [made[key].expr if i == weight.place else a for i, a in enumerate(expr.args)]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args)

        after = graph.rewrite(mod, visit) if readers else mod
        more = {name: rows[weight.reader] for name, weight in weights.items()}
        return Outcome(after, notes(mod, self.key, reasons, done="clustered", more=more))

    def why_not(self, layer: Layer, weight: Weight | None, fixed: set[relax.Var]) -> str:
        if weight is None:
            stored = any(a in fixed for a in layer.call.args[:2])
            return "already compressed" if stored else "its weights are not constant"
        size, dtype = weight.array.size, str(weight.array.dtype)
        if dtype not in ("float32", "int8"):
            return f"its weights are {dtype}: {WIDE}"
        if size < self.min_size:
            return f"smaller than min_size = {self.min_size}"
        if dtype == "int8" and (self.sharing == "hashed" or self.clusters > 16):
            return "its weights are 8-bit integers, which only 16 values or fewer make smaller"
        if self.sharing == "hashed" and self.preserve_zeros and not weight.array.all():
            return "it holds zeros, which hashed sharing would fill"
        return ""

    def make(self, rewriter: graph.Rewriter, weight: Weight) -> Made:
        name, array = weight.layer.name, weight.array
        if self.sharing == "hashed":
            values = clustering.hashed_means(array, max(1, round(self.buckets * array.size)))
            expr = rewriter.emit(ops.hashed(graph.const(values), array.shape), f"{name}_w")
            found = values[ops.bucket(np.arange(array.size, dtype=np.int64), len(values))].reshape(array.shape)
            return Made(expr, self.row(weight, found, len(values), values.nbytes))
        books = self.books(weight)
        apart = books > 1 and weight.channel > 0
        moved = np.moveaxis(array, weight.channel, 0) if apart else array
        scales = None if weight.scales is None else np.broadcast_to(weight.scales**2, array.shape)
        if scales is not None:
            scales = (np.moveaxis(scales, weight.channel, 0) if apart else scales).reshape(books, -1)
        shared = clustering.share(moved.reshape(books, -1), self.clusters, scales, self.preserve_zeros)
        expr = emit(rewriter, name, shared, moved.shape, weight.channel if apart else 0)
        found = np.moveaxis(shared.values.reshape(moved.shape), 0, weight.channel if apart else 0)
        return Made(expr, self.row(weight, found, shared.used, shared.nbytes))

    def books(self, weight: Weight) -> int:
        """Codebooks of a layer: groups of `group` channels, or the next more that divide them."""
        channels = weight.array.shape[weight.channel] if weight.channel >= 0 else 1
        group = self.group or channels
        return channels // next(n for n in range(min(group, channels), channels + 1) if channels % n == 0)

    def row(self, weight: Weight, found: np.ndarray, values: int, nbytes: int) -> dict:
        scale = 1.0 if weight.scales is None else weight.scales
        signal, noise = (
            float(np.square(difference * scale, dtype=np.float64).sum())
            for difference in (weight.array, weight.array.astype(np.float32) - found)
        )
        return {
            "values": values,
            "weights_snr_db": round(10 * np.log10(signal / noise), 2) if signal > 0 and noise > 0 else None,
            "bytes_before": weight.array.nbytes,
            "bytes_after": nbytes,
        }


@dataclass(frozen=True)
class Weight:
    """A constant that a layer's weights are made of: float32, or int8 with `scales` that can be multiplied with it.

    It is argument `place` of the binding `reader`; `channel` is its axis of output channels, negative without one.
    """

    layer: Layer
    reader: relax.Var
    place: int
    array: np.ndarray
    channel: int
    scales: np.ndarray | None

    def key(self) -> tuple:
        """Equal for constants that are, and are shared alike."""
        parts = [self.array] if self.scales is None else [self.array, self.scales]
        digests = [hashlib.blake2b(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data).digest() for a in parts]
        return self.array.shape, str(self.array.dtype), self.channel, *digests


@dataclass(frozen=True)
class Made:
    expr: graph.Expr
    row: dict


def weight_of(layer: Layer, defs: Mapping[relax.Var, graph.Expr]) -> Weight | None:
    """The layer's own constant, or the one whose dequantization it reads; None where there is neither."""
    if layer.weight is not None:
        return Weight(layer, layer.var, layer.weight, layer.weights(), layer.channel, None)
    for at, operand in enumerate(layer.call.args[:2]):
        call = defs.get(operand)
        if call is None or graph.op_name(call) != "relax.dequantize" or not all(graph.is_const(a) for a in call.args):
            continue
        q, scale, zero = (graph.value(a) for a in call.args)
        if q.dtype != np.int8 or zero.any():
            return None
        along = [1] * q.ndim
        along[int(call.attrs.axis) % q.ndim] = -1
        scales = scale.astype(np.float32).reshape(along if scale.size > 1 else ())
        channel = layer.channel if layer.kind != "attention" else q.ndim - 1 - (at == 0)
        return Weight(layer, operand, 0, q, channel, scales)
    return None


def emit(
    rewriter: graph.Rewriter, name: str, shared: clustering.Shared, shape: tuple[int, ...], channel: int
) -> graph.Expr:
    """The weight, bound to `name`_w: looked up, what fills the last byte cut off, in its shape, channels in place."""
    packed = graph.const(ops.pack_indices(shared.indices, shared.bits))
    expr = rewriter.emit(ops.look_up(packed, graph.const(shared.codebook)), f"{name}_ws")
    columns = shared.indices.shape[1]
    if graph.shape(expr)[1] != columns:
        expr = rewriter.emit(relax.op.strided_slice(expr, [1], [0], [columns]), f"{name}_wc")
    if not channel:
        return rewriter.emit(relax.op.reshape(expr, shape), f"{name}_w")
    expr = rewriter.emit(relax.op.reshape(expr, shape), f"{name}_wp")
    axes = [*range(1, channel + 1), 0, *range(channel + 1, len(shape))]
    return rewriter.emit(relax.op.permute_dims(expr, axes), f"{name}_w")
