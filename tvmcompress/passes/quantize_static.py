"""QuantizeStatic: layers, and what lies between them, in 8-bit integers with ranges from samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import reduce

import numpy as np
import tvm

from tvmcompress.errors import SampleError
from tvmcompress.ir import graph
from tvmcompress.passes.support import cache, ranges
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration, Seen, observe
from tvmcompress.passes.support.histogram import Histogram
from tvmcompress.passes.support.insertion import Insertion, Means, Ranges
from tvmcompress.passes.support.layers import Layer
from tvmcompress.passes.support.placement import Placement, Plan, united
from tvmcompress.passes.support.select import notes, recurrent, select
from tvmcompress.passes.support.snr import layer_snr


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """conv(x, W) -> conv(dequantize(quantize(x, s, z), s, z), dequantize(Q, scale))

    Q is int8, symmetric, with one scale for each output channel; s and z (uint8) belong to the whole tensor x and come
    from `samples`. Convolutions of every kind and matrix products are taken; `support.placement` says where activations
    are quantized so that integers flow between them. A bias stays float32. Products whose input depends on a product
    with the same weight (the steps of a recurrent layer) all have the same s and z, and nothing between them is
    quantized.

    Cost: weights take a quarter. Error: half a step in each quantized tensor. Scales after Jacob et al., "Quantization
    and training of neural networks for efficient integer-arithmetic-only inference", 2018; the correction of biases
    after Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, with the means
    measured instead of derived.
    """

    method: str = option("mse", "how an activation's range is chosen", choices=ranges.METHODS)
    percentile: float = option(99.999, "of values kept inside, for method 'percentile'", low=50.0, high=100.0)
    search_weights: bool = option(True, "weight scales of least squared error instead of the greatest magnitude")
    bias_correction: bool = option(True, "take back the mean shift of each output that rounding the weights causes")
    attention: bool = option(True, "also matrix products of two computed tensors")
    measure: bool = option(True, "note each layer's signal-to-noise ratio against float")
    skip: tuple[str, ...] = option((), "names of layers to leave float; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), "kinds of layers to leave float: conv, depthwise, conv_transpose, …")

    @property
    def needs_samples(self) -> bool:
        return True

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        if samples is None:
            raise SampleError("quantize_static needs samples: a few dozen typical inputs of the model")
        mod = graph.rewrite(mod, lambda *_: None)  # one form: names are unique, tuples are inlined
        chosen, reasons = select(mod, self.key, self.skip, self.skip_kinds, self.why_not)
        loops = recurrent(mod, chosen)
        steps = {layer.name for loop in loops for layer in loop}
        plan = Placement(mod, {layer.name for layer in chosen} - steps).plan()
        limits, means, remarks = self.calibrate(mod, plan, loops, samples)
        shared = [(loop, reduce(united, [limits[layer.live[0].name] for layer in loop])) for loop in loops]
        insertion = Insertion(mod, plan, plan.align(limits), means, self.search_weights, shared)
        after, names = graph.rewrite(mod, insertion.visit), insertion.names
        del insertion  # it holds a copy of what it made
        snr = None
        if self.measure and chosen and samples.available:
            ends = {layer.name: plan.inside[var][-1].name for var, layer in plan.layers.items()}
            ends |= {name: name for name in steps}
            measured = layer_snr(mod, after, {end: names[end] for end in ends.values()}, samples)
            snr = {name: measured[end] for name, end in ends.items()}
        return Outcome(after, (*remarks, *notes(mod, self.key, reasons, snr)))

    def why_not(self, layer: Layer) -> str:
        if layer.kind == "attention" and not self.attention:
            return "a product of two computed tensors, and attention = false"
        if layer.kind != "attention" and layer.weight is None:
            return "its weights are not constant"
        return ""

    def calibrate(
        self, mod: tvm.IRModule, plan: Plan, loops: list[list[Layer]], samples: Calibration
    ) -> tuple[Ranges, Means, tuple[dict, ...]]:
        """Range of each tensor with parameters of its own, and of each input of a loop's products; channel means of the
        layers' inputs; rows for the report.

        Both from the cache, when it was made for this program and these options.
        """
        axes = self.mean_axes(plan)
        states = [layer.live[0].name for loop in loops for layer in loop]
        names = list(dict.fromkeys([*(v.name for v in plan.own), *states]))
        key = {}
        if samples.cache is not None:
            options = {k: v for k, v in asdict(self).items() if k in ("method", "percentile", "bias_correction")}
            key = {"schema": cache.SCHEMA, "program": cache.program_hash(mod), "tensors": names, "options": options}
            stored, remark = cache.read(samples.cache, key)
            row = ({"pass": self.key, "calibration": remark},)
            if stored is not None:
                limits = {name: tuple(entry["range"]) for name, entry in stored.items() if "range" in entry}
                return limits, {n: np.array(e["mean"]) for n, e in stored.items() if "mean" in e}, row
        seen = {name: Seen(None if self.method == "min_max" else Histogram()) for name in names}
        for name, axis in axes.items():
            seen.setdefault(name, Seen()).channel_axis = axis
        count = observe(mod, seen, samples)
        limits = {name: self.limits(seen[name]) for name in names}
        means = {name: entry.mean for name, entry in seen.items() if entry.mean is not None}
        if samples.cache is None:
            return limits, means, ()
        entries: dict[str, dict] = {name: {"range": list(limits[name])} for name in names}
        for name, mean in means.items():
            entries.setdefault(name, {})["mean"] = mean.tolist()
        cache.write(samples.cache, key, entries, count)
        return limits, means, row

    def limits(self, seen: Seen) -> tuple[float, float]:
        if seen.histogram is None:
            return (seen.low, seen.high) if np.isfinite(seen.low) else (0.0, 0.0)
        return ranges.choose(seen.histogram, self.method, self.percentile)

    def mean_axes(self, plan: Plan) -> dict[str, int]:
        """The inputs whose channel means the correction of biases needs, and their channel axes."""
        if not self.bias_correction:
            return {}
        return {layer.live[0].name: layer.input_axis for layer in plan.layers.values() if layer.weight == 1}
