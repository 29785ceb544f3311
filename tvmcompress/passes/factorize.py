"""Factorize: layers of low rank in place of large ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import RecipeError, SampleError
from tvmcompress.ir import graph
from tvmcompress.ir.sparsity import FEW_ZEROS, LEAST_SIDE, matrix_of, sparsity
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.clock import clock
from tvmcompress.passes.support.layers import Layer
from tvmcompress.passes.support.low_rank import Cp, Factors, Part, Place, Svd, Tucker, text
from tvmcompress.passes.support.moments import output_moments
from tvmcompress.passes.support.select import notes, recurrent, select

WORTH = 0.9  # a layer more is a pass more over memory: what saves less than a tenth is left alone


@dataclass(frozen=True)
class Factorize(Pass):
    """matmul(x, W) -> matmul(matmul(x, A), B)                                        svd: A (K, r), B (r, N)
    conv(x, W) -> conv(conv(x, A), B)                                        svd: A (r, I, kh, kw), B (O, r, 1, 1)
    conv(x, W) -> conv(conv(conv(x, A), C), B)          tucker: A (i, I, 1, 1), C (o, i, kh, kw), B (O, o, 1, 1)
    conv(x, W) -> conv(conv(conv(conv(x, A), C), D), B)     cp: A (r, I, 1, 1), C and D depthwise, B (O, r, 1, 1)

    Layers NAME_a, NAME_b … before the last, which keeps the layer's name. `auto` is svd for matrix products and 1x1
    convolutions, tucker for larger kernels. Ranks are the least that keep a share `energy` of the squared weights, or,
    with `error`, of svd alone, the least by which the layer's own output on samples changes no more than that (root of
    the summed squares, relative). Layers that would save less than a tenth of their multiply-accumulates are left
    alone, and so are grouped convolutions and steps of recurrent layers, which are one kernel as they are. `ratio`
    lowers ranks until no more than that share of a layer's multiply-accumulates is left. With `target` all this goes by
    time, as estimated there: what would get slower stays, and `ratio` is a budget of it.

    tucker: Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications",
    2016; cp: Lebedev et al., "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", 2015; svd
    by outputs: Zhang et al., "Accelerating very deep convolutional networks for classification and detection", 2016.
    """

    method: str = option("auto", "how a layer is divided", choices=("auto", "svd", "tucker", "cp"))
    energy: float = option(0.9, "share of the squared weights that is kept", low=0.0, high=1.0)
    error: float = option(0.0, "instead: relative error of a layer's output on samples; 0: go by energy", low=0.0)
    ratio: float = option(0.0, "multiply-accumulates (with target: time) of a layer that may be left, as a share; "
                          "0: as many as it takes", low=0.0, high=1.0)  # fmt: skip
    target: str = option("", "weigh layers by their time on this target, as estimated; empty: by multiply-accumulates")
    round_to: int = option(16, "ranks are multiples of this, where the layer is large enough", low=1)
    min_size: int = option(4096, "layers with fewer weights are left alone", low=0)
    skip: tuple[str, ...] = option((), "names of layers to leave alone; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), "kinds of layers to leave alone: conv, matmul")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.energy:
            raise RecipeError("factorize: energy must be above 0, which would keep nothing; try 0.9")
        if not self.error < 1:
            raise RecipeError(f"factorize: error must be below 1, which is no output at all, got {self.error}; try 0.1")
        if self.error and self.method in ("tucker", "cp"):
            raise RecipeError(f"factorize: error is kept by svd alone, got method '{self.method}'; give energy instead")

    @property
    def needs_samples(self) -> bool:  # type: ignore[override]
        return self.error > 0

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        chosen, reasons = select(mod, self.key, self.skip, self.skip_kinds, self.why_not)
        steps = {layer.name for loop in recurrent(mod, chosen) for layer in loop}
        reasons |= dict.fromkeys(steps, "a step of a recurrent layer, which is one kernel as it is")
        chosen = [layer for layer in chosen if layer.name not in steps]
        moments = self.measure(mod, chosen, samples)
        chains: dict[relax.Var, Chain] = {}
        for layer in chosen:
            found = self.factors(layer, moments.get(layer.name))
            if isinstance(found, str):
                reasons[layer.name] = found
            else:
                chains[layer.var] = found

        def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
            return chains[var].emit(rewriter, expr) if var in chains else None

        after = graph.rewrite(mod, visit) if chains else mod
        more = {var.name: chain.row for var, chain in chains.items()}
        return Outcome(after, notes(mod, self.key, reasons, done="factorized", more=more))

    def why_not(self, layer: Layer) -> str:
        if layer.weight is None:
            return "its weights are not constant"
        if layer.kind == "conv_transpose":
            return "a transposed convolution"
        if layer.kind == "depthwise" or (layer.kind == "conv" and int(layer.call.attrs.groups) > 1):
            return "its channels are in groups, each small already"
        if layer.kind == "conv" and not str(layer.call.attrs.kernel_layout).startswith("OI"):
            return f"its weights lie in the layout {layer.call.attrs.kernel_layout}, wanted OI…"
        if layer.kind == "conv" and str(layer.call.attrs.out_layout) not in ("", str(layer.call.attrs.data_layout)):
            return "its result has another layout than its input"
        if layer.kind == "matmul" and len(graph.shape(layer.call.args[layer.weight])) != 2:
            return "its weights are no matrix"
        weight = layer.weights()
        if weight.size < self.min_size:
            return f"smaller than min_size = {self.min_size}"
        zeros = sparsity(matrix_of(weight, layer.channel, layer.inner))
        if zeros.density <= FEW_ZEROS and zeros.pattern != "channels" and min(weight.shape[:2]) >= LEAST_SIDE:
            return f"it is pruned, to a density of {zeros.density:.3g}: its factors would have no zeros"
        return ""

    def measure(self, mod: tvm.IRModule, chosen: list[Layer], samples: Calibration | None) -> Mapping[str, np.ndarray]:
        if not self.error or not chosen:
            return {}
        if samples is None:
            raise SampleError("factorize: an error on outputs needs samples: a few dozen typical inputs of the model")
        return output_moments(mod, chosen, samples)

    def factors(self, layer: Layer, moments: np.ndarray | None) -> Chain | str:
        """What the layer becomes, or why it stays."""
        weight = layer.weights()
        if layer.weight == 1 and layer.kind == "matmul":
            weight = weight.T
        made, place = self.divided(weight, moments), place_of(layer)
        whole = [Part(weight.shape, tuple(range(weight.ndim - 2)))]
        cost = clock(self.target) if self.target else Place.macs
        limit = min(WORTH, self.ratio or 1.0) * cost(place, whole)
        energy = 1 - self.error**2 if self.error else self.energy
        ranks = made.search(energy, lambda r: cost(place, made.parts(r)) <= limit, self.round_to, bool(self.ratio))
        if isinstance(ranks, str):
            return ranks.replace("multiply-accumulates", f"time on {self.target}") if self.target else ranks
        before, time = place.macs(whole), cost(place, made.parts(ranks)) / cost(place, whole)
        arrays, kept = made.weights(ranks)
        row = {
            "method": made.name,
            "ranks": text(ranks),
            "macs_before": before,
            "macs_after": place.macs(made.parts(ranks)),
            **({"time": round(time, 3)} if self.target else {}),
            "weights_snr_db": round(float(-10 * np.log10(1 - kept)), 2) if kept < 1 else None,
            "bytes_before": weight.nbytes,
            "bytes_after": sum(a.nbytes for a in arrays),
        }
        return Chain(layer, made.parts(ranks), arrays, row)

    def divided(self, weight: np.ndarray, moments: np.ndarray | None) -> Factors:
        method = self.method
        if weight[0, 0].size == 1 or self.error:
            method = "svd"
        if method == "svd":
            return Svd(weight, moments)
        return Cp(weight) if method == "cp" else Tucker(weight)


def place_of(layer: Layer) -> Place:
    """Where the layer's weights are multiplied."""
    assert layer.weight is not None
    out, channels = graph.shape(layer.call), graph.shape(layer.call.args[layer.weight])[layer.channel]
    if layer.kind == "matmul":
        return Place(int(np.prod(out, dtype=np.int64)) // channels)
    attrs, data = layer.call.attrs, graph.shape(layer.call.args[0])
    layout = str(attrs.data_layout)
    axes = [layout.index(axis) for axis in str(attrs.kernel_layout)[2:]]
    return Place(data[layout.index("N")], tuple(data[a] for a in axes), tuple(out[a] for a in axes))


@dataclass(frozen=True)
class Chain:
    """The layers that one becomes, and what the report says of it."""

    layer: Layer
    parts: list[Part]
    arrays: list[np.ndarray]
    row: dict

    def emit(self, rewriter: graph.Rewriter, expr: relax.Call) -> graph.Expr:
        """All but the last are emitted."""
        x = expr.args[0 if self.layer.weight else 1]
        for i, (part, array) in enumerate(zip(self.parts, self.arrays)):
            x = self.product(expr, x, array) if self.layer.kind == "matmul" else convolution(expr, x, array, part)
            if i < len(self.parts) - 1:
                x = rewriter.emit(x, f"{self.layer.name}_{chr(ord('a') + i)}")
        return x

    def product(self, expr: relax.Call, x: graph.Expr, array: np.ndarray) -> graph.Expr:
        if self.layer.weight == 0:
            return relax.op.matmul(graph.const(array), x)
        return relax.op.matmul(x, graph.const(np.ascontiguousarray(array.T)))


def convolution(expr: relax.Call, x: graph.Expr, array: np.ndarray, part: Part) -> graph.Expr:
    """One layer of a chain: strides, padding and dilation of `expr` along the axes that are its own."""
    a, rank = expr.attrs, array.ndim - 2
    own = [axis in part.axes for axis in range(rank)]
    strides, dilation = ([int(v) if mine else 1 for v, mine in zip(vs, own)] for vs in (a.strides, a.dilation))
    padding = [int(v) if mine else 0 for v, mine in zip(a.padding, own * 2)]
    make = getattr(relax.op.nn, expr.op.name.removeprefix("relax.nn."))
    layouts = str(a.data_layout), str(a.kernel_layout), str(a.data_layout)
    return make(x, graph.const(array), strides, padding, dilation, part.groups, *layouts)
