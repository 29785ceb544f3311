"""Patterns that were put into a matrix are found, and zeros at random are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmcompress.ir.sparsity import BLOCKS, Sparsity, matrix_of, sparsity, weight_of


def full(rows, columns, seed=0):
    return np.random.default_rng(seed).uniform(1, 2, (rows, columns)).astype(np.float32)


def in_blocks(rows, columns, block, density, seed=0):
    alive = np.random.default_rng(seed).random((-(-rows // block[0]), -(-columns // block[1]))) < density
    return full(rows, columns) * np.kron(alive, np.ones(block))[:rows, :columns]


def in_groups(rows, columns, n, m, seed=0):
    """n of each m neighbours in a row, the others zero; of the last group as many as there are."""
    order = np.random.default_rng(seed).random((rows, -(-columns // m), m)).argsort(axis=-1)
    return full(rows, columns) * (order < n).reshape(rows, -1)[:, :columns]


def test_by_hand():
    assert sparsity(np.ones((8, 8))) == Sparsity(1.0)
    assert sparsity(np.zeros((8, 8))) == Sparsity(0.0, "channels")
    rows = np.ones((8, 8))
    rows[[1, 5]] = 0
    assert sparsity(rows) == sparsity(rows.T) == Sparsity(0.75, "channels")
    two_of_four = np.tile([[1, 0, 0, 1], [0, 1, 1, 0]], (4, 4))
    assert sparsity(two_of_four) == Sparsity(0.5, "2:4")
    assert str(Sparsity(0.5, "blocks", (16, 4))) == "blocks 16x4" and str(Sparsity(0.5, "2:4")) == "2:4"


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows, columns", [(64, 64), (70, 100)])
def test_blocks(block, rows, columns):
    matrix = in_blocks(rows, columns, block, 0.4)
    assert sparsity(matrix) == Sparsity(np.count_nonzero(matrix) / matrix.size, "blocks", block)


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 4), (4, 8), (3, 8), (8, 16), (5, 16)])
@pytest.mark.parametrize("columns", [64, 70])
def test_n_of_m(n, m, columns):
    assert sparsity(in_groups(32, columns, n, m)).pattern == f"{n}:{m}"


def test_channels_of_a_convolution_go_through_all_taps():
    weight = np.random.default_rng(0).normal(size=(32, 8, 3, 3))
    weight[:, [2, 3, 7]] = 0
    assert sparsity(matrix_of(weight, 0, 1), tap=8).pattern == "channels"


@pytest.mark.parametrize("block", [(16, 1), (4, 4), (8, 1)])
def test_blocks_of_whole_kernels(block):
    kernels = in_blocks(64, 32, block, 0.4)
    matrix = full(64, 9 * 32) * np.tile(kernels != 0, (1, 9))
    density = np.count_nonzero(matrix) / matrix.size
    assert sparsity(matrix, tap=32) == Sparsity(density, "kernels", block)
    assert str(sparsity(matrix, tap=32)) == f"kernels {block[0]}x{block[1]}"
    assert sparsity(kernels).pattern == "blocks"  # of one tap there is nothing else


def test_blocks_do_not_cross_taps():
    """6 inputs a tap: blocks of 1x4 are of 4 and 2, twice in 12 columns."""
    alive = np.random.default_rng(0).random((64, 2, 2)) < 0.4
    matrix = full(64, 12) * alive[..., [0, 0, 0, 0, 1, 1]].reshape(64, 12)
    assert sparsity(matrix, tap=6) == Sparsity(np.count_nonzero(matrix) / matrix.size, "blocks", (1, 4))
    assert sparsity(matrix).pattern == "unstructured"


@pytest.mark.parametrize("block", [(16, 4), (16, 1), (4, 1), (1, 16)])
def test_zeros_of_rounding_do_not_hide_blocks(block):
    matrix = in_blocks(64, 64, block, 0.4)
    matrix[np.random.default_rng(1).random(matrix.shape) < 0.02] = 0
    found = sparsity(matrix)
    assert found.block == block


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), density=st.floats(0.01, 1), seed=st.integers(0, 2**32 - 1))
def test_random_zeros_are_no_pattern(rows, columns, density, seed):
    alive = np.random.default_rng(seed).random((rows, columns)) < density
    found = sparsity(alive)
    assert found.density == np.count_nonzero(alive) / alive.size
    if np.count_nonzero(alive) >= 16 and min(rows, columns) >= 8:  # a few weights may lie in a pattern by chance
        assert found.pattern in ("dense", "unstructured")


@settings(deadline=None, max_examples=40)
@given(shape=st.lists(st.integers(1, 5), min_size=2, max_size=5), data=st.data())
def test_matrix_and_back(shape, data):
    channel, inner = data.draw(st.permutations(range(len(shape))))[:2]
    weight = np.arange(np.prod(shape)).reshape(shape)
    matrix = matrix_of(weight, channel, inner)
    assert matrix.shape[0] == shape[channel]
    np.testing.assert_array_equal(weight_of(matrix, weight.shape, channel, inner), weight)


def test_the_order_of_inputs_is_that_of_taps():
    weight = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(matrix_of(weight, 0, 1), weight.transpose(0, 2, 3, 1).reshape(2, -1))
    product = np.arange(12).reshape(4, 3)  # (K, N)
    np.testing.assert_array_equal(matrix_of(product, 1, 0), product.T)
