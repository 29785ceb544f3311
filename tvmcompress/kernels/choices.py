"""Decisions that kernels leave open, and who makes them.

Wherever several ways are right, a plan or a schedule asks `choose(name, candidates)`. Candidates come in the order in
which the analytic model likes them, so that untuned code takes the first; every other one gives the same numbers.
A kernel is known by what it computes: two layers with one key share their decisions.

Decisions are written down as JSON, a table for each kernel: {"tile": {"pixels": 6, …}, "outermost": "rows", …}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from math import log2
from typing import Any, Protocol, TypeVar

import tvm

T = TypeVar("T")
KEY = "tvmcompress.kernel"  # the annotation of an anchor block that holds its kernel's key
SCHEDULES = 1  # raised when decisions come to mean something else; those written down before then are not used

Decisions = dict[str, Any]  # by name


def versions() -> str:
    """What decisions depend on beside the target: another TVM makes other code of them."""
    return f"tvm {tvm.__version__}, schedules {SCHEDULES}"


class Choose(Protocol):
    def __call__(self, name: str, candidates: Sequence[T]) -> T:
        """One of `candidates`, of which there is at least one."""


class Open(list):
    """Candidates that stand for many more: whatever a table says, as JSON, is one too."""


Choices = Callable[[str], Choose]  # from a kernel's key


def analytic(name: str, candidates: Sequence[T]) -> T:
    """What the model likes best."""
    return candidates[0]


def untuned(_key: str) -> Choose:
    return analytic


def first(best: T, others: Sequence[T]) -> list[T]:
    """Candidates with the best one in front."""
    return [best, *(other for other in others if other != best)]


def written(candidate: Any) -> Any:
    """A candidate as JSON: dataclasses by their fields, or by what their property `decision` says of them."""
    if hasattr(candidate, "decision"):
        return written(candidate.decision)
    if is_dataclass(candidate):
        return {field.name: written(getattr(candidate, field.name)) for field in fields(candidate)}
    if isinstance(candidate, list | tuple):
        return [written(value) for value in candidate]
    if isinstance(candidate, dict):
        return {key: written(value) for key, value in candidate.items()}
    return candidate


def decided(
    tables: Mapping[str, Mapping[str, Any]], otherwise: Callable[[Any, Sequence[Any]], int] = lambda _value, _offered: 0
) -> Choices:
    """Choices from tables by kernel; where one says nothing the analytic one.

    Where it names no candidate, the one whose place `otherwise` says, given all as JSON: the analytic one.
    """

    def of_kernel(key: str) -> Choose:
        table = tables.get(key, {})

        def choose(name: str, candidates: Sequence[T]) -> T:
            if name not in table:
                return candidates[0]
            offered = [written(candidate) for candidate in candidates]
            value = table[name]
            if value not in offered and isinstance(candidates, Open):
                return value
            return candidates[offered.index(value) if value in offered else otherwise(value, offered)]

        return choose

    return of_kernel


def nearest(value: Any, offered: Sequence[Any]) -> int:
    """The place of the candidate whose numbers are nearest to those of `value`, by their ratios; of the first where
    they have no number in common."""
    wanted = leaves(value)
    apart = []
    for leaf in map(leaves, offered):
        numbers = [p for p in wanted.keys() & leaf.keys() if number(wanted[p]) and number(leaf[p])]
        others = [p for p in wanted.keys() | leaf.keys() if p not in numbers and wanted.get(p) != leaf.get(p)]
        ratios = sum(abs(log2((1 + abs(wanted[p])) / (1 + abs(leaf[p])))) for p in numbers)
        apart.append(ratios + len(others) if numbers else float("inf"))
    return apart.index(min(apart))


def leaves(value: Any, path: tuple = ()) -> dict[tuple, Any]:
    """What a JSON value holds, by the way to it."""
    if not isinstance(value, dict | list):
        return {path: value}
    rows = value.items() if isinstance(value, dict) else enumerate(value)
    return {way: leaf for key, inner in rows for way, leaf in leaves(inner, (*path, key)).items()}


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Question:
    """What was asked of a chooser: the candidates, and which of them was taken. Another process gets them as JSON."""

    offered: Sequence[Any]
    taken: int

    @cached_property
    def candidates(self) -> tuple:
        """As JSON: made when it is asked for, of which compiling has no need."""
        return tuple(written(one) for one in self.offered)

    def __reduce__(self) -> tuple:
        return Question, (self.candidates, self.taken)


class Recorder:
    """Choices made by another, written down: `asked` holds by kernel, and then by name, each question."""

    def __init__(self, inner: Choices) -> None:
        self.inner = inner
        self.asked: dict[str, dict[str, Question]] = {}

    def __call__(self, key: str) -> Choose:
        choose, asked = self.inner(key), self.asked.setdefault(key, {})

        def watched(name: str, candidates: Sequence[T]) -> T:
            taken = choose(name, candidates)
            offered = [*candidates] if taken in candidates else [*candidates, taken]
            asked[name] = Question(offered, offered.index(taken))
            return taken

        return watched

    def decisions(self, key: str) -> Decisions:
        """What was taken for a kernel."""
        return {name: written(question.offered[question.taken]) for name, question in self.asked.get(key, {}).items()}
