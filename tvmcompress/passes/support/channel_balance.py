"""As many channels in every group of a convolution: the fewest that leave each layer its share, the best of those.

With x in {0, 1} for each set of channels and a number k for each convolution, least sum of x (1 - score / 2) such that
every group sums to its k and every layer to no less than its share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvmcompress.errors import MissingDependencyError
from tvmcompress.passes.support.channel_groups import Groups, Ids

SECONDS, GAP = 5.0, 0.02  # of one solution; the gap that is good enough


def balanced(
    groups: Groups, shares: Sequence[tuple[Ids, np.ndarray, int]], alive: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """`alive` with another choice where groups disagree. `shares`: roots, sizes, how many channels at least."""
    found = [[groups.find(part) for part in each] for each in groups.balanced]
    parts = {b"".join(part.tobytes() for part in each): each for each in found}
    joined = Groups()
    joined.new(len(groups))
    for roots in [np.concatenate(each) for each in parts.values()] + [share[0] for share in shares]:
        joined.join(np.full(len(roots), roots[0]), roots)
    wrong = [each for each in parts.values() if len({int(alive[p].sum()) for p in each}) > 1]
    tied = np.array(list(groups.tied()), np.int64)
    for owner in np.unique([joined.root(int(each[0][0])) for each in wrong]).astype(np.int64):
        mine = [each for each in parts.values() if joined.root(int(each[0][0])) == owner]
        shared = [share for share in shares if joined.root(int(share[0][0])) == owner]
        alive = solution(mine, shared, tied, alive, scores)
    return alive


def solution(
    parts: Sequence[Sequence[Ids]],
    shares: Sequence[tuple[Ids, np.ndarray, int]],
    tied: np.ndarray,
    alive: np.ndarray,
    scores: np.ndarray,
) -> np.ndarray:
    """`alive` with the sets of channels that stay, of those in `parts` and `shares`; unchanged when none was found."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        wants = "pruning the channels of grouped convolutions wants scipy: pip install 'tvmcompress[prune]'"
        raise MissingDependencyError(wants) from error
    roots = np.unique(np.concatenate([*(p for each in parts for p in each), *(share[0] for share in shares)]))
    count = len(roots) + len(parts)
    equal = [sums(roots, count, part, 1, len(roots) + i) for i, each in enumerate(parts) for part in each]
    enough = [sums(roots, count, ids, sizes) for ids, sizes, _ in shares]
    limits = [LinearConstraint(np.array(equal), 0, 0)]
    limits += [LinearConstraint(row, wanted, np.inf) for row, (_, _, wanted) in zip(enough, shares)]
    low = np.concatenate([np.isin(roots, tied), np.ones(len(parts))])
    high = np.concatenate([np.ones(len(roots)), np.full(len(parts), np.inf)])
    cost = np.concatenate([1 - scores[roots] / (2 * scores[roots].max() + 1e-30), np.zeros(len(parts))])
    options = {"time_limit": SECONDS, "mip_rel_gap": GAP}
    found = milp(cost, integrality=np.ones(count), bounds=Bounds(low, high), constraints=limits, options=options)
    if found.x is None:
        return alive
    alive = alive.copy()
    alive[roots] = found.x[: len(roots)] > 0.5
    return alive


def sums(roots: np.ndarray, count: int, ids: Ids, values: np.ndarray | int, less: int | None = None) -> np.ndarray:
    """A row of coefficients: `values` for `ids`, each time that they come, and -1 for the variable `less`."""
    row = np.zeros(count)
    np.add.at(row, np.searchsorted(roots, ids), values)
    if less is not None:
        row[less] = -1
    return row
