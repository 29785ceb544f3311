"""What the layers that read pruned channels lose is given back, as far as samples say, before the channels are cut.

bias:            y + W_r E[x_r]
least_squares:   (W_k + W_r A) x_k + W_r (E[x_r] - A E[x_k])     A = C_rk (C_kk + λ diag C_kk)^-1

with k the channels that stay, r those that go, and C the covariance of channels over samples, positions and taps alike.
For matrix products and 1x1 convolutions the second is the refit of least squares (ThiNet, Luo et al. 2017; He et al.
2017); weights that are zero already stay so. For larger kernels each tap takes what the channels of its own pixel tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.sparsity import FEW_ZEROS
from tvmcompress.passes.support.channel_flow import Flow
from tvmcompress.passes.support.channel_moments import Moments, Place
from tvmcompress.passes.support.channel_products import Site
from tvmcompress.passes.support.channel_weights import by_channels, in_layout
from tvmcompress.passes.support.layers import Layer

DAMPING = 1e-4  # of each variance


@dataclass(frozen=True)
class Change:
    weight: np.ndarray
    shift: np.ndarray  # shaped to be added to the layer's output


def repaired(
    mod: tvm.IRModule, flow: Flow, alive: np.ndarray, moments: Mapping[Place, Moments]
) -> tuple[tvm.IRModule, dict[str, str]]:
    """`mod` with the repair in its weights and biases, channels still all there; and what was not repaired, and why."""
    shared = Counter(site.layer.call.args[site.layer.weight] for site in flow.sites)
    changes, reasons = {}, {}
    for site in flow.sites:
        if site.depthwise or site.inputs is None or alive[site.inputs].all():
            continue
        if shared[site.layer.call.args[site.layer.weight]] > 1:
            reasons[site.layer.name] = "not repaired: several layers share its weights"
            continue
        changes[site.layer.var] = change(site, alive, moments[site.reads])
    biases = existing_biases(mod, changes)

    def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
        if var in biases:
            shift = changes[biases[var]].shift
            return relax.op.add(*[graph.const(graph.value(a) + shift) if graph.is_const(a) else a for a in expr.args])
        if var not in changes:
            return None
        weight = graph.const(changes[var].weight)
        args = [a if isinstance(a, relax.Var) else weight for a in expr.args]
        call = relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        if var in biases.values():
            return call
        return relax.op.add(rewriter.emit(call, var.name), graph.const(changes[var].shift))

    return graph.rewrite(mod, visit), reasons


def change(site: Site, alive: np.ndarray, moments: Moments) -> Change:
    layer = site.layer
    parts = by_channels(layer, layer.weights().astype(np.float64))
    zeros = pruned(parts)
    groups, _, inputs, _ = parts.shape
    assert site.inputs is not None
    kept, mean = alive[site.inputs].reshape(groups, inputs), moments.mean.reshape(groups, inputs)
    shift = np.zeros(parts.shape[:2])
    for g in range(groups):
        k, r = np.flatnonzero(kept[g]), np.flatnonzero(~kept[g])
        told = regression(moments, g * inputs + k, g * inputs + r)
        more = np.einsum("ort,rk->okt", parts[g][:, r], told, optimize=True)
        more[zeros[g][:, k]] = 0
        shift[g] = np.einsum("ort,r->o", parts[g][:, r], mean[g, r]) - np.einsum("okt,k->o", more, mean[g, k])
        parts[g][:, k] += more
        parts[g][:, r] = 0
    if layer.kind == "conv_transpose":  # a pixel of the output sees one in so many taps
        shift /= np.prod([int(s) for s in layer.call.attrs.strides])
    return Change(in_layout(layer, parts), shift.reshape(along_output(layer)).astype(np.float32))


def pruned(weight: np.ndarray) -> np.ndarray:
    """The zeros that an earlier pass, or training, has put into weights, and that stay; none where there are few."""
    zeros = weight == 0
    return zeros if zeros.mean() > 1 - FEW_ZEROS else np.zeros_like(zeros)


def regression(moments: Moments, kept: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """A, (gone, kept): what the channels that stay tell of the others. Zeros where no covariance was taken."""
    covariance = moments.covariance
    if covariance is None:
        return np.zeros((len(gone), len(kept)))
    inner = covariance[np.ix_(kept, kept)]
    damped = inner + np.diag(DAMPING * np.diag(inner) + 1e-12)
    return np.linalg.solve(damped, covariance[np.ix_(kept, gone)]).T


def along_output(layer: Layer) -> tuple[int, ...]:
    """The shape of one value for each output channel."""
    if layer.kind == "matmul":
        return (-1,) if layer.weight == 1 else (-1, 1)
    return tuple(-1 if letter == "C" else 1 for letter in str(layer.call.attrs.data_layout))


def existing_biases(mod: tvm.IRModule, changes: Mapping[relax.Var, Change]) -> dict[relax.Var, relax.Var]:
    """From an addition of a constant to the changed layer whose only reader it is."""
    defs, readers = graph.definitions(mod), graph.consumers(mod)
    results = {r for r in graph.results(mod) if isinstance(r, relax.Var)}
    found = {}
    for var in changes:
        reader = readers[var][0] if len(readers.get(var, ())) == 1 and var not in results else None
        call = defs.get(reader)
        if (
            isinstance(call, relax.Call)
            and graph.op_name(call) == "relax.add"
            and any(graph.is_const(a) for a in call.args)
        ):
            found[reader] = var
    return found
