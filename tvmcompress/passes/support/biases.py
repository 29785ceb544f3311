"""The correction of biases: by how much changed weights shift the mean of each output, and where that is taken back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.layers import Layer


def mean_shift(layer: Layer, lost: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """By how much taking `lost` from a layer's weights lowers the mean of each output channel; see `along_output`.

    E[W x] - E[(W - lost) x] = sum over inputs of lost E[x]; padding at the borders is left out of account. `mean`: of
    each channel of the layer's input.
    """
    if layer.kind == "matmul":
        lost = lost.reshape(-1, *lost.shape[-2:]).mean(axis=0)
        return (mean @ lost).astype(np.float32)
    attrs = layer.call.attrs
    taps = tuple(i for i in range(lost.ndim) if i not in (layer.channel, layer.inner))
    lost = np.moveaxis(lost, (layer.channel, layer.inner), (-1, -2)).sum(
        axis=tuple(range(len(taps)))
    )  # (inner, channel)
    groups = int(attrs.groups)
    if layer.kind == "conv_transpose":  # (I, O/g); a pixel of the output sees one in prod(strides) of the taps
        lost = lost.reshape(groups, -1, lost.shape[1]) / np.prod([int(s) for s in attrs.strides])
    else:  # (I/g, O)
        lost = np.moveaxis(lost.reshape(lost.shape[0], groups, -1), 1, 0)
    return along_output(layer, np.einsum("gi,gio->go", mean.reshape(groups, -1), lost).reshape(-1))


def along_output(layer: Layer, shift: np.ndarray) -> np.ndarray:
    """One number for each output channel as float32, shaped to be added to the layer's output."""
    if layer.kind == "matmul":
        return shift.astype(np.float32).reshape(-1 if layer.weight else (-1, 1))
    return shift.astype(np.float32).reshape([-1 if axis == "C" else 1 for axis in str(layer.call.attrs.data_layout)])


def adds_constant(expr: graph.Expr) -> bool:
    return graph.op_name(expr) == "relax.add" and any(graph.is_const(a) for a in expr.args)


def with_bias(expr: relax.Call, shift: np.ndarray) -> relax.Call:
    """The addition with `shift` added to its constant."""
    return relax.op.add(*[graph.const(graph.value(a) + shift) if graph.is_const(a) else a for a in expr.args])


def additions(mod: tvm.IRModule) -> Mapping[str, relax.Var]:
    """From the names of tensors that nothing but the addition of a constant reads, to that addition."""
    known, results = graph.definitions(mod), {r for r in graph.results(mod) if isinstance(r, relax.Var)}
    found = {}
    for var, readers in graph.consumers(mod).items():
        if len(readers) == 1 and var not in results and adds_constant(known[readers[0]]):
            found[var.name] = readers[0]
    return found
