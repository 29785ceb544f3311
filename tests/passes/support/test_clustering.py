"""k-means in one dimension."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmcompress.ir import ops
from tvmcompress.passes.support import clustering
from tvmcompress.passes.support.clustering import hashed_means, kmeans, nearest, share


def error(values, centres, weights=1.0):
    found = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]
    return float((np.square(values - found) * weights).sum())


def test_by_hand():
    np.testing.assert_array_equal(kmeans(np.float32([1, 2, 9, 3, 11]), 2), [2, 10])


def test_zero_is_a_centre_that_stays():
    values = np.float32([0, 0, 0, 1, 1.5, -2.5, -3.5])
    np.testing.assert_array_equal(kmeans(values, 3, zero=True), [-3, 0, 1.25])
    np.testing.assert_array_equal(nearest(values, np.array([-3, 0, 1.25])), [1, 1, 1, 2, 2, 0, 0])


def test_few_different_values_lose_nothing():
    np.testing.assert_array_equal(kmeans(np.float32([3, 1, 3, 1, 2]), 3), [1, 2, 3])
    np.testing.assert_array_equal(kmeans(np.float32([3, 0, 3]), 2, zero=True), [0, 3])
    np.testing.assert_array_equal(kmeans(np.zeros(4, np.float32), 16, zero=True), [0])


def test_weights_pull_a_centre():
    """The mean of 0, three times, and 4 is 1."""
    np.testing.assert_array_equal(kmeans(np.float32([0, 4, 100]), 2, weights=np.float32([3, 1, 1])), [1, 100])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    st.integers(2, 6),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_every_centre_is_the_mean_of_what_is_nearest_to_it(numbers, clusters, zero, random):
    values = np.float32(numbers)
    weights = np.float32([random.randint(1, 4) for _ in numbers])
    centres = kmeans(values, clusters, weights, zero)
    assert len(centres) <= clusters and (np.diff(centres) > 0).all()
    bounds = (centres[1:] + centres[:-1]) / 2
    cell = np.searchsorted(bounds, values.astype(np.float64))
    for i, centre in enumerate(centres):
        if centre != 0 and (cell == i).any():
            np.testing.assert_allclose(centre, np.average(values[cell == i], weights=weights[cell == i]), atol=1e-4)
    assert not zero or 0 in centres
    even = np.linspace(values.min(), values.max(), clusters)
    assert zero or error(values, centres, weights) <= error(values, even, weights) * 1.001 + 1e-3


@pytest.mark.parametrize("clusters, least", [(16, 20.2), (256, 42.8)])
def test_a_normal_distribution_is_quantized_as_well_as_it_can_be(clusters, least):
    """Max, "Quantizing for minimum distortion", 1960: 20.22 dB with 16 levels; about 43 with 256."""
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    assert 10 * np.log10(np.square(values).sum() / error(values, kmeans(values, clusters))) > least - 0.1


def test_a_large_layer_is_judged_by_some_of_its_values(monkeypatch):
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    whole = error(values, kmeans(values, 16))
    monkeypatch.setattr(clustering, "MOST_VALUES", 5000)
    assert error(values, kmeans(values, 16)) < 1.05 * whole


@pytest.mark.parametrize("clusters, bits", [(2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8), (256, 8)])
def test_indices_take_as_few_bits_as_they_can(clusters, bits):
    rows = np.random.default_rng(0).normal(size=(2, 3001)).astype(np.float32)
    shared = share(rows, clusters, None, False)
    assert shared.bits == bits and 0.95 * clusters <= shared.used <= clusters
    assert shared.codebook.shape == (2, 2**bits)
    packed = ops.pack_indices(shared.indices, bits)
    assert packed.nbytes + shared.codebook.nbytes == shared.nbytes
    np.testing.assert_array_equal(ops.unpack_indices(packed, bits)[:, :3001], shared.indices)


def test_integers_stay_integers():
    rows = np.random.default_rng(0).integers(-127, 128, (1, 500), np.int8)
    rows[0, ::3] = 0
    shared = share(rows, 16, None, True)
    assert shared.values.dtype == np.int8 and not shared.values[rows == 0].any()


def test_hashing_spreads_evenly_and_shares_means():
    weight = np.random.default_rng(0).normal(size=(80, 100)).astype(np.float32)
    at = ops.bucket(np.arange(8000), 100)
    assert np.bincount(at, minlength=100).min() > 40 and at.max() == 99
    values = hashed_means(weight, 100)
    np.testing.assert_allclose(values[7], weight.reshape(-1)[at == 7].mean(), rtol=1e-5)
