import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

import tvmcompress.compression  # noqa: F401  provides the time of layers
from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tvmcompress.errors import MissingDependencyError, RecipeError, SampleError, TargetError
from tvmcompress.ir import graph
from tvmcompress.ir.macs import macs
from tvmcompress.passes import Factorize, QuantizeStatic
from tvmcompress.passes.support.low_rank import Svd

op, nn = relax.op, relax.op.nn
RNG = np.random.default_rng(0)
ALL = {"min_size": 0, "round_to": 1}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def of_rank(rank, *shape):
    """A matrix (n, m), or (O, I, k, l) of that rank in every mode."""
    if len(shape) == 2:
        return (normal(shape[0], rank) @ normal(rank, shape[1])).astype(np.float32)
    core = normal(rank, rank, *shape[2:])
    return np.einsum("oikl,Oo,Ii->OIkl", core, normal(shape[0], rank), normal(shape[1], rank)).astype(np.float32)


def layers_of(mod):
    return {b.var.name: b.value for b in graph.bindings(mod) if graph.op_name(b.value) in ("relax.matmul", *CONV)}


CONV = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")


def work(mod):
    return sum(layer.macs for layer in macs(mod))


def test_a_matrix_of_rank_one():
    """[3, 4]^T [0, 0, 5] is 25 long: the first factor is one, the second has the rest, both up to their sign."""
    weight = np.outer([3, 4], [0, 0, 5])
    before = program((1, 2), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    sign = np.sign(Svd(weight.T.astype(np.float32)).weights((1,))[0][0][0, 0])

    def after(e, x):
        return [
            e(op.matmul(e(op.matmul(x, const(sign * np.array([[0.6], [0.8]]))), "fc_a"), const([[0, 0, sign * 25]])))
        ]

    outcome = Factorize(**ALL)(before)
    got = [graph.value(call.args[1]) for call in layers_of(outcome.module).values()]
    want = [graph.value(call.args[1]) for call in layers_of(program((1, 2), after)).values()]
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert list(layers_of(outcome.module)) == ["fc_a", "fc"]
    (row,) = outcome.notes
    assert row["factorized"] and row["ranks"] == "1" and (row["macs_before"], row["macs_after"]) == (6, 5)


def test_pruned_layers_stay_whole():
    """Their factors would have no zeros, and be slower than what is left."""
    weight = of_rank(2, 32, 24)
    weight[RNG.random(weight.shape) < 0.5] = 0
    outcome = check_unchanged(Factorize(**ALL), program((1, 32), lambda e, x: [e(op.matmul(x, const(weight)), "fc")]))
    assert outcome.notes[0]["why"].startswith("it is pruned, to a density of 0.")


def test_rank_by_energy():
    """Singular values 3, 2, 1: squares 9, 4, 1 of 14."""
    weight = np.diag([3.0, 2.0, 1.0])
    factors = Svd(weight)
    fits = lambda ranks: True  # noqa: E731
    for energy, rank in ((0.6, 1), (9 / 14, 1), (0.65, 2), (13 / 14, 2), (0.95, 3), (1.0, 3)):
        assert factors.search(energy, fits, 1, False) == (rank,), energy
    assert factors.weights((2,))[1] == pytest.approx(13 / 14)


STRIDED = {"strides": 2, "padding": (1, 0, 1, 0), "dilation": (1, 2)}
FORMS = {
    "matmul": ("auto", of_rank(3, 20, 30), lambda x, w: op.matmul(x, w), (5, 20), 2),
    "left": ("auto", of_rank(3, 20, 30), lambda x, w: op.matmul(w, x), (30, 5), 2),
    "batched": ("auto", of_rank(3, 20, 30), lambda x, w: op.matmul(x, w), (2, 5, 20), 2),
    "1x1": ("auto", of_rank(3, 20, 30, 1, 1), lambda x, w: nn.conv2d(x, w, strides=2, padding=1), (1, 30, 7, 7), 2),
    "svd": ("svd", of_rank(3, 20, 30, 3, 3), lambda x, w: nn.conv2d(x, w, **STRIDED), (1, 30, 9, 9), 2),
    "tucker": ("auto", of_rank(3, 20, 30, 3, 3), lambda x, w: nn.conv2d(x, w, **STRIDED), (1, 30, 9, 9), 3),
    "wide": (
        "tucker",
        of_rank(3, 20, 30, 3, 3),
        lambda x, w: nn.conv2d(x, w, data_layout="NHWC", kernel_layout="OIHW"),
        (1, 9, 9, 30),
        3,
    ),
    "conv1d": ("auto", of_rank(3, 20, 30, 5, 1)[..., 0], lambda x, w: nn.conv1d(x, w, 2, 2), (1, 30, 11), 3),
    "conv3d": (
        "auto",
        of_rank(3, 20, 30, 2, 2)[..., None].repeat(2, -1),
        lambda x, w: nn.conv3d(x, w, 1, 1),
        (1, 30, 4, 5, 6),
        3,
    ),
    "cp": (
        "cp",
        np.einsum("or,ir,kr,lr->oikl", normal(20, 3), normal(30, 3), normal(3, 3), normal(3, 3)).astype(np.float32),
        lambda x, w: nn.conv2d(x, w, **STRIDED),
        (1, 30, 9, 9),
        4,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_of_low_rank_loses_nothing(form):
    method, weight, layer, shape, count = FORMS[form]
    x = normal(*shape)
    before = program(shape, lambda e, x: [e(layer(x, const(weight)), "layer")])
    outcome = Factorize(method=method, energy=0.999 if method == "cp" else 0.999999, **ALL)(before)
    (row,) = outcome.notes
    assert row["factorized"], row["why"]
    assert list(layers_of(outcome.module)) == [*["layer_a", "layer_b", "layer_c", "layer_d"][: count - 1], "layer"]
    assert set(row["ranks"].split(" x ")) == {"3"}
    assert snr_db(run(before, x), run(outcome.module, x)) > (25 if method == "cp" else 90)
    assert row["macs_before"] == work(before) and row["macs_after"] == work(outcome.module) < 0.9 * work(before)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 2, 3]), st.floats(0.3, 1), st.integers(0, 9),
    st.sampled_from(["svd", "tucker"]), st.sampled_from([0.0, 0.4]),
)  # fmt: skip
def test_what_is_kept_is_what_was_asked_for(outputs, inputs, taps, energy, seed, method, ratio):
    """The kernels compute the product with the compressed weights; these keep the energy, and the work is less."""
    random = np.random.default_rng(seed)
    decay = np.exp(-np.arange(inputs) / 3)[:, None, None]
    weight = (random.normal(size=(outputs, inputs, taps, taps)) * decay).astype(np.float32)
    x = random.normal(size=(1, inputs, 5, 5)).astype(np.float32)
    before = program(x.shape, lambda e, x: [e(nn.conv2d(x, const(weight), padding=1), "c")])
    outcome = Factorize(method=method, energy=energy, ratio=ratio, **ALL)(before)
    (row,) = outcome.notes
    if not row["factorized"]:
        assert row["why"] and outcome.module is before
        return
    assert (
        work(outcome.module)
        == row["macs_after"]
        <= (ratio or 0.9) * row["macs_before"]
        == (ratio or 0.9) * work(before)
    )
    # The compressed weight as the response to an impulse at each input.
    chain = [graph.value(call.args[1]).astype(np.float64) for call in layers_of(outcome.module).values()]
    whole = chain[0]
    for factor in chain[1:]:
        at = 1 if factor.shape[2:] == (1, 1) else 0
        whole = (
            np.einsum("or,rikl->oikl", factor[..., 0, 0], whole)
            if at
            else np.einsum("orkl,ri->oikl", factor, whole[..., 0, 0])
        )
    kept = 1 - np.square(whole - weight).sum() / np.square(weight).sum()
    assert ratio or kept > energy - 1e-5
    if row["weights_snr_db"] is not None and kept < 1 - 1e-6:
        assert row["weights_snr_db"] == pytest.approx(-10 * np.log10(1 - kept), abs=0.1)
    dense = program(x.shape, lambda e, x: [e(nn.conv2d(x, const(whole), padding=1))])
    np.testing.assert_allclose(run(outcome.module, x), run(dense, x), rtol=1e-3, atol=1e-3)


