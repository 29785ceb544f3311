import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tests.passes.test_prune_magnitude import ALL, correlated, normal, weights
from tvmcompress.errors import RecipeError
from tvmcompress.ir.sparsity import matrix_of
from tvmcompress.passes import PruneBlocks

op, nn = relax.op, relax.op.nn


def of_conv(weight):
    shape = (1, weight.shape[1], 6, 6)
    return program(shape, lambda e, x: [e(nn.conv2d(x, const(weight), padding=1), "c")])


def pair(weight, kept):
    return [program((1, 4), lambda e, x, w=w: [e(op.matmul(x, const(w)), "fc")]) for w in (weight, kept)]


@pytest.mark.parametrize(
    "norm, stays",
    [
        ("l1", [[1, 1], [1, 1], [0, 0], [0, 0]]),  # sums 4 and 3.5
        ("l2", [[0, 0], [0, 0], [0, 3], [0.5, 0]]),  # sums of squares 4 and 9.25
        ("max", [[0, 0], [0, 0], [0, 3], [0.5, 0]]),
    ],
)
def test_by_hand(norm, stays):
    """Two blocks, of 2 inputs (rows of this weight) by 2 outputs."""
    before, after = pair([[1, 1], [1, 1], [0, 3], [0.5, 0]], stays)
    (row,) = check_pair(PruneBlocks(block=(2, 2), density=0.5, norm=norm, **ALL), before, after).notes
    assert row["pruned"] and row["kept_zeros"] == 2


def test_blocks_of_a_convolution():
    weight = normal(32, 8, 3, 3)
    outcome = PruneBlocks(block=(16, 4), density=0.25, **ALL)(of_conv(weight))
    after = weights(outcome.module)["c"]
    blocks = np.square(weight.reshape(2, 16, 2, 4, 3, 3)).sum(axis=(1, 3))  # (2, 2, 3, 3), 36 of them
    kept = blocks >= np.sort(blocks.reshape(-1))[-9]
    np.testing.assert_array_equal(after != 0, kept.repeat(16, 0).repeat(4, 1))
    (row,) = outcome.notes
    assert row["pattern"] == "blocks 16x4" and row["density"] == 0.25
    (row,) = check_unchanged(PruneBlocks(block=(16, 4), density=0.25, **ALL), outcome.module).notes
    assert row["not_pruned"] == "as sparse already: 0.25 of its blocks are not zero"


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_blocks_of_whole_kernels(norm):
    weight = np.random.default_rng(5).normal(size=(40, 16, 3, 3)).astype(np.float32)
    step = PruneBlocks(block=(16, 1), taps="all", density=0.25, norm=norm, **ALL)
    outcome = step(of_conv(weight))
    after = weights(outcome.module)["c"]
    reduce = {"l1": np.abs(weight).sum, "l2": np.square(weight).sum, "max": np.abs(weight).max}[norm]
    scores = reduce(axis=(2, 3))
    scores = np.stack(
        [getattr(part, "max" if norm == "max" else "sum")(0) for part in (scores[:16], scores[16:32], scores[32:])]
    )
    kept = np.repeat(scores >= np.sort(scores.reshape(-1))[-12], [16, 16, 8], axis=0)
    np.testing.assert_array_equal(after != 0, np.broadcast_to(kept[:, :, None, None], weight.shape))
    (row,) = outcome.notes
    assert row["pattern"] == "kernels 16x1"


def test_obs_of_whole_kernels():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 8, 3, 3)).astype(np.float32)
    before = of_conv(weight)
    mixed = np.concatenate([rng.standard_normal((4, 8)), 0.1 * np.eye(8)])  # channels that tell of each other
    samples = [np.einsum("nchw,cd->ndhw", rng.standard_normal((1, 12, 6, 6)), mixed) for _ in range(9)]
    samples = [sample.astype(np.float32) for sample in samples]
    step = dict(block=(8, 1), taps="all", density=0.5, **ALL)
    plain = PruneBlocks(**step)(before).module
    after = PruneBlocks(**step, repair="obs")(before, calibration(*samples[:8])).module
    blocks = (weights(after)["c"] != 0).reshape(2, 8, 8, 9)
    assert (blocks.any((1, 3)) == blocks.all((1, 3))).all() and blocks.mean() == 0.5
    x = samples[8]
    assert snr_db(run(before, x), run(after, x)) > snr_db(run(before, x), run(plain, x)) + 2


