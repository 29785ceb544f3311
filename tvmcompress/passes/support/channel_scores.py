"""How much each channel matters: sums over all layers of its group, each layer's values divided by their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tvmcompress.ir import graph
from tvmcompress.passes.support.channel_flow import Flow
from tvmcompress.passes.support.channel_groups import Ids
from tvmcompress.passes.support.channel_moments import Moments, Place
from tvmcompress.passes.support.channel_products import Site
from tvmcompress.passes.support.channel_weights import by_channels

Scores = np.ndarray  # by root; NaN where the criterion says nothing of a channel


class Tally:
    """The mean of what several layers say of a channel."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.total, self.count = np.zeros(len(flow.groups)), np.zeros(len(flow.groups))

    def add(self, ids: Ids | None, values: np.ndarray) -> None:
        mean = values.mean(dtype=np.float64)
        if ids is None or not mean > 0:
            return
        roots = self.flow.groups.find(ids)
        np.add.at(self.total, roots, values / mean)
        np.add.at(self.count, roots, 1)

    def scores(self) -> Scores:
        with np.errstate(invalid="ignore"):
            return self.total / self.count


def magnitude(flow: Flow) -> Scores:
    """Squares of the weights that make a channel and of those that read it."""
    tally = Tally(flow)
    for site, parts in squares(flow):
        tally.add(site.outputs, parts.sum((2, 3)).reshape(-1))
        if not site.depthwise:
            tally.add(site.inputs, parts.sum((1, 3)).reshape(-1))
    return tally.scores()


def batch_norm(flow: Flow) -> Scores:
    """The scale of the batch normalisations that a channel passes."""
    tally = Tally(flow)
    for call, ids in flow.norms:
        tally.add(ids, np.abs(graph.value(call.args[1]).astype(np.float64)))
    return tally.scores()


def contribution(flow: Flow, moments: Mapping[Place, Moments]) -> Scores:
    """What the layers that read a channel make of it: ||W[:, c]||^2 E[x_c^2]."""
    tally = Tally(flow)
    for site, parts in squares(flow):
        seen = moments.get(site.reads)
        if seen is not None and not site.depthwise:
            tally.add(site.inputs, parts.sum((1, 3)).reshape(-1) * seen.square)
    return tally.scores()


def squares(flow: Flow) -> list[tuple[Site, np.ndarray]]:
    """Each layer with its weights squared, by channels; once where steps share weights and channels."""
    found: dict[tuple, tuple[Site, np.ndarray]] = {}
    for site in flow.sites:
        ids = (None if i is None else flow.groups.find(i).tobytes() for i in (site.outputs, site.inputs))
        place = site.layer.call.args[site.layer.weight], *ids
        if place not in found:
            weights = by_channels(site.layer, site.layer.weights().astype(np.float64))
            found[place] = site, np.square(weights)
    return list(found.values())


def filled(scores: Scores, other: Callable[[], Scores]) -> tuple[Scores, np.ndarray]:
    """`scores` with what they lack from `other`; and where that was."""
    lacking = np.isnan(scores)
    return (np.where(lacking, other(), scores) if lacking.any() else scores), lacking
