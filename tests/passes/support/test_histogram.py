import numpy as np
import pytest

from tvmcompress.passes.support.histogram import Histogram
from tvmcompress.passes.support.ranges import METHODS, choose, params


def histogram(*arrays, bins=4096):
    found = Histogram(bins)
    for array in arrays:
        found.add(array, float(array.min()), float(array.max()))
    return found


def test_counts_by_hand():
    found = histogram(np.array([0.0, 0.5, 1.5, 3.0]), bins=8)
    assert found.width == 1.0 and found.start == 0
    assert found.counts.tolist() == [2, 1, 0, 1, 0, 0, 0, 0]
    found.add(np.array([-9.0]), -9.0, -9.0)  # -9 … 3 needs 13 bins of 1: merged to width 2, from -10 on
    assert found.width == 2.0 and found.start == -5
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 3, 1, 0]


def test_the_order_does_not_matter():
    arrays = [np.random.default_rng(i).normal(size=1000) * 10**i for i in range(4)]
    a, b = histogram(*arrays), histogram(*reversed(arrays))
    while a.exponent < b.exponent:
        a.merge()
    while b.exponent < a.exponent:
        b.merge()
    counts = [dict(zip((np.nonzero(h.counts)[0] + h.start).tolist(), h.counts[h.counts > 0].tolist())) for h in (a, b)]
    assert counts[0] == counts[1] and sum(counts[0].values()) == 4000


@pytest.mark.parametrize("values", [[5.0], [-3.0, -3.0], [0.0], [1e-30, 1e-29], [1e30, -1e30], [1e6, 1e6 + 0.1]])
def test_extreme_ranges(values):
    array = np.array(values)
    found = histogram(array, np.array([0.0, 1.0]), array)
    assert found.counts.sum() == 2 * len(values) + 2
    assert found.quantile(0) == found.low and found.quantile(1) == found.high


def test_quantiles():
    values = np.random.default_rng(0).uniform(-1, 3, 100_000)
    found = histogram(*np.split(values, 10))
    for q in (0.001, 0.25, 0.5, 0.999):
        assert abs(found.quantile(q) - np.quantile(values, q)) < found.width


@pytest.mark.parametrize("method", METHODS)
def test_ranges_hold_zero_and_stay_inside_what_was_seen(method):
    for values in (np.linspace(2, 3, 100), np.linspace(-3, -2, 100), np.linspace(-1, 5, 100), np.zeros(4)):
        low, high = choose(histogram(values), method, 99.9)
        assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)


def test_least_error_beats_the_whole_range():
    values = np.concatenate([np.random.default_rng(0).normal(size=1_000_000), [12.0]])
    found = histogram(values)

    def error(limits):
        p = params(*limits)
        return np.square((np.clip(np.rint(values / p.scale) + p.zero, 0, 255) - p.zero) * p.scale - values).sum()

    best = error(choose(found, "mse", 100))
    assert best < error((values.min(), values.max())) / 1.5
    # No range on a grid is much better than the one found.
    assert best < 1.1 * min(error((values.min(), high)) for high in np.linspace(1, 12, 50))


def test_params_by_hand():
    assert params(-55.0, 200.0) == (p := params(-55.0, 200.0)) and (p.scale, p.zero) == (1.0, 55)
    assert params(10.0, 510.0).scale == 2.0 and params(10.0, 510.0).zero == 0
    assert params(-255.0, -1.0).zero == 255
    assert (params(0.0, 0.0).scale, params(0.0, 0.0).zero) == (1.0, 0)
