import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tvmcompress.errors import ModelError, RecipeError, SampleError
from tvmcompress.ir import graph
from tvmcompress.passes import PruneMagnitude, QuantizeStatic, QuantizeWeights

op, nn = relax.op, relax.op.nn
RNG = np.random.default_rng(0)
ALL = {"min_size": 0, "skip_first": False}


@pytest.fixture(autouse=True)
def same_numbers():
    """In whatever order tests run."""
    RNG.bit_generator.state = np.random.default_rng(1234).bit_generator.state


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def weights(mod) -> dict[str, np.ndarray]:
    """The constant operand of each layer."""
    layers = [b for b in graph.bindings(mod) if graph.op_name(b.value) in ("relax.matmul", "relax.nn.conv2d")]
    return {
        b.var.name: graph.value(next(a for a in b.value.args if graph.is_const(a)))
        for b in layers
        if any(graph.is_const(a) for a in b.value.args)
    }


def test_by_hand():
    before = program((1, 2), lambda e, x: [e(op.matmul(x, const([[3, -1, 0.5], [-2, 4, 1]])), "fc")])
    after = program((1, 2), lambda e, x: [e(op.matmul(x, const([[3, 0, 0], [-2, 4, 0]])), "fc")])
    (row,) = check_pair(PruneMagnitude(density=0.5, **ALL), before, after).notes
    assert row == {
        "pass": "prune_magnitude",
        "layer": "fc",
        "kind": "matmul",
        "macs": 6,
        "pruned": True,
        "not_pruned": "",
        "density_before": 1.0,
        "density": 0.5,
        "pattern": "unstructured",
        "kept_zeros": 0,
        "repair": "none",
    }


def two(first, second, shape=(1, 4)):
    return program(shape, lambda e, x: [e(op.matmul(e(op.matmul(x, const(first)), "a"), const(second)), "b")])


def test_one_threshold_for_all_layers():
    first, second = np.diag([8, 7, 6, 5]) + 1, np.ones((4, 4)) * 2
    # 16 of 32: the 4 great ones of the first layer, and 12 of the second.
    after = PruneMagnitude(density=0.5, scope="global", **ALL)(two(first, second)).module
    kept = weights(after)
    np.testing.assert_array_equal(kept["a"], np.diag([9, 8, 7, 6]))
    assert np.count_nonzero(kept["b"]) == 12
    each = weights(PruneMagnitude(density=0.5, **ALL)(two(first, second)).module)
    assert [np.count_nonzero(w) for w in each.values()] == [8, 8]


def test_numerics():
    weight, x = normal(8, 4, 3, 3), normal(1, 4, 6, 6)
    before = program((1, 4, 6, 6), lambda e, x: [e(nn.conv2d(x, const(weight), padding=1))])
    after = PruneMagnitude(density=0.3, **ALL)(before).module
    threshold = np.sort(np.abs(weight).reshape(-1))[-round(0.3 * weight.size)]
    pruned = np.where(np.abs(weight) >= threshold, weight, 0)
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    wanted = np.einsum("chwij,ocij->ohw", windows, pruned)
    np.testing.assert_allclose(run(after, x)[0], wanted, rtol=1e-4, atol=1e-4)


