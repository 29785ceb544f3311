"""How sure a median or a ratio of medians is: the bootstrap over rounds.

Runs that follow each other are alike (the clock, the neighbours), so it is rounds that are drawn again, each standing
for its median; and where there were several sittings, each a fresh process, sittings are drawn first and rounds within
them. The interval is that of the percentiles (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
SHARE = 0.95  # of the draws lie within the interval
FEW = 6  # rounds: with less, what lies between their extremes is called an interval, and nothing should hang on it

Rounds = Sequence[Sequence[float]]  # medians in ms, by sitting


@dataclass(frozen=True)
class Interval:
    """An estimate, and what lies on both sides of it with a probability of 95%."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float]:
        """The fields."""
        return vars(self).copy()


def median(rounds: Rounds) -> Interval:
    """Of a run's time in ms."""
    return _interval(median_of(rounds), _draw([_even(rounds)])[0])


def ratio(ours: Rounds, theirs: Rounds, together: bool) -> Interval:
    """Of our median to theirs: 1.1 is slower by a tenth. `together`: round by round the two were measured in turn."""
    if together:
        sittings = min(len(ours), len(theirs))
        runs = min(len(r) for r in (*ours[:sittings], *theirs[:sittings]))
        both = [np.asarray([r[:runs] for r in side[:sittings]], float) for side in (ours, theirs)]
        drawn = _draw(both)
    else:
        drawn = [_draw([_even(side)], seed)[0] for seed, side in enumerate((ours, theirs))]
    return _interval(median_of(ours) / median_of(theirs), drawn[0] / drawn[1])


def median_of(rounds: Rounds) -> float:
    return float(np.median(np.concatenate([np.asarray(r, float) for r in rounds])))


def enough(rounds: Rounds) -> bool:
    return sum(map(len, rounds)) >= FEW


def _even(rounds: Rounds) -> np.ndarray:
    """(sittings, rounds): each sitting as many rounds as the shortest has."""
    count = min(map(len, rounds))
    return np.asarray([r[:count] for r in rounds], float)


def _draw(sides: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """Medians of DRAWS draws of (sittings, rounds), the same ones of every side."""
    sittings, rounds = sides[0].shape
    random = np.random.default_rng([seed, sittings, rounds])
    which = random.integers(0, sittings, (DRAWS, sittings, 1))
    places = random.integers(0, rounds, (DRAWS, sittings, rounds))
    return [np.median(side[which, places].reshape(DRAWS, -1), axis=1) for side in sides]


def _interval(value: float, drawn: np.ndarray) -> Interval:
    tail = 100 * (1 - SHARE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))
