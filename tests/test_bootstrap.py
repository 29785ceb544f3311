"""Intervals of medians and their ratios, against cases whose answer is known."""

import numpy as np
import pytest

from tvmcompress.measurement import bootstrap


def test_equal_rounds_leave_no_doubt():
    assert bootstrap.median([[2.0] * 10]) == bootstrap.Interval(2, 2, 2)
    assert bootstrap.ratio([[3.0] * 10], [[2.0] * 10], together=False) == bootstrap.Interval(1.5, 1.5, 1.5)


def test_the_interval_is_as_wide_as_theory_says():
    """The standard error of a median of n normal values is sigma · sqrt(pi / 2n): here 0.0125, so ±0.0246."""
    values = np.random.default_rng(0).normal(1, 0.1, 100).tolist()
    found = bootstrap.median([values])
    assert 0.5 * 0.049 < found.high - found.low < 1.6 * 0.049


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = bootstrap.median([random.normal(1, 0.1, 25).tolist()])
        held += found.low <= 1 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_rounds_in_turn_cancel_what_both_suffered():
    drift = np.linspace(1, 2, 30)
    ours, theirs = [(1.1 * drift).tolist()], [drift.tolist()]
    together, apart = (bootstrap.ratio(ours, theirs, t) for t in (True, False))
    assert together.high - together.low < 1e-9 and together.value == pytest.approx(1.1)
    assert apart.high - apart.low > 0.1


def test_processes_that_differ_widen_the_interval():
    even, uneven = [[1.0, 1.01] * 5] * 3, [[0.9, 0.91] * 5, [1.0, 1.01] * 5, [1.1, 1.11] * 5]
    assert bootstrap.median(even).high - bootstrap.median(even).low <= 0.011
    assert bootstrap.median(uneven).high - bootstrap.median(uneven).low > 0.1
