"""The space of a kernel's decisions: which are known, which to try next.

A schedule asks for some decisions only after others (a division only for Winograd's method), so the space is found by
walking it: every build tells what was asked, and of which candidates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmcompress.kernels.choices import Decisions, Question
from tvmcompress.trials import digest

RANDOM = 4  # one proposal in so many is made anew


@dataclass
class Space:
    """`questions`: by name, all candidates ever offered, in the analytic model's order."""

    questions: dict[str, list] = field(default_factory=dict)

    def learn(self, asked: Mapping[str, Question]) -> None:
        for name, question in asked.items():
            known = self.questions.setdefault(name, [])
            seen = {json.dumps(value, sort_keys=True) for value in known}
            known += [c for c in question.candidates if json.dumps(c, sort_keys=True) not in seen]

    @property
    def size(self) -> int:
        """Of the product of all decisions, some of which exclude others."""
        return int(np.prod([len(c) for c in self.questions.values()], dtype=object)) if self.questions else 1

    def random(self, rng: np.random.Generator) -> Decisions:
        """Each decision by itself; of n candidates the k-th with a probability that falls as 1/k."""
        return {name: self.draw(rng, values) for name, values in self.questions.items()}

    def near(self, decisions: Decisions, rng: np.random.Generator) -> Decisions:
        """With one or two decisions made anew, rather those of which there is more to choose."""
        open_ones = [name for name, values in self.questions.items() if len(values) > 1]
        if not open_ones:
            return dict(decisions)
        count = min(int(rng.integers(1, 3)), len(open_ones))
        weights = np.log([len(self.questions[name]) for name in open_ones])
        changed = rng.choice(open_ones, count, replace=False, p=weights / weights.sum())
        return {**decisions, **{name: self.draw(rng, self.questions[name]) for name in changed}}

    def draw(self, rng: np.random.Generator, values: Sequence) -> Any:
        return values[min(int(np.exp(rng.uniform(0, np.log(len(values) + 1)))) - 1, len(values) - 1)]

    def propose(
        self, best: Sequence[Decisions], count: int, known: set[str], rng: np.random.Generator
    ) -> list[Decisions]:
        """Up to `count` decisions that are not in `known` (digests): most near the best so far, some at random."""
        found: dict[str, Decisions] = {}
        for attempt in range(8 * count):
            start = best[int(rng.integers(len(best)))] if best and attempt % RANDOM else None
            one = self.near(start, rng) if start is not None else self.random(rng)
            key = digest(one)
            if key not in known and key not in found:
                found[key] = one
            if len(found) == count:
                break
        return list(found.values())

    def features(self, decisions: Decisions) -> dict[str, float]:
        """Numbers for the cost model: the place of each decision in the analytic order, and the numbers in it."""
        row: dict[str, float] = {}
        for name, value in decisions.items():
            offered = self.questions.get(name, [])
            if value in offered:
                row[f"{name} place"] = np.log2(1 + offered.index(value))
            numbers(name, value, row)
        return row


def numbers(name: str, value: Any, row: dict[str, float]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            numbers(f"{name} {key}", inner, row)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            numbers(f"{name} {index}", inner, row)
    elif isinstance(value, bool | int | float):
        row[name] = float(value)
    else:
        row[f"{name} = {value}"] = 1.0
