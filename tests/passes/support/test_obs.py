"""The optimal brain surgeon against least squares, and rows of inputs against convolutions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.ir_pairs import const, program, run
from tvmcompress.ir.sparsity import matrix_of
from tvmcompress.passes.support import obs
from tvmcompress.passes.support.layers import layers
from tvmcompress.passes.support.masks import GreatestBlocks, NOfM, Tiling, greatest
from tvmcompress.passes.support.patches import Moments, Patches, patches_of

nn = relax.op.nn


def positive(size, seed=0):
    """E[x x^T] of correlated inputs."""
    rows = np.cumsum(np.random.default_rng(seed).normal(size=(8 * size, size)), axis=1)
    return rows.T @ rows / len(rows) + np.eye(size) * 0.01


def least_squares(weights, mask, hessian):
    """The matrix that is zero outside `mask` with the least loss, row by row."""
    found = np.zeros(weights.shape)
    for row, (w, m) in enumerate(zip(weights, mask)):
        found[row, m] = np.linalg.solve(hessian[np.ix_(m, m)], hessian[m] @ w)
    return found


def loss(weights, found, hessian):
    return float(np.einsum("oi,ij,oj->", weights - found, hessian, weights - found))


def test_the_factor():
    hessian = positive(20)
    u = obs.inverse_factor(hessian)
    np.testing.assert_array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u, np.linalg.inv(hessian), rtol=1e-6, atol=1e-8)


def test_one_weight_by_hand():
    """H = [[2, 1], [1, 2]]: without its first weight, w = (1, 1) is nearest as (0, 1 + 1/2); the loss is 3/2."""
    hessian, weights = np.array([[2.0, 1], [1, 2]]), np.array([[1.0, 1]])
    choose = lambda first, last, scores: np.array([[False, True]])[:, first:last]  # noqa: E731
    swept, _ = obs.sweep(weights, obs.inverse_factor(hessian), [0], choose)
    np.testing.assert_allclose(swept, [[0, 1.5]])
    assert loss(weights, swept, hessian) == pytest.approx(1.5)


def test_the_sweep_is_least_squares_when_only_first_columns_go():
    """What is kept lies to the right of all that goes, so all of it can make up for it."""
    hessian, weights = positive(40), np.random.default_rng(1).normal(size=(6, 40))
    mask = np.arange(40) >= np.array([[5], [10], [0], [39], [20], [7]])
    swept, _ = obs.sweep(weights, obs.inverse_factor(hessian), [0], lambda a, b, scores: mask[:, a:b])
    np.testing.assert_allclose(swept, least_squares(weights, mask, hessian), rtol=1e-6, atol=1e-8)


def test_refined_it_is_least_squares_for_any_mask():
    random = np.random.default_rng(2)
    hessian, weights = positive(16), random.normal(size=(8, 16))
    mask = random.random((8, 16)) < 0.5
    swept, _ = obs.sweep(weights, obs.inverse_factor(hessian), [0], lambda a, b, scores: mask[:, a:b])
    best = least_squares(weights, mask, hessian)
    found = obs.refine(weights, swept, mask, hessian)
    assert loss(weights, found, hessian) <= loss(weights, swept, hessian) + 1e-9
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)
    assert not found[~mask].any()


@pytest.mark.parametrize("width", [20, 300])
def test_it_loses_less_than_magnitude(width):
    hessian, weights = positive(width), np.random.default_rng(3).normal(size=(16, width))
    tiling = Tiling.of(weights.shape, (1, 1), 16, width)
    pattern = GreatestBlocks(tiling, weights.size // 2)
    found = obs.prune(weights, [hessian], pattern)
    plain = weights * pattern.mask(np.abs(weights))
    assert np.count_nonzero(found) == weights.size // 2
    assert loss(weights, found, hessian) < loss(weights, plain, hessian) / 10


def test_a_dead_input_goes_by_magnitude():
    assert (obs.damped(np.zeros((3, 3)), 0.01, 100) == np.eye(3)).all()
    weights = np.array([[3.0, 1, 2]])
    found = obs.prune(weights, [np.eye(3)], GreatestBlocks(Tiling.of((1, 3), (1, 1), 1, 3), 2))
    np.testing.assert_allclose(found, [[3, 0, 2]])


def test_few_rows_are_trusted_less():
    assert obs.damped(np.eye(8), 0.01, 2)[0, 0] == pytest.approx(1 + 0.04)
    assert obs.damped(np.eye(8), 0.01, 800)[0, 0] == pytest.approx(1.01)


@settings(deadline=None, max_examples=40)
@given(
    groups=st.integers(1, 2),
    height=st.integers(1, 6),
    taps=st.integers(1, 3),
    tap=st.integers(1, 12),
    block=st.sampled_from([(1, 1), (2, 2), (4, 1), (1, 4), (3, 5)]),
    nm=st.sampled_from([None, (2, 4), (1, 3)]),
    zeros=st.floats(0, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_masks_have_their_pattern(groups, height, taps, tap, block, nm, zeros, seed):
    random = np.random.default_rng(seed)
    width = taps * tap
    weights = random.normal(size=(groups * height, width))
    weights[random.random(weights.shape) < zeros] = 0
    tiling = Tiling.of(weights.shape, block, height, tap)
    alive = int(np.count_nonzero(tiling.scores(np.abs(weights))))
    count = max(1, alive // 2)
    pattern = NOfM(*nm, tap, width) if nm else GreatestBlocks(tiling, count)
    found = obs.prune(weights, [positive(width, g) for g in range(groups)], pattern)
    assert not found[weights == 0].any()
    if nm:
        cut = np.pad(found.reshape(-1, tap), ((0, 0), (0, -tap % nm[1]))).reshape(-1, nm[1])
        assert (np.count_nonzero(cut, axis=1) <= nm[0]).all()
    else:
        assert np.count_nonzero(tiling.scores(np.abs(found))) <= count
        some = tiling.spread(tiling.scores(np.abs(found)) > 0)
        np.testing.assert_array_equal(found != 0, some & (weights != 0))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), size=st.integers(0, 40), most=st.integers(0, 3))
def test_the_greatest(data, size, most):
    scores = np.array(data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size)), np.float32)
    count = data.draw(st.integers(0, size))
    mask = greatest(scores, count)
    assert mask.sum() == min(count, np.count_nonzero(scores)) and not mask[scores == 0].any()
    if mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


CONVOLUTIONS = [
    (nn.conv2d, (2, 6, 7, 8), (4, 3, 3, 2), {"groups": 2, "strides": (2, 1), "padding": (1, 0, 2, 1)}),
    (nn.conv2d, (1, 4, 9, 9), (5, 4, 3, 3), {"dilation": 2, "padding": 1}),
    (nn.conv2d, (1, 5, 7, 4), (6, 3, 3, 4), {"data_layout": "NHWC", "kernel_layout": "OHWI", "padding": 1}),
    (nn.conv1d, (2, 4, 11), (3, 4, 5), {"strides": 3, "padding": 2}),
    (nn.conv3d, (1, 2, 4, 5, 6), (3, 2, 2, 1, 3), {"padding": 1}),
]


@pytest.mark.parametrize("layer, shape, kernel, options", CONVOLUTIONS)
def test_rows_are_what_a_convolution_multiplies(layer, shape, kernel, options):
    random = np.random.default_rng(0)
    weight, x = (random.normal(size=s).astype(np.float32) for s in (kernel, shape))
    mod = program(shape, lambda e, x: [e(layer(x, const(weight), **options), "c")])
    (found,) = layers(mod)
    patches = patches_of(found)
    rows = patches.rows(x, 10**6, random)
    matrix = matrix_of(weight, found.channel, found.inner)
    assert rows.shape[2] == patches.inputs == matrix.shape[1]
    wanted = np.moveaxis(run(mod, x), found.input_axis, 0).reshape(len(matrix), -1)
    got = rows @ matrix.reshape(patches.groups, -1, matrix.shape[1]).transpose(0, 2, 1)  # (groups, rows, outputs)
    np.testing.assert_allclose(got.transpose(0, 2, 1).reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)
    few = patches.rows(x, 3, random)
    assert few.shape[1] == 3
    assert all((few[:, [i]] == rows).all(axis=(0, 2)).any() for i in range(3))


def test_moments():
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(3, 7, 5)).astype(np.float32) + 1000 for _ in range(4)]
    moments = Moments(Patches("x", -1, 5), most=10**6)
    for array in arrays:
        moments.add(array, 0.0, 0.0)
    rows = np.concatenate(arrays).reshape(-1, 5).astype(np.float64)
    assert moments.count == 84 and moments.bytes == 100
    np.testing.assert_allclose(moments.mean()[0], rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.covariance(0), np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(moments.second(0), rows.T @ rows / 84, rtol=1e-6)