def test_zeros_that_are_there_stay_and_count():
    weight = normal(16, 16)
    weight[:, ::2] = 0
    before = program((1, 16), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    outcome = PruneMagnitude(density=0.25, **ALL)(before)
    (after,) = weights(outcome.module).values()
    assert np.count_nonzero(after) == 64 and not after[:, ::2].any()
    assert outcome.notes[0]["kept_zeros"] == 128 and outcome.notes[0]["density_before"] == 0.5
    (row,) = check_unchanged(PruneMagnitude(density=0.5, **ALL), before).notes
    assert row["not_pruned"] == "as sparse already: 0.5 of its weights are not zero" and not row["pruned"]
    assert row["density"] == 0.5 and row["pattern"] == "channels"
    again = check_unchanged(PruneMagnitude(density=0.25, **ALL), outcome.module)
    assert "as sparse already" in again.notes[0]["not_pruned"]


def test_what_is_left_alone():
    def body(e, x):
        y = e(nn.conv2d(e(op.multiply(x, const(2.0))), const(normal(8, 3, 1, 1))), "first")
        y = e(nn.conv2d(y, const(normal(8, 1, 3, 3)), groups=8, padding=1), "depthwise")
        y = e(nn.conv2d(y, const(normal(8, 8, 1, 1))), "small")
        y = e(nn.conv2d(y, const(normal(8, 8, 3, 3)), padding=1), "named")
        y = e(op.reshape(y, (8, 16)))
        return [e(op.matmul(y, e(op.permute_dims(y))), "attention")]

    outcome = check_unchanged(PruneMagnitude(min_size=65, skip=("nam*",)), program((1, 3, 4, 4), body))
    assert {row["layer"]: row["not_pruned"] for row in outcome.notes} == {
        "first": "reads the model's input, and skip_first = true",
        "depthwise": "depthwise: few weights, and an output has no others to go by",
        "small": "smaller than min_size = 65",
        "named": "skipped by name 'nam*'",
        "attention": "its weights are not constant",
    }


def test_single_layers():
    before = two(normal(4, 4), normal(4, 4))
    outcome = PruneMagnitude(density=0.5, only=("b",), **ALL)(before)
    assert [np.count_nonzero(w) for w in weights(outcome.module).values()] == [16, 8]
    assert outcome.notes[0]["not_pruned"] == "not named in 'only'"
    assert [np.count_nonzero(w) for w in weights(PruneMagnitude(skip_kinds=("conv",), **ALL)(before).module).values()]


def test_a_weight_of_two_layers_stays_one():
    weight = const(normal(8, 8))
    before = program((1, 8), lambda e, x: [e(op.matmul(e(op.matmul(x, weight), "a"), weight), "b")])
    for step in (PruneMagnitude(**ALL), PruneMagnitude(repair="obs", **ALL), PruneMagnitude(repair="bias", **ALL)):
        outcome = step(before, calibration(normal(1, 8), normal(1, 8)))
        stored = {c for b in graph.bindings(outcome.module) for c in graph.constants_of(b.value)}
        assert len(stored) == 1 and np.count_nonzero(graph.value(stored.pop())) == 32
        assert [row["pruned"] for row in outcome.notes] == [True, True]


def test_bias_takes_back_the_mean():
    """By hand: of W = [[2], [1]] the 1 goes; the inputs' means are 3 and 5, so 5 is added."""
    before = program((1, 2), lambda e, x: [e(op.add(e(op.matmul(x, const([[2], [1]])), "fc"), const([7])))])
    after = program((1, 2), lambda e, x: [e(op.add(e(op.matmul(x, const([[2], [0]])), "fc"), const([12])))])
    samples = calibration(np.float32([[2, 4]]), np.float32([[4, 6]]))
    (row,) = check_pair(PruneMagnitude(repair="bias", **ALL), before, after, samples).notes
    # Off by one each time; without the bias the outputs were 8 and 14.
    assert row["repair"] == "bias" and row["error"] == pytest.approx(np.sqrt(2 / (8**2 + 14**2)), rel=1e-3)


@pytest.mark.parametrize("repair", ["bias", "obs"])
def test_a_layer_without_a_bias_gets_one(repair):
    before = program((4, 8), lambda e, x: [e(op.matmul(x, const(normal(8, 8))), "fc")])
    x = normal(4, 8) + 3
    outcome = PruneMagnitude(repair=repair, **ALL)(before, calibration(x))
    (out,) = graph.results(outcome.module)
    assert graph.op_name(graph.definitions(outcome.module)[out]) == "relax.add"
    np.testing.assert_allclose(run(outcome.module, x).mean(axis=0), run(before, x).mean(axis=0), rtol=1e-3, atol=1e-3)


def correlated(rows, inputs, seed=0):
    """Inputs of which each is much like its neighbours, as those of images are."""
    random = np.random.default_rng(seed)
    return (np.cumsum(random.normal(size=(rows, inputs)), axis=1) / np.sqrt(inputs)).astype(np.float32)


def test_obs_loses_less_than_magnitude():
    weight = normal(32, 24)
    before = program((64, 32), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    samples, unseen = [correlated(64, 32, seed) for seed in range(8)], correlated(64, 32, 99)
    losses = {}
    for repair in ("none", "bias", "obs"):
        outcome = PruneMagnitude(density=0.5, repair=repair, **ALL)(before, calibration(*samples))
        assert np.count_nonzero(weights(outcome.module)["fc"]) == 32 * 24 // 2
        losses[repair] = snr_db(run(before, unseen), run(outcome.module, unseen))
    assert losses["obs"] > losses["none"] + 10 and losses["obs"] > losses["bias"] + 10


@pytest.mark.parametrize("groups, strides, dilation", [(1, 1, 1), (2, 2, 1), (1, 2, 2), (4, 1, 1)])
def test_obs_of_convolutions(groups, strides, dilation):
    weight = normal(8, 8 // groups, 3, 3)
    options = {"padding": 1, "groups": groups, "strides": strides, "dilation": dilation}
    before = program((1, 8, 10, 10), lambda e, x: [e(nn.conv2d(x, const(weight), **options), "c")])
    images = [np.cumsum(np.cumsum(normal(1, 8, 10, 10), 2), 3) / 10 for _ in range(48)]
    plain = PruneMagnitude(**ALL)(before).module
    outcome = PruneMagnitude(repair="obs", **ALL)(before, calibration(*images[:32]))
    assert np.count_nonzero(weights(outcome.module)["c"]) == weight.size // 2 and outcome.notes[0]["repair"] == "obs"
    exact, magnitude, repaired = (np.stack([run(m, x) for x in images[32:]]) for m in (before, plain, outcome.module))
    assert snr_db(exact, repaired) > snr_db(exact, magnitude) + 3


def test_obs_when_the_weight_comes_first():
    weight = normal(8, 16)
    before = program((16, 32), lambda e, x: [e(op.matmul(const(weight), x), "m")])
    outcome = PruneMagnitude(repair="obs", **ALL)(before, calibration(*(correlated(32, 16, s).T for s in range(4))))
    x = correlated(32, 16, 9).T
    plain = PruneMagnitude(**ALL)(before).module
    assert snr_db(run(before, x), run(outcome.module, x)) > snr_db(run(before, x), run(plain, x)) + 3


def test_obs_leaves_zeros_zero():
    weight = normal(32, 24)
    weight[np.random.default_rng(5).random(weight.shape) < 0.3] = 0
    before = program((64, 32), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    after = weights(PruneMagnitude(repair="obs", **ALL)(before, calibration(correlated(64, 32))).module)["fc"]
    assert np.count_nonzero(after) == 384 and not after[weight == 0].any()


def test_obs_does_not_take_transposed_convolutions():
    weight = normal(8, 8, 2, 2)
    before = program((1, 8, 4, 4), lambda e, x: [e(nn.conv2d_transpose(x, const(weight), strides=2), "up")])
    (row,) = PruneMagnitude(repair="obs", **ALL)(before, calibration(normal(1, 8, 4, 4))).notes
    assert row["pruned"] and row["density"] == 0.5 and row["repair"] == "none: it is no plain product with a matrix"


def test_rounds_see_what_pruned_layers_make(monkeypatch):
    """In rounds of one layer the second sees other inputs than in a round of both; both make up for the loss."""
    first, second = normal(32, 32) / 5, normal(32, 32) / 5
    before = two(first, second, (64, 32))
    samples = [correlated(64, 32, seed) for seed in range(4)]
    whole = PruneMagnitude(repair="obs", **ALL)(before, calibration(*samples)).module
    monkeypatch.setattr("tvmcompress.passes.support.repair.MOMENTS", 1)
    parts = PruneMagnitude(repair="obs", **ALL)(before, calibration(*samples)).module
    np.testing.assert_array_equal(weights(whole)["a"], weights(parts)["a"])
    assert (weights(whole)["b"] != weights(parts)["b"]).any()
    x = correlated(64, 32, 9)
    plain = snr_db(run(before, x), run(PruneMagnitude(**ALL)(before).module, x))
    assert min(snr_db(run(before, x), run(m, x)) for m in (whole, parts)) > plain + 5


def test_zeros_stay_zeros_in_integers():
    weight = normal(16, 16, 3, 3)
    before = program((1, 16, 8, 8), lambda e, x: [e(nn.conv2d(x, const(weight), padding=1), "c")])
    samples = calibration(normal(1, 16, 8, 8), normal(1, 16, 8, 8))
    pruned = PruneMagnitude(repair="obs", **ALL)(before, samples).module
    quantized = QuantizeStatic()(pruned, samples).module
    (integers,) = [
        graph.value(c)
        for b in graph.bindings(quantized)
        for c in graph.constants_of(b.value)
        if graph.dtype(c) == "int8" and len(graph.shape(c)) == 4
    ]
    assert not integers[weights(pruned)["c"] == 0].any() and np.count_nonzero(integers) > 0.45 * integers.size


def test_pruning_what_is_compressed_is_refused():
    before = two(normal(4, 4), normal(4, 4))
    small = QuantizeWeights(min_size=0)(before).module
    with pytest.raises(RecipeError, match=r"prune_magnitude: the weights of 'a' and 1 other .* prune first") as caught:
        PruneMagnitude(**ALL)(small)
    assert "\n" not in str(caught.value)
    part = QuantizeWeights(min_size=0, skip=("a",))(before).module
    rows = PruneMagnitude(**ALL)(part).notes
    assert [(row["pruned"], row["not_pruned"]) for row in rows] == [(True, ""), (False, "already compressed")]


def test_wrong_options():
    for density in (0, 0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(RecipeError, match=r"prune_magnitude: density must be above 0 and at most 1"):
            PruneMagnitude(density=density)
    with pytest.raises(RecipeError, match="scope must be one of 'layer', 'global', got 'globl'; did you mean 'global'"):
        PruneMagnitude(scope="globl")
    before = two(normal(4, 4), normal(4, 4))
    with pytest.raises(RecipeError, match="only 'fc' matches none of the model's 2 layers"):
        PruneMagnitude(only=("fc",))(before)
    with pytest.raises(RecipeError, match="skip 'fc' matches none of the model's 2 layers"):
        PruneMagnitude(skip=("fc",))(before)
    with pytest.raises(SampleError, match="repair = 'obs' needs samples"):
        PruneMagnitude(repair="obs")(before)
    broken = two(np.full((4, 4), np.nan), normal(4, 4))
    with pytest.raises(ModelError, match="weights of 'a' hold NaN"):
        PruneMagnitude(**ALL)(broken)
    assert PruneMagnitude(repair="obs").needs_samples and not PruneMagnitude().needs_samples


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    density=st.floats(0.01, 1),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_density_is_reached(shape, density, zeros, seed):
    random = np.random.default_rng(seed)
    weight = random.integers(-3, 4, shape).astype(np.float32)  # many equal ones
    weight[random.random(shape) < zeros] = 0
    outcome = PruneMagnitude(density=density, **ALL)(
        program((1, shape[0]), lambda e, x: [e(op.matmul(x, const(weight)))])
    )
    (after,) = weights(outcome.module).values()
    assert np.count_nonzero(after) == min(np.count_nonzero(weight), max(1, round(density * weight.size)))
    np.testing.assert_array_equal(after[after != 0], weight[after != 0])
    gone = (after == 0) & (weight != 0)
    if gone.any() and after.any():
        assert np.abs(weight[gone]).max() <= np.abs(after[after != 0]).min()
