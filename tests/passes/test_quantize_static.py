import numpy as np
import pytest
import tvm
from tvm import relax

from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tvmcompress.errors import InputError, ModelError, RecipeError, SampleError
from tvmcompress.ir import graph, ops
from tvmcompress.passes import QuantizeStatic

op, nn = relax.op, relax.op.nn
PLAIN = QuantizeStatic(method="min_max", bias_correction=False, search_weights=False, measure=False)
RNG = np.random.default_rng(0)


def qdq(e, x, scale, zero):
    return e(
        ops.dequantize(
            e(ops.quantize(x, np.float32(scale), np.uint8(zero), "uint8")), np.float32(scale), np.uint8(zero)
        )
    )


def weight(e, integers, scales, axis=0):
    return e(ops.dequantize(const(integers, "int8"), np.float32(scales), np.int8(0), axis))


def quantized(mod: tvm.IRModule) -> set[str]:
    """The names of the tensors that are quantized."""
    return {b.value.args[0].name for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.quantize"}


def w(*shape):
    return const(RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:])))


def sample(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def after(body, shape, step=PLAIN):
    return step(program(shape, body), calibration(sample(*shape), sample(*shape))).module


def test_a_chain_of_two_convolutions():
    # x runs from -255 to 255: scale 510 / 255 = 2, zero round(127.5) = 128. The relu gives 0 … 127 * 255: scale 127.
    first, second, bias = const([[[[127.0]]]]), const([[[[254.0]]]]), const([[[[0.0]]]])

    def before(e, x):
        y = e(nn.relu(e(op.add(e(nn.conv2d(x, first)), bias))))
        return [e(nn.conv2d(y, second))]

    def expected(e, x):
        real = qdq(e, x, 2, 128)
        y = e(nn.conv2d(real, weight(e, [[[[127]]]], [1])))
        real = qdq(e, e(nn.relu(e(op.add(y, bias)))), 127, 0)
        return [e(nn.conv2d(real, weight(e, [[[[127]]]], [2])))]

    samples = calibration(np.float32([[[[-255, 1]]]]), np.float32([[[[0, 255]]]]))
    check_pair(PLAIN, program((1, 1, 1, 2), before), program((1, 1, 1, 2), expected), samples)


def test_a_matrix_product():
    before = program((1, 2), lambda e, x: [e(op.matmul(x, const([[127, -20], [10, 254]])))])

    def expected(e, x):
        real = qdq(e, x, 2, 0)
        return [e(op.matmul(real, weight(e, [[127, -10], [10, 127]], [1, 2], 1)))]

    check_pair(PLAIN, before, program((1, 2), expected), calibration(np.float32([[510, 3]])))


def test_nothing_to_quantize():
    before = program((1, 4), lambda e, x: [e(nn.softmax(e(nn.relu(x))))])
    check_unchanged(PLAIN, before, calibration(sample(1, 4)))


def test_skipped_layers_stay_float():
    body = lambda e, x: [e(op.matmul(e(op.matmul(x, w(4, 4)), "a"), w(4, 4)), "b")]  # noqa: E731
    before = program((1, 4), body)
    outcome = check_unchanged(QuantizeStatic(skip=("a", "b")), before, calibration(sample(1, 4)))
    assert [row["why"] for row in outcome.notes] == ["skipped by name 'a'", "skipped by name 'b'"]
    check_unchanged(QuantizeStatic(skip_kinds=("matmul",)), before, calibration(sample(1, 4)))
    some = QuantizeStatic(skip=("a",))(before, calibration(sample(1, 4)))
    assert quantized(some.module) == {"a"}
    assert [(row["quantized"], row["snr_db"] is None) for row in some.notes] == [(False, True), (True, False)]


def test_an_addition_is_taken_in_by_the_convolution_before_it():
    def body(e, x):
        a = e(nn.relu(e(nn.conv2d(x, w(4, 4, 1, 1)), "c1")), "r1")
        b = e(op.add(e(nn.conv2d(a, w(4, 4, 1, 1)), "c2"), const(np.ones((1, 4, 1, 1)))), "b2")
        s = e(nn.relu(e(op.add(b, a), "s")), "r2")
        return [e(nn.conv2d(s, w(4, 4, 1, 1)), "c3")]

    mod = after(body, (1, 4, 3, 3))
    assert quantized(mod) == {"x", "r1", "r2"}


def test_of_two_convolutions_into_one_addition_the_later_takes_it_in():
    def body(e, x):
        a, b = e(nn.conv2d(x, w(4, 4, 1, 1)), "c1"), e(nn.conv2d(x, w(4, 4, 1, 1)), "c2")
        return [e(nn.conv2d(e(op.add(b, a), "s"), w(4, 4, 1, 1)), "c3")]

    assert quantized(after(body, (1, 4, 3, 3))) == {"x", "c1", "s"}


def test_pointwise_operators_of_one_tensor_are_one_table():
    def body(e, x):
        a = e(nn.conv2d(x, w(4, 4, 1, 1)), "c1")
        silu = e(op.multiply(a, e(op.sigmoid(a), "sig")), "silu")
        return [e(nn.conv2d(silu, w(4, 4, 1, 1)), "c2")]

    assert quantized(after(body, (1, 4, 3, 3))) == {"x", "c1", "silu"}


def test_moves_share_parameters():
    def body(e, x):
        a = e(nn.relu(e(nn.conv2d(x, w(4, 4, 1, 1)), "c1")), "r1")
        pooled = e(nn.max_pool2d(a, (2, 2), strides=(2, 2)), "pool")
        halves = e(op.split(pooled, 2, 1), "split")
        first = e(relax.TupleGetItem(halves, 0), "first")
        return [e(op.matmul(e(op.reshape(first, (1, 8)), "flat"), w(8, 4)), "fc")]

    mod = after(body, (1, 4, 4, 4))
    assert quantized(mod) == {"x", "r1", "pool", "first", "flat"}
    scales = [
        float(graph.value(b.value.args[1])) for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.quantize"
    ]
    assert len(set(scales[1:])) == 1 and scales[0] != scales[1]


def test_a_concatenation_copies():
    def body(e, x):
        a, b = e(nn.conv2d(x, w(4, 4, 1, 1)), "c1"), e(op.multiply(e(nn.conv2d(x, w(4, 4, 1, 1))), const(9.0)), "c2")
        return [e(nn.conv2d(e(op.concat([a, b], 1), "cat"), w(4, 8, 1, 1)), "c3")]

    mod = after(body, (1, 4, 3, 3))
    points = {
        b.value.args[0].name: float(graph.value(b.value.args[1]))
        for b in graph.bindings(mod)
        if graph.op_name(b.value) == "relax.quantize"
    }
    assert points["c1"] == points["c2"] == points["cat"]


def test_a_chain_of_concatenations_keeps_one_scale():
    def body(e, x):
        y = e(nn.conv2d(x, w(4, 4, 1, 1)), "c0")
        for i in range(3):
            y = e(op.concat([y, e(nn.conv2d(y, w(4, 4 + 4 * i, 1, 1)))], 1), f"cat{i}")
        return [e(nn.conv2d(y, w(4, 16, 1, 1)))]

    mod = after(body, (1, 4, 8, 8))
    points = {
        b.value.args[0].name: float(graph.value(b.value.args[1]))
        for b in graph.bindings(mod)
        if graph.op_name(b.value) == "relax.quantize"
    }
    assert len({v for name, v in points.items() if name.startswith("cat")}) == 1


def test_normalisation_and_what_follows_the_last_layer_stay_float():
    ones, zeros = const(np.ones(8)), const(np.zeros(8))

    def body(e, x):
        n = e(nn.layer_norm(x, ones, zeros, [-1]), "n")
        r = e(op.add(e(op.matmul(n, w(8, 8)), "m1"), x), "r")
        out = e(op.matmul(e(nn.layer_norm(r, ones, zeros, [-1]), "n2"), w(8, 4)), "m2")
        return [e(nn.softmax(out), "p")]

    assert quantized(after(body, (2, 8))) == {"n", "n2"}


def test_attention_can_be_left_out():
    def body(e, x):
        q, k = e(op.matmul(x, w(8, 8)), "q"), e(op.matmul(x, w(8, 8)), "k")
        return [e(op.matmul(q, e(op.permute_dims(k), "kt")), "scores")]

    assert quantized(after(body, (4, 8))) == {"x", "q", "k", "kt"}
    left = QuantizeStatic(method="min_max", attention=False)
    assert quantized(after(body, (4, 8), left)) == {"x"}


def test_quantized_twice_is_quantized_once():
    once = after(lambda e, x: [e(nn.conv2d(x, w(4, 4, 1, 1)), "c")], (1, 4, 3, 3))
    outcome = check_unchanged(PLAIN, once, calibration(sample(1, 4, 3, 3)))
    assert outcome.notes[0]["why"] == "already compressed"


LAYERS = {
    "conv1d": ((1, 8, 16), lambda x: nn.conv1d(x, w(8, 8, 3), padding=1)),
    "conv2d": ((1, 8, 8, 8), lambda x: nn.conv2d(x, w(8, 8, 3, 3), padding=1)),
    "grouped": ((1, 8, 8, 8), lambda x: nn.conv2d(x, w(8, 4, 3, 3), groups=2)),
    "depthwise": ((1, 8, 8, 8), lambda x: nn.conv2d(x, w(8, 1, 3, 3), groups=8)),
    "conv3d": ((1, 4, 4, 4, 4), lambda x: nn.conv3d(x, w(8, 4, 3, 3, 3))),
    "transposed": ((1, 8, 6, 6), lambda x: nn.conv2d_transpose(x, w(8, 8, 3, 3), strides=2)),
    "transposed, grouped": ((1, 8, 6, 6), lambda x: nn.conv2d_transpose(x, w(8, 4, 3, 3), groups=2)),
    "matmul": ((4, 16), lambda x: op.matmul(x, w(16, 8))),
    "batched": ((2, 4, 16), lambda x: op.matmul(x, w(2, 16, 8))),
    "weight first": ((16, 4), lambda x: op.matmul(w(8, 16), x)),
    "vector": ((4, 16), lambda x: op.matmul(x, w(16))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name):
    shape, layer = LAYERS[name]
    before = program(shape, lambda e, x: [e(layer(x), "layer")])
    samples = [sample(*shape) for _ in range(4)]
    outcome = QuantizeStatic()(before, calibration(*samples))
    (row,) = outcome.notes
    assert row["quantized"] and row["snr_db"] > 30
    assert snr_db(run(before, samples[0]), run(outcome.module, samples[0])) > 30


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy"])
def test_methods_on_a_tensor_with_an_outlier(method):
    """All but min_max give up the outlier for finer steps; none may be far off without one."""
    before = program((1, 4096), lambda e, x: [e(op.matmul(x, const(np.eye(4096, 8))), "fc")])
    plain = sample(1, 4096)
    step = QuantizeStatic(method=method, percentile=99.9, bias_correction=False)
    assert snr_db(run(before, plain), run(step(before, calibration(plain)).module, plain)) > 30
    outlier = plain.copy()
    outlier[0, -1] = 1000
    mod = step(before, calibration(*[plain] * 100, outlier)).module
    scale = next(
        float(graph.value(b.value.args[1])) for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.quantize"
    )
    assert (scale > 3.9) == (method == "min_max")


def test_the_correction_of_biases_takes_back_the_mean_shift():
    values = (np.full((8, 64), 0.3) + RNG.normal(size=(8, 64)) * 0.01) * 2
    values[:, 0] = 10  # a coarse scale, so that all other weights of a row are rounded the same way
    layer = lambda e, x: [e(nn.conv2d(x, const(values.reshape(8, 64, 1, 1))), "c")]  # noqa: E731
    before = program((1, 64, 4, 4), layer)
    x = np.abs(sample(1, 64, 4, 4)) + 1
    errors = []
    for corrected in (False, True):
        step = QuantizeStatic(bias_correction=corrected, search_weights=False)
        difference = run(step(before, calibration(x)).module, x) - run(before, x)
        errors.append(np.abs(difference.mean(axis=(2, 3))).max())
    assert errors[1] < errors[0] / 10


def test_weights_that_two_layers_read_are_stored_once():
    shared = w(4, 4, 1, 1)
    mod = after(lambda e, x: [e(nn.conv2d(e(nn.conv2d(x, shared)), shared))], (1, 4, 3, 3))
    weights = [
        b for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.dequantize" and b.var.name.endswith("_w")
    ]
    assert len(weights) == 1


def test_samples_are_streamed_and_read_once():
    before = program((1, 4), lambda e, x: [e(op.matmul(x, w(4, 4)), "fc")])
    alive, seen = [], []

    def stream():
        for i in range(50):
            seen.append(i)
            yield [sample(1, 4)]

    from tvmcompress.ir import evaluate
    from tvmcompress.passes import Calibration

    samples = Calibration(
        stream(), evaluate.executor, once=True, progress=lambda done, total, text: alive.append((done, text))
    )
    QuantizeStatic()(before, samples)
    assert seen == list(range(50)) and len(samples.kept) == 8
    assert (50, "calibrating") in alive and (16, "comparing with float") in alive


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers(bad):
    before = program((1, 4), lambda e, x: [e(op.matmul(x, w(4, 4)), "fc")])
    with pytest.raises(SampleError, match=f"sample 1: tensor 'x' holds {'NaN' if np.isnan(bad) else 'infinity'}"):
        QuantizeStatic()(before, calibration(sample(1, 4), np.float32([[0, bad, 0, 0]])))


def test_activations_that_overflow():
    def body(e, x):
        y = e(op.matmul(x, const(np.full((4, 4), 1e30))), "huge")
        return [e(op.matmul(y, w(4, 4)), "fc")]

    with pytest.raises(SampleError, match="sample 0: tensor 'huge' holds infinity"):
        QuantizeStatic()(program((1, 4), body), calibration(np.full((1, 4), 1e20, np.float32)))


def test_faults_have_names():
    before = program((1, 4), lambda e, x: [e(op.matmul(x, const(np.full((4, 4), np.nan))), "fc")])
    with pytest.raises(ModelError, match="weights of 'fc'"):
        PLAIN(before, calibration(sample(1, 4)))
    with pytest.raises(SampleError, match="needs samples"):
        PLAIN(before)
    with pytest.raises(RecipeError, match="no kind of layer is called 'matmull'; did you mean 'matmul'"):
        QuantizeStatic(skip_kinds=("matmull",))(before, calibration(sample(1, 4)))


def test_the_calibration_is_cached(tmp_path):
    path = tmp_path / "calibration.json"
    before = program((1, 4, 3, 3), lambda e, x: [e(nn.conv2d(x, w(4, 4, 1, 1)), "c")])
    first = QuantizeStatic()(before, calibration(sample(1, 4, 3, 3), cache=path))
    again = QuantizeStatic()(before, calibration(100 * sample(1, 4, 3, 3), cache=path))
    tvm.ir.assert_structural_equal(first.module, again.module, map_free_vars=True)
    assert again.notes[0]["calibration"] == "calibration taken from calibration.json (1 samples)"
    other = QuantizeStatic(method="min_max")(before, calibration(sample(1, 4, 3, 3), cache=path))
    assert "was for another options; made again" in other.notes[0]["calibration"]
    path.write_text("no JSON")
    with pytest.raises(InputError, match="not a calibration file"):
        QuantizeStatic()(before, calibration(sample(1, 4, 3, 3), cache=path))