def test_rank_by_error_of_the_output():
    """Inputs that hardly vary in most directions: a random matrix takes a few ranks where energy would take most."""
    weight, mix = normal(24, 32), of_rank(4, 200, 24) + 0.01 * normal(200, 24)
    before = program((200, 24), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    samples = calibration(mix[:100].repeat(2, 0), mix[100:].repeat(2, 0))
    outcome = Factorize(error=0.1, **ALL)(before, samples)
    (row,) = outcome.notes
    assert int(row["ranks"]) <= 4
    y = mix @ weight
    lost = run(outcome.module, mix) - y
    assert np.linalg.norm(lost) <= 0.1 * np.linalg.norm(y)
    by_energy = Factorize(energy=0.99, **ALL)(before).notes[0]
    assert not by_energy["factorized"] and by_energy["why"].startswith("rank 2")


def test_error_of_a_convolution_is_kept_by_svd():
    weight, x = normal(16, 8, 3, 3), np.cumsum(np.cumsum(normal(2, 1, 8, 12, 12), -1), -2) / 5
    before = program((1, 8, 12, 12), lambda e, x: [e(nn.conv2d(x, const(weight), padding=1), "c")])
    outcome = Factorize(error=0.2, **ALL)(before, calibration(*x))
    assert outcome.notes[0]["method"] == "svd" and outcome.notes[0]["factorized"]
    exact, close = (np.stack([run(mod, image) for image in x]) for mod in (before, outcome.module))
    assert 0 < np.linalg.norm(close - exact) <= 0.2 * np.linalg.norm(exact)


def test_ranks_are_rounded_up_and_lowered_to_the_ratio():
    weight = of_rank(20, 64, 64)
    before = program((1, 64), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    rank = lambda **options: Factorize(min_size=0, energy=0.99999, **options)(before).notes[0].get("ranks")  # noqa: E731
    assert rank(round_to=8) == "24" and rank() is None  # 32 saves nothing
    assert rank(ratio=0.55) == "16" and rank(ratio=0.25, round_to=1) == "8" and rank(ratio=0.2) == "6"


def test_bias_and_what_follows_stay():
    """And the result is ordinary layers, which can be quantized."""
    weight, bias = of_rank(4, 32, 32, 3, 3) / 50, normal(1, 32, 1, 1)

    def body(e, x):
        y = e(nn.relu(e(op.add(e(nn.conv2d(x, const(weight), padding=1), "c"), const(bias)))))
        return [e(op.matmul(e(op.mean(y, [2, 3])), const(of_rank(3, 32, 24) / 10)), "fc")]

    mod, x = program((1, 32, 8, 8), body), normal(1, 32, 8, 8)
    small = Factorize(energy=0.9999999, **ALL)(mod).module
    assert list(layers_of(small)) == ["c_a", "c_b", "c", "fc_a", "fc"]
    assert snr_db(run(mod, x), run(small, x)) > 60
    quantized = QuantizeStatic()(small, calibration(x, normal(1, 32, 8, 8)))
    assert all(row["quantized"] for row in quantized.notes)
    assert snr_db(run(mod, x), run(quantized.module, x)) > 25


def why(step, mod):
    return [row["why"] for row in check_unchanged(step, mod).notes]


def test_what_is_left_alone():
    full = program((1, 64), lambda e, x: [e(op.matmul(x, const(np.linalg.qr(normal(64, 64))[0])), "fc")])
    assert why(Factorize(), full) == ["rank 64 would not save enough multiply-accumulates"]
    assert why(Factorize(min_size=5000), full) == ["smaller than min_size = 5000"]
    assert why(Factorize(skip=("fc",)), full) == ["skipped by name 'fc'"]
    groups = program((1, 64, 4, 4), lambda e, x: [e(nn.conv2d(x, const(normal(64, 32, 3, 3)), groups=2), "c")])
    assert why(Factorize(), groups) == ["its channels are in groups, each small already"]
    back = program((1, 64, 4, 4), lambda e, x: [e(nn.conv2d_transpose(x, const(normal(64, 32, 3, 3))), "c")])
    assert why(Factorize(), back) == ["a transposed convolution"]
    live = program((2, 2), lambda e, x: [e(op.matmul(x, x), "a")])
    assert why(Factorize(), live) == ["its weights are not constant"]
    random = program((1, 32, 4, 4), lambda e, x: [e(nn.conv2d(x, const(normal(32, 32, 3, 3))), "c")])
    assert "keeps only" in why(Factorize(method="cp", energy=0.999), random)[0]


def test_steps_of_a_recurrent_layer_are_left_alone():
    w = const(of_rank(4, 64, 64))
    mod = program((1, 64), lambda e, x: [e(op.matmul(e(op.tanh(e(op.matmul(x, w), "one"))), w), "two")])
    assert set(why(Factorize(), mod)) == {"a step of a recurrent layer, which is one kernel as it is"}


def test_weights_of_zeros():
    mod = program((1, 64), lambda e, x: [e(op.matmul(x, const(np.zeros((64, 64)))), "fc")])
    outcome = Factorize()(mod)
    assert not run(outcome.module, normal(1, 64)).any()


def test_without_tensorly(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorly", None)
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    mod = program((1, 32, 4, 4), lambda e, x: [e(nn.conv2d(x, const(of_rank(2, 32, 32, 3, 3))), "c")])
    with pytest.raises(MissingDependencyError, match=r"pip install 'tvmcompress\[lowrank\]'"):
        Factorize()(mod)
    assert Factorize(method="svd")(mod).notes[0]["factorized"]


def test_options():
    assert Factorize(error=0.1).needs_samples and not Factorize().needs_samples
    with pytest.raises(RecipeError, match="energy must be above 0"):
        Factorize(energy=0)
    with pytest.raises(RecipeError, match="error must be below 1"):
        Factorize(error=1.5)
    with pytest.raises(RecipeError, match="error is kept by svd alone, got method 'cp'"):
        Factorize(error=0.1, method="cp")
    mod = program((1, 64), lambda e, x: [e(op.matmul(x, const(np.linalg.qr(normal(64, 64))[0])), "fc")])
    with pytest.raises(SampleError, match="needs samples"):
        Factorize(error=0.1)(mod)


def test_a_pair_by_hand():
    """Rank one, 1x1: the name of the layer stays with the last."""
    weight = np.array([[[[2]], [[0]]], [[[0]], [[0]]], [[[0]], [[0]]]])
    before = program((1, 2, 4, 4), lambda e, x: [e(nn.conv2d(x, const(weight), strides=2), "c")])
    flip = graph.value(layers_of(Factorize(**ALL)(before).module)["c_a"].args[1])[0, 0, 0, 0]
    assert abs(flip) == 1

    def after(e, x):
        a = e(nn.conv2d(x, const([[[[flip]], [[0]]]]), strides=2), "c_a")
        return [e(nn.conv2d(a, const(np.reshape([2 * flip, 0, 0], (3, 1, 1, 1)))))]

    check_pair(Factorize(**ALL), before, program((1, 2, 4, 4), after))


# By time on a target.


def told(mod, **options):
    return Factorize(**{"min_size": 0, "round_to": 8, "target": "znver4", **options})(mod).notes[0]


def test_a_budget_of_time():
    weight = normal(384, 1536)
    mod = program((128, 384), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    for ratio in (0.3, 0.6):
        row = told(mod, energy=1.0, ratio=ratio)
        assert 0.8 * ratio < row["time"] <= ratio and row["macs_after"] < ratio * row["macs_before"]
    assert "would not save enough time on znver4" in told(mod, energy=1.0)["why"]


def test_what_saves_products_but_no_time_stays():
    """Half of the multiply-accumulates, but a second kernel to start, and more to write and read."""
    weight = of_rank(8, 32, 32)[:, :, None, None]
    mod = program((1, 32, 14, 14), lambda e, x: [e(nn.conv2d(x, const(weight)), "c")])
    assert told(mod, target="", energy=0.999)["macs_after"] == 0.5 * told(mod, target="", energy=0.999)["macs_before"]
    assert "time on znver4" in told(mod, energy=0.999)["why"]


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_all_kinds_of_layers_have_a_time(method, rank):
    weight = normal(32, 32, *(3,) * rank)
    conv = {1: nn.conv1d, 2: nn.conv2d, 3: nn.conv3d}[rank]
    body = lambda e, x: [e(conv(x, const(weight), strides=2, padding=1), "c")]  # noqa: E731
    row = told(program((1, 32, *(12,) * rank), body), energy=1.0, ratio=0.9, method=method)
    assert row["factorized"] == ("time" in row) and (not row["factorized"] or 0 < row["time"] <= 0.9)


@pytest.mark.parametrize(("target", "error"), [("znver99", TargetError), ("cuda-sm80", RecipeError)])
def test_targets_without_a_time(target, error):
    mod = program((4, 64), lambda e, x: [e(op.matmul(x, const(normal(64, 64))), "fc")])
    with pytest.raises(error, match=target):
        told(mod, target=target)
