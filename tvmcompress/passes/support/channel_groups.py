"""Which channels stand or fall together: each has a number, and operators join the numbers of those that do."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Ids = np.ndarray  # one number for each index along an axis
Labels = dict[int, Ids]  # by axis; an axis that is not there keeps all its indices


class Groups:
    """Disjoint sets of channel numbers.

    `reasons`: why a set must stay, by any of its numbers. `balanced`: lists of parts of an axis, those of the groups of
    a convolution, of which equally many must stay.
    """

    def __init__(self) -> None:
        self.parent = np.zeros(0, np.int64)
        self.reasons: dict[int, str] = {}
        self.balanced: list[list[Ids]] = []

    def __len__(self) -> int:
        return len(self.parent)

    def new(self, count: int) -> Ids:
        ids = np.arange(len(self), len(self) + count)
        self.parent = np.concatenate([self.parent, ids])
        return ids

    def find(self, ids: Ids) -> Ids:
        """The number that stands for each one's set."""
        roots = self.parent[ids]
        while not np.array_equal(above := self.parent[roots], roots):
            roots = above
        self.parent[ids] = roots
        return roots

    def join(self, some: Ids, others: Ids) -> None:
        """Index by index, both stay or neither does."""
        some, others = (np.asarray(a).reshape(-1) for a in (some, others))
        apart = self.find(some) != self.find(others)
        for a, b in zip(some[apart].tolist(), others[apart].tolist()):
            a, b = self.root(a), self.root(b)
            self.parent[max(a, b)] = min(a, b)

    def root(self, number: int) -> int:
        while (above := int(self.parent[number])) != number:
            number = above
        return number

    def tie(self, ids: Ids, why: str) -> None:
        """All of these stay, because of `why`; the first reason is the one told."""
        for root in np.unique(self.find(np.asarray(ids).reshape(-1))):
            self.reasons.setdefault(int(root), why)

    def balance(self, ids: Ids, parts: int) -> None:
        """As many indices must stay in each of `parts` equal runs of `ids`."""
        self.balanced.append(np.split(ids, parts))

    def tied(self) -> dict[int, str]:
        """From each root that must stay to the reason."""
        found: dict[int, str] = {}
        for number, why in self.reasons.items():
            found.setdefault(self.root(number), why)
        return found


def together(groups: Groups, sets: Iterable[Ids]) -> Groups:
    """The roots of `groups`, joined once more where one of `sets` has them both: those that are chosen among."""
    joined = Groups()
    joined.new(len(groups))
    for ids in sets:
        roots = np.unique(groups.find(ids))
        joined.join(np.full(len(roots), roots[0]), roots)
    return joined
