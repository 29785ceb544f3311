"""The space of decisions, and the cost model that ranks it."""

from __future__ import annotations

import numpy as np
import pytest

from tvmcompress.kernels.choices import Question
from tvmcompress.trials import BESIDE, Trial, digest
from tvmcompress.tuning.candidates import Space
from tvmcompress.tuning.cost_model import LEAST, CostModel
from tvmcompress.tuning.kernel import Kernel
from tvmcompress.tuning.tasks import Task

ASKED = {
    "tile": Question(tuple({"pixels": p, "vectors": v} for p in range(1, 9) for v in (1, 2, 4)), 0),
    "outermost": Question(("channels", "rows"), 0),
    "tasks": Question((3, 0, 1, 2), 0),
    "only": Question((1,), 0),
}


def space() -> Space:
    made = Space()
    made.learn(ASKED)
    return made


def test_learns_what_is_asked_later() -> None:
    made = space()
    made.learn({"tasks": Question((3, 5), 0), "division": Question(([1, 2], [2, 2]), 0)})
    assert made.questions["tasks"] == [3, 0, 1, 2, 5] and made.questions["division"] == [[1, 2], [2, 2]]
    assert made.size == 24 * 2 * 5 * 1 * 2


def test_proposals_are_new_and_each_is_a_candidate() -> None:
    made, rng = space(), np.random.default_rng(0)
    known = {digest(one) for one in made.propose([], 50, set(), rng)}
    more = made.propose([made.random(rng)], 50, known, rng)
    assert len(known) == 50 and len(more) > 25 and not known & {digest(one) for one in more}
    for one in more:
        assert all(one[name] in question.candidates for name, question in ASKED.items())


def test_a_small_space_is_tried_to_the_end() -> None:
    made, rng = Space(), np.random.default_rng(0)
    made.learn({"a": Question((1, 2, 3), 0), "b": Question((1, 2), 0)})
    known: set[str] = set()
    for _ in range(20):
        known |= {digest(one) for one in made.propose([], 4, known, rng)}
    assert len(known) == 6 and not made.propose([{"a": 1, "b": 1}], 4, known, rng)


def test_near_changes_little() -> None:
    made, rng = space(), np.random.default_rng(0)
    start = made.random(rng)
    for _ in range(50):
        assert sum(start[name] != value for name, value in made.near(start, rng).items()) <= 2


def test_the_model_finds_what_is_fast() -> None:
    made, rng = space(), np.random.default_rng(0)
    speed = lambda d: 1 / (1 + abs(d["tile"]["pixels"] - 6) + (d["outermost"] == "channels"))  # noqa: E731
    rows = [made.random(rng) for _ in range(200)]
    model = CostModel()
    assert model.predict([made.features(rows[0])]) is None
    model.fit([made.features(one) for one in rows[: LEAST - 1]], [1.0] * (LEAST - 1))
    assert model.predict([made.features(rows[0])]) is None
    model.fit([made.features(one) for one in rows], [speed(one) for one in rows])
    others = [made.random(rng) for _ in range(200)]
    scores = model.predict([made.features(one) for one in others])
    assert np.corrcoef(scores, [speed(one) for one in others])[0, 1] > 0.9


def test_times_are_compared_with_the_untuned_form_beside_them() -> None:
    """A batch of a slow while: twice the times, which say nothing of its candidates."""

    def trial(number: int, ms: float, beside: float | None = None) -> Trial:
        conditions = {} if beside is None else {BESIDE: beside}
        return Trial("t", "w", "b", "v", {"number": number}, "ok", (ms,), conditions=conditions)

    failed = Trial("t", "w", "b", "v", {"number": 9}, "run_crash", conditions={BESIDE: 1.0})
    quick, slow = [trial(1, 0.9, 1.0), trial(2, 1.1, 1.0)], [trial(3, 1.6, 2.0), trial(4, 1.9, 2.0)]
    kernel = Kernel(Task("w", None, 1, 1), trials=[trial(0, 1.0), *quick, *slow, failed], untuned={"number": 0})  # type: ignore[arg-type]
    assert kernel.start == 1.5  # the median of 1 and 2
    assert [t.decisions["number"] for t in kernel.good()] == [3, 1, 4, 0, 2]
    assert kernel.best == pytest.approx(1.2)
    assert kernel.finalists() == [{"number": 3}, {"number": 1}, {"number": 4}]
    assert np.isinf(kernel.times()[failed.digest])