def test_blocks_that_do_not_divide():
    weight = normal(10, 6, 1, 1)
    step = PruneBlocks(block=(4, 4), density=0.5, ragged="skip", **ALL)
    (row,) = check_unchanged(step, of_conv(weight)).notes
    assert row["not_pruned"] == "block [4, 4] does not divide its 10 outputs and 6 inputs; try [2, 3]"
    outcome = PruneBlocks(block=(4, 4), density=0.5, **ALL)(of_conv(weight))
    after = matrix_of(weights(outcome.module)["c"], 0, 1)
    padded = np.pad(after, ((0, 2), (0, 2))).reshape(3, 4, 2, 4)
    assert np.count_nonzero(padded.any(axis=(1, 3))) == 3 and outcome.notes[0]["pruned"]


def test_blocks_stay_within_groups():
    """6 outputs a group: blocks of 4 and 2, not across."""
    weight = normal(12, 4, 1, 1)
    before = program((1, 8, 4, 4), lambda e, x: [e(nn.conv2d(x, const(weight), groups=2), "c")])
    after = weights(PruneBlocks(block=(4, 1), density=0.5, **ALL)(before).module)["c"].reshape(2, 6, 4)
    for part in (after[:, :4], after[:, 4:]):
        assert (part.any(axis=1) == (part != 0).all(axis=1)).all()


def test_one_threshold_for_all_layers():
    first, second = normal(16, 16), normal(16, 16) * 3
    body = lambda e, x: [e(op.matmul(e(op.matmul(x, const(first)), "a"), const(second)), "b")]  # noqa: E731
    outcome = PruneBlocks(block=(4, 4), density=0.5, scope="global", **ALL)(program((1, 16), body))
    densities = [row["density"] for row in outcome.notes]
    assert sum(densities) == 1 and densities[0] < densities[1]


@pytest.mark.parametrize("block", [(4, 1), (4, 4), (1, 8)])
def test_obs(block):
    weight = normal(32, 24)
    before = program((64, 32), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    samples, x = [correlated(64, 32, seed) for seed in range(8)], correlated(64, 32, 99)
    plain = PruneBlocks(block=block, density=0.5, **ALL)(before).module
    outcome = PruneBlocks(block=block, density=0.5, repair="obs", **ALL)(before, calibration(*samples))
    after = weights(outcome.module)["fc"].T
    blocks = after.reshape(24 // block[0], block[0], 32 // block[1], block[1])
    assert (blocks.any(axis=(1, 3)) == (blocks != 0).all(axis=(1, 3))).all() and np.count_nonzero(after) == 384
    assert snr_db(run(before, x), run(outcome.module, x)) > snr_db(run(before, x), run(plain, x)) + 5


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    density=st.floats(0.05, 1),
    norm=st.sampled_from(["l1", "l2", "max"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_are_whole(shape, block, density, norm, seed):
    weight = np.random.default_rng(seed).integers(1, 4, (*shape, 1, 1)).astype(np.float32)
    step = PruneBlocks(block=block, density=density, norm=norm, **ALL)
    after = weights(step(of_conv(weight)).module)["c"].reshape(shape)
    tall, wide = (-(-size // part) for size, part in zip(shape, block))
    padded = np.full((tall * block[0], wide * block[1]), np.nan)
    padded[: shape[0], : shape[1]] = after
    blocks = padded.reshape(tall, block[0], wide, block[1])
    some = np.nan_to_num(blocks).any(axis=(1, 3))
    whole = (blocks != 0).all(axis=(1, 3))  # what lies beyond the edge is not zero here
    np.testing.assert_array_equal(some, whole)
    assert np.count_nonzero(some) == max(1, round(density * some.size))


def test_wrong_options():
    for block in ((16,), (16, 0), (4, 4, 4), ()):
        with pytest.raises(
            RecipeError, match=r"block must be \[outputs, inputs\], each 1 … 4096, got .*; try \[16, 4\]"
        ):
            PruneBlocks(block=block)
    with pytest.raises(RecipeError, match="prune_blocks: density must be above 0"):
        PruneBlocks(density=0.0)
    with pytest.raises(RecipeError, match="taps must be one of 'each', 'all', got 'both'"):
        PruneBlocks(taps="both")
    with pytest.raises(RecipeError, match="norm must be one of 'l1', 'l2', 'max', got 'l3'"):
        PruneBlocks(norm="l3")
