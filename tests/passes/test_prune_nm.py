import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tests.passes.test_prune_magnitude import ALL, correlated, normal, weights
from tvmcompress.errors import RecipeError
from tvmcompress.ir.sparsity import matrix_of
from tvmcompress.passes import PruneNm

op, nn = relax.op, relax.op.nn


def test_by_hand():
    """(K, N): groups go down the columns; the last has two of six inputs and keeps both."""
    weight = [[1, 9], [-4, 8], [3, -7], [2, 6], [0.5, 1], [0.1, 2]]
    kept = [[0, 9], [-4, 8], [3, 0], [0, 0], [0.5, 1], [0.1, 2]]
    before = program((1, 6), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    after = program((1, 6), lambda e, x: [e(op.matmul(x, const(kept)), "fc")])
    (row,) = check_pair(PruneNm(**ALL), before, after).notes
    assert row["pruned"] and row["density"] == pytest.approx(8 / 12)
    (row,) = check_unchanged(PruneNm(**ALL), after).notes
    assert row["not_pruned"] == "has no more than 2 of 4 weights already"


def test_groups_of_a_convolution_are_of_input_channels():
    weight = normal(16, 8, 3, 3)
    before = program((1, 8, 6, 6), lambda e, x: [e(nn.conv2d(x, const(weight), padding=1), "c")])
    outcome = PruneNm(**ALL)(before)
    after = weights(outcome.module)["c"]
    counts = np.count_nonzero(after.reshape(16, 2, 4, 3, 3), axis=2)
    assert (counts == 2).all() and outcome.notes[0]["pattern"] == "2:4" and outcome.notes[0]["density"] == 0.5
    least = np.sort(np.abs(weight).reshape(16, 2, 4, 3, 3), axis=2)[:, :, 2:3]
    np.testing.assert_array_equal(
        after, np.where(np.abs(weight) >= least.repeat(4, 2).reshape(weight.shape), weight, 0)
    )


@pytest.mark.parametrize("n, m", [(2, 4), (4, 8), (1, 4), (3, 5)])
def test_obs(n, m):
    weight = normal(32, 24)
    before = program((64, 32), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    samples, x = [correlated(64, 32, seed) for seed in range(8)], correlated(64, 32, 99)
    plain = PruneNm(n=n, m=m, **ALL)(before).module
    outcome = PruneNm(n=n, m=m, repair="obs", **ALL)(before, calibration(*samples))
    assert holds(weights(outcome.module)["fc"].T, n, m)
    assert snr_db(run(before, x), run(outcome.module, x)) > snr_db(run(before, x), run(plain, x)) + 5


def holds(matrix, n, m):
    groups = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % m))).reshape(len(matrix), -1, m)
    return (np.count_nonzero(groups, axis=2) <= n).all()


@settings(deadline=None, max_examples=30)
@given(
    taps=st.integers(1, 2),
    rows=st.integers(1, 6),
    columns=st.integers(1, 20),
    m=st.integers(2, 9),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_n_of_m_holds(taps, rows, columns, m, data, seed):
    n = data.draw(st.integers(1, m - 1))
    random = np.random.default_rng(seed)
    weight = random.integers(-2, 3, (rows, columns, 1, taps)).astype(np.float32)
    before = program((1, columns, 3, 3), lambda e, x: [e(nn.conv2d(x, const(weight)))])
    (after,) = weights(PruneNm(n=n, m=m, **ALL)(before).module).values()
    for tap in range(taps):
        was, now = (matrix_of(w[..., [tap]], 0, 1) for w in (weight, after))
        assert holds(now, n, m)
        np.testing.assert_array_equal(now[now != 0], was[now != 0])
        for first in range(0, columns, m):
            old, new = was[:, first : first + m], now[:, first : first + m]
            np.testing.assert_array_equal(np.count_nonzero(new, axis=1), np.minimum(np.count_nonzero(old, axis=1), n))
            gone = np.where(new == 0, np.abs(old), 0).max(axis=1)
            least = np.where(new != 0, np.abs(new), 9).min(axis=1)
            assert (gone <= least).all()


def test_wrong_options():
    with pytest.raises(RecipeError, match="prune_nm: n must be less than m, got 4:4; try 2:4"):
        PruneNm(n=4, m=4)
    with pytest.raises(RecipeError, match="prune_nm: n must be 1 or more, got 0"):
        PruneNm(n=0)
