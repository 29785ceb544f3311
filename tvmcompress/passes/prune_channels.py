"""PruneChannels: whole channels and attention heads, removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm

from tvmcompress.errors import ModelError, RecipeError, SampleError
from tvmcompress.ir import graph
from tvmcompress.passes.fold_constants import FoldConstants
from tvmcompress.passes.support import channel_scores
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.channel_choice import Wish, choose
from tvmcompress.passes.support.channel_cut import cut
from tvmcompress.passes.support.channel_flow import Flow
from tvmcompress.passes.support.channel_moments import Moments, Place, observe
from tvmcompress.passes.support.channel_notes import notes
from tvmcompress.passes.support.channel_repair import repaired
from tvmcompress.passes.support.channel_scores import Scores
from tvmcompress.passes.support.channel_shuffles import keep_shuffles
from tvmcompress.passes.support.layers import layers, skipped
from tvmcompress.passes.support.select import compressed_tensors

KINDS_DOC = "kinds of layers whose output channels all stay: conv, depthwise, conv_transpose, matmul"


@dataclass(frozen=True)
class Plan:
    """`alive`: by the numbers of `flow`, which channels of `module` stay. `more`: what to note of layers."""

    module: tvm.IRModule
    flow: Flow
    moments: Mapping[Place, Moments]
    alive: np.ndarray
    more: dict[str, dict]


@dataclass(frozen=True)
class PruneChannels(Pass):
    """conv(relu(conv(x, W) + b), V) -> conv(relu(conv(x, W[kept]) + b[kept]), V[:, kept])

    Arrays get smaller, results keep their shapes. Channels are followed through the program: what is added, multiplied
    or normalised together goes together, through residuals, concatenations, splits, grouped and depthwise convolutions,
    shuffles, squeeze-and-excite gates, flattening, and the steps of recurrent layers. Of attention whole heads go, with
    their queries, keys and values; of a shuffle the same places of all its groups, so that the rest is shuffled alike,
    unless too few could be chosen among. What an operator needs whole stays, and the note names it: outputs of the
    model, the width that a layer norm sees. The rest computes what it did, with zero for what is gone wherever it was
    read.

    criterion, a mean over all layers of a group, each divided by its own mean:
    - magnitude: squares of the weights that make and read a channel (Li et al. 2017; groups as Fang et al. 2023);
    - batch_norm: the scale of batch norms (Liu et al. 2017), which must not be folded yet;
    - taylor: ||W[:, c]||^2 E[x_c^2] of the layers that read channel c, over samples. A first-order measure of what
      their outputs lose, without labels or gradients: nearest to ThiNet (Luo et al. 2017), and it stands in for the
      gradient times activation of Molchanov et al. 2017.

    repair, from samples: bias gives the layers that read what is gone its mean; least_squares refits their weights too.
    Channels are rounded up to `round_to`, or what divides a layer in four; heads to the nearest number, one at least.
    Density 0.5 leaves about a quarter of the multiplications between layers that both lose half, half where one does.
    """

    density: float = option(0.5, "share of channels that stay, above 0", low=0, high=1)
    criterion: str = option("magnitude", "what tells channels apart", choices=("magnitude", "batch_norm", "taylor"))
    scope: str = option("layer", "the share in each layer, or over all of them", choices=("layer", "global"))
    least: float = option(0.1, "share that stays in every layer, where scope is global", low=0, high=1)
    round_to: int = option(
        16, "channels that stay are rounded up to a multiple of this, in narrow layers of less", low=1, high=1024
    )
    min_channels: int = option(1, "channels that stay in every layer", low=1)
    heads: bool = option(True, "attention heads may go")
    repair: str = option("none", "what makes up for the loss", choices=("none", "bias", "least_squares"))
    skip: tuple[str, ...] = option((), "names of layers whose output channels all stay; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), KINDS_DOC)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density == 0:
            raise RecipeError("prune_channels: density must be above 0 and at most 1, got 0.0; 0.5 halves the channels")

    @property
    def needs_samples(self) -> bool:  # type: ignore[override]
        return self.criterion == "taylor" or self.repair != "none"

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        refuse_compressed(mod)
        plan = self.plan(mod, samples)
        module, more = plan.module, plan.more
        if plan.alive.all():
            return Outcome(mod, notes(self.key, module, module, plan.flow, plan.alive, more))
        if self.repair == "none":
            after = cut(module, plan.flow, plan.alive)
        else:
            mended, unrepaired = repaired(module, plan.flow, plan.alive, plan.moments)
            after = cut(mended, Flow(mended, self.heads), plan.alive)  # numbered in order of the layers, so as before
            more = {**more, **{name: {**more.get(name, {}), "why": why} for name, why in unrepaired.items()}}
        return Outcome(after, notes(self.key, module, after, plan.flow, plan.alive, more))

    def plan(self, mod: tvm.IRModule, samples: Calibration | None) -> Plan:
        """Which channels go. Raises SampleError where samples are needed and there are none."""
        module = graph.rewrite(mod, lambda *_: None)  # one form: names are unique, tuples are inlined
        module = FoldConstants()(module).module  # else the weights of some layers were no constants
        flow = Flow(module, self.heads)
        self.keep_skipped(module, flow)
        keep_shuffles(flow)
        moments = self.observe(module, flow, samples)
        scores, more = self.scores(flow, moments)
        wish = Wish(self.density, self.scope, self.round_to, self.min_channels, self.least)
        return Plan(module, flow, moments, choose(flow, scores, wish), more)

    def keep_skipped(self, mod: tvm.IRModule, flow: Flow) -> None:
        reasons = skipped(list(layers(mod)), self.skip, self.skip_kinds, self.key)
        for site in flow.sites:
            if site.layer.name in reasons and site.outputs is not None:
                flow.groups.tie(site.outputs, reasons[site.layer.name])

    def observe(self, mod: tvm.IRModule, flow: Flow, samples: Calibration | None) -> dict[Place, Moments]:
        """The inputs of all layers that may lose some."""
        if not self.needs_samples:
            return {}
        if samples is None:
            what = "criterion 'taylor'" if self.criterion == "taylor" else f"repair '{self.repair}'"
            raise SampleError(f"prune_channels needs samples for its {what}: a few dozen typical inputs of the model")
        places = {site.reads for site in flow.sites if site.inputs is not None and not site.depthwise}
        return observe(mod, places, samples, joint=self.repair == "least_squares")

    def scores(self, flow: Flow, moments: Mapping[Place, Moments]) -> tuple[Scores, dict[str, dict]]:
        """By channel; and for each layer which criterion spoke, where it is not the one asked for."""
        if self.criterion == "magnitude":
            return np.nan_to_num(channel_scores.magnitude(flow)), {}
        if self.criterion == "batch_norm" and not flow.norms:
            raise ModelError(
                "prune_channels: criterion 'batch_norm' finds no batch normalisation in the model; put prune_channels "
                "before fold_batch_norm, or take criterion 'magnitude'"
            )
        normed = self.criterion == "batch_norm"
        said = channel_scores.batch_norm(flow) if normed else channel_scores.contribution(flow, moments)
        scores, lacking = channel_scores.filled(said, lambda: channel_scores.magnitude(flow))
        silent = [s for s in flow.sites if s.outputs is not None and lacking[flow.groups.find(s.outputs)].any()]
        return np.nan_to_num(scores), {s.layer.name: {"criterion": "magnitude"} for s in silent}


def refuse_compressed(mod: tvm.IRModule) -> None:
    compressed = compressed_tensors(mod)
    for layer in layers(mod):
        if any(a in compressed for a in layer.call.args[:2]):
            raise ModelError(
                f"prune_channels: layer '{layer.name}' is already compressed, and its weights cannot be cut; "
                f"put prune_channels before the passes that quantize or convert weights"
            )
