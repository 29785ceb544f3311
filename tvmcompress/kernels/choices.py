"""Decisions that kernels leave open, and who makes them.

Wherever several ways are right, a plan or a schedule asks `choose(name, candidates)`. Candidates come in the order in
which the analytic model likes them, so that untuned code takes the first; every other one gives the same numbers.
A kernel is known by what it computes: two layers with one key share their decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
KEY = "tvmcompress.kernel"  # the annotation of an anchor block that holds its kernel's key


class Choose(Protocol):
    def __call__(self, name: str, candidates: Sequence[T]) -> T:
        """One of `candidates`, of which there is at least one."""


Choices = Callable[[str], Choose]  # from a kernel's key


def analytic(name: str, candidates: Sequence[T]) -> T:
    """What the model likes best."""
    return candidates[0]


def untuned(_key: str) -> Choose:
    return analytic


def first(best: T, others: Sequence[T]) -> list[T]:
    """Candidates with the best one in front."""
    return [best, *(other for other in others if other != best)]
