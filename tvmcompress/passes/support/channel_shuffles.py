"""Shuffles that stay shuffles: a place within the groups of a shuffle is kept in all of them or in none."""

from __future__ import annotations

import numpy as np

from tvmcompress.passes.support.channel_flow import Flow
from tvmcompress.passes.support.channel_groups import Ids
from tvmcompress.passes.support.channel_shapes import transposition

LARGEST = 1 / 3  # of a layer's outputs: where fewer and larger sets would be chosen among, channels go one by one


def keep_shuffles(flow: Flow) -> None:
    """Join, in order of the program, the places of each shuffle that leaves enough to choose among.

    y[i * groups + g] = x[g * places + i]: x's channels i, places + i, 2 places + i … stand or fall together. Then what
    is left is transposed as before, with fewer places. Left alone is a shuffle one of whose groups must stay: the
    others would have to.
    """
    for shuffle in flow.shuffles.values():
        ids = flow.of(shuffle.source).get(shuffle.axis)
        groups = transposition(shuffle.order)
        if ids is not None and groups is not None and 1 < groups < len(ids):
            join_places(flow, ids.reshape(groups, -1))


def join_places(flow: Flow, parts: Ids) -> None:
    groups = flow.groups
    before, parent, tied = largest(flow), groups.parent.copy(), stuck(flow)
    for part in parts[1:]:
        groups.join(parts[0], part)
    if stuck(flow) > tied or (largest(flow) > np.maximum(before, LARGEST)).any():
        groups.parent = parent


def largest(flow: Flow) -> np.ndarray:
    """For each layer: its largest set of outputs that stand or fall together, as a share of all."""
    outputs = [flow.groups.find(site.outputs) for site in flow.sites if site.outputs is not None]
    return np.array([np.unique(roots, return_counts=True)[1].max() / len(roots) for roots in outputs])


def stuck(flow: Flow) -> int:
    """How many channels must stay."""
    roots = flow.groups.find(np.arange(len(flow.groups)))
    return int(np.isin(roots, list(flow.groups.tied())).sum())
