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
    """`alive` with another choice where groups disagree. `shares`: roots, their sizes, and how many channels at least."""
    parts = {
        b"".join(p.tobytes() for p in each): each for each in ([groups.find(p) for p in b] for b in groups.balanced)
    }
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
    places = {int(root): i for i, root in enumerate(roots)}
    count, rows, least = len(roots) + len(parts), [], []
    for number, each in enumerate(parts):
        for part in each:
            row = np.zeros(count)
            np.add.at(row, [places[int(r)] for r in part], 1)
            row[len(roots) + number] = -1
            rows.append(row)
    equal = LinearConstraint(np.array(rows), 0, 0)
    for ids, sizes, wanted in shares:
        row = np.zeros(count)
        row[[places[int(r)] for r in ids]] = sizes
        least.append((row, wanted))
    enough = LinearConstraint(np.array([row for row, _ in least]), [wanted for _, wanted in least], np.inf)
    low = np.concatenate([np.isin(roots, tied), np.ones(len(parts))])
    high = np.concatenate([np.ones(len(roots)), np.full(len(parts), np.inf)])
    cost = np.concatenate([1 - scores[roots] / (2 * scores[roots].max() + 1e-30), np.zeros(len(parts))])
    options = {"time_limit": SECONDS, "mip_rel_gap": GAP}
    found = milp(
        cost, integrality=np.ones(count), bounds=Bounds(low, high), constraints=[equal, enough], options=options
    )
    if found.x is None:
        return alive
    alive = alive.copy()
    alive[roots] = found.x[: len(roots)] > 0.5
    return alive
