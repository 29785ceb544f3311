"""Which channels stay: the share asked for, rounded up, layers that must agree chosen together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmcompress.passes.support.channel_balance import balanced
from tvmcompress.passes.support.channel_flow import Flow
from tvmcompress.passes.support.channel_groups import Ids, together
from tvmcompress.passes.support.channel_scores import Scores


@dataclass(frozen=True)
class Wish:
    """density: share of channels that stay; least: of each layer, where one threshold rules them all."""

    density: float
    scope: str
    round_to: int
    min_channels: int
    least: float

    def rounded(self, count: float, total: int) -> int:
        """`count` channels of `total`, made a multiple of round_to, of narrow layers of a quarter of them at most."""
        wanted, step = max(math.ceil(count - 1e-9), self.min_channels, 1), self.round_to
        while step > 1 and 4 * step > total:
            step //= 2
        return min(-(-wanted // step) * step, total)


@dataclass
class Cluster:
    """Sets of channels that are chosen among, best first, those that must stay before all; and how many each has."""

    roots: np.ndarray
    sizes: np.ndarray
    tied: int
    first: int = 0  # how many of the roots are taken

    @property
    def total(self) -> int:
        return int(self.sizes.sum())

    def taken(self) -> int:
        return int(self.sizes[: self.first].sum())

    def take(self, channels: float) -> None:
        """Roots in order until there are so many channels; of heads, the number that comes nearest, one at least."""
        reached = np.concatenate([[0], np.cumsum(self.sizes)])
        first = int(np.searchsorted(reached, channels - 1e-9))
        if first > 1 and reached[first] - channels >= channels - reached[first - 1]:
            first -= 1
        self.first = max(self.first, self.tied, first)


def choose(flow: Flow, scores: Scores, wish: Wish) -> np.ndarray:
    """For each number whether its channels stay."""
    found = clusters(flow, scores)
    if wish.scope == "global":
        share(found, scores, wish)
    for cluster in found:
        wanted = cluster.taken() if wish.scope == "global" else wish.density * cluster.total
        cluster.take(wish.rounded(wanted, cluster.total))
    alive = np.zeros(len(flow.groups), bool)
    for cluster in found:
        alive[cluster.roots[: cluster.first]] = True
    alive[np.array(list(flow.groups.tied()), np.int64)] = True
    alive = balanced(flow.groups, [(c.roots, c.sizes, c.taken()) for c in found], alive, scores)
    settle(flow, alive, scores)
    return alive[flow.groups.find(np.arange(len(alive)))] if len(alive) else alive


def clusters(flow: Flow, scores: Scores) -> list[Cluster]:
    outputs = [site.outputs for site in flow.sites if site.outputs is not None and not site.depthwise]
    joined = together(flow.groups, outputs)
    size = np.zeros(len(flow.groups), np.int64)
    for ids in outputs:
        roots, counts = np.unique(flow.groups.find(ids), return_counts=True)
        size[roots] = np.maximum(size[roots], counts)
    roots, ranks = np.flatnonzero(size), in_turns(flow, scores)
    tied = np.isin(roots, list(flow.groups.tied()))
    order = np.lexsort((roots, -scores[roots], ranks[roots], ~tied))
    roots, tied = roots[order], tied[order]
    order = np.lexsort((portions(flow, roots, outputs), ~tied))
    roots, tied = roots[order], tied[order]
    owners = joined.find(roots)
    picked = [owners == owner for owner in np.unique(owners)]
    return [Cluster(roots[here], size[roots[here]], int(tied[here].sum())) for here in picked]


def portions(flow: Flow, roots: Ids, outputs: Sequence[Ids]) -> np.ndarray:
    """For each of `roots`, best first: the share of those that the same layers make which comes before it.

    Of layers that share but some of their sets of channels each gets its share so.
    """
    kinds, fresh = np.zeros(len(flow.groups), np.int64), 1
    for ids in outputs:
        made, counts = np.unique(flow.groups.find(ids), return_counts=True)
        _, which = np.unique([kinds[made], counts], axis=1, return_inverse=True)
        kinds[made] = fresh + which.reshape(-1)
        fresh += len(made)
    found = np.zeros(len(roots))
    for kind in np.unique(kinds[roots]):
        here = kinds[roots] == kind
        found[here] = np.arange(here.sum()) / here.sum()
    return found


def in_turns(flow: Flow, scores: Scores) -> np.ndarray:
    """The place of each root among those of its group of a convolution: groups take turns. 0 where there are none."""
    ranks = np.zeros(len(flow.groups), np.int64)
    for parts in flow.groups.balanced:
        roots = [np.unique(flow.groups.find(part)) for part in parts]
        if any(ranks[r].any() for r in roots):
            continue  # the groups of an earlier layer decide
        for each in roots:
            ranks[each[np.argsort(-scores[each], kind="stable")]] = np.arange(len(each))
    return ranks


def share(found: Sequence[Cluster], scores: Scores, wish: Wish) -> None:
    """One threshold for all: the best of all layers that may lose some, after the least share of each."""
    found = [cluster for cluster in found if cluster.tied < len(cluster.roots)]
    for cluster in found:
        cluster.take(max(wish.least * cluster.total, 1))
    missing = wish.density * sum(c.total for c in found) - sum(c.taken() for c in found)
    rest = [(-scores[r], i, size) for i, c in enumerate(found) for r, size in list(zip(c.roots, c.sizes))[c.first :]]
    for _, which, size in sorted(rest):
        if missing <= 0:
            return
        found[which].first += 1
        missing -= size


def settle(flow: Flow, alive: np.ndarray, scores: Scores) -> None:
    """Bring back what is needed: as many channels in every group of a convolution, and one at least on every axis."""
    find = flow.groups.find
    every = list({roots.tobytes(): roots for roots in map(find, flow.every())}.values())
    balanced = [[find(part) for part in parts] for parts in flow.groups.balanced]
    while True:
        lacking = [roots for roots in every if not alive[roots].any()]
        for parts in balanced:
            counts = [int(alive[part].sum()) for part in parts]
            lacking += [part for part, count in zip(parts, counts) if count < max(*counts, 1)]
        if not lacking:
            return
        alive[best(lacking, alive, scores)] = True


def best(lacking: Sequence[Ids], alive: np.ndarray, scores: Scores) -> int:
    """The channel of the first part that helps most parts, and among those the best."""
    first = lacking[0]
    candidates = np.unique(first[~alive[first]])
    helps = np.sum([np.isin(candidates, part) for part in lacking], axis=0)
    return int(candidates[np.lexsort((-scores[candidates], -helps))[0]])
