import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests import networks
from tests.frontend.onnx_tools import load_proto
from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tests.passes.masked import masked
from tvmcompress.compression import host_executor
from tvmcompress.errors import MissingDependencyError, ModelError, RecipeError, SampleError
from tvmcompress.ir import evaluate, graph, ops
from tvmcompress.ir.macs import macs
from tvmcompress.isa import isa_of
from tvmcompress.lower.recurrent import roll
from tvmcompress.passes import PruneChannels, QuantizeWeights, simplified
from tvmcompress.target import Target

nn, op = relax.op.nn, relax.op
RNG = np.random.default_rng(0)


def w(*shape):
    return const(RNG.normal(size=shape))


def halved(**options) -> PruneChannels:
    return PruneChannels(**{"round_to": 1, **options})


def row(outcome, name):
    return next(r for r in outcome.notes if r.get("layer") == name)


def test_the_smaller_channel_goes():
    # Channel 0 weighs 1, channel 1 weighs 4; what reads them weighs the same.
    def body(first, bias, second):
        def layers(e, x):
            y = e(nn.relu(e(op.add(e(nn.conv2d(x, const(first)), "a"), const(bias)))))
            return [e(nn.conv2d(y, const(second)), "b")]

        return program((1, 1, 2, 2), layers)

    before = body([[[[1]]], [[[2]]]], [[[[5]], [[6]]]], [[[[1]], [[1]]], [[[3]], [[3]]]])
    after = body([[[[2]]]], [[[[6]]]], [[[[1]]], [[[3]]]])
    outcome = check_pair(halved(), before, after)
    assert row(outcome, "a") == {
        **{"pass": "prune_channels", "layer": "a", "kind": "conv", "pruned": True, "why": ""},
        **{"outputs_before": 2, "outputs": 1, "parameters_before": 2, "parameters": 1, "macs_before": 8, "macs": 4},
    }
    assert row(outcome, "b")["why"] == "they reach the model's output"
    assert outcome.notes[-1] == {
        **{"pass": "prune_channels", "parameters_before": 8, "parameters": 4, "macs_before": 24, "macs": 12}
    }


def test_a_channel_is_rows_after_flattening():
    def body(first, second):
        def layers(e, x):
            y = e(nn.conv2d(x, const(first)))
            flat = e(op.reshape(y, (1, len(first) * 4)))
            return [e(op.matmul(flat, const(second)))]

        return program((1, 1, 2, 2), layers)

    rows = [[float(i)] for i in range(1, 9)]
    check_pair(halved(), body([[[[1]]], [[[2]]]], rows), body([[[[2]]]], rows[4:]))


def test_heads_go_with_queries_keys_and_values():
    tokens, heads, size = 3, 4, 2
    weights = [RNG.normal(size=(8, 8)).astype(np.float32) for _ in range(4)]
    for weight in weights[:3]:
        weight[:, 2:4] *= 10  # head 1
        weight[:, 6:8] *= 5  # head 3

    def attention(weights, heads):
        def layers(e, x):
            parts = [e(op.reshape(e(op.matmul(x, const(m))), (tokens, heads, size))) for m in weights[:3]]
            q, k, v = (e(op.permute_dims(p, a)) for p, a in zip(parts, ([1, 0, 2], [1, 2, 0], [1, 0, 2])))
            mixed = e(op.permute_dims(e(op.matmul(e(nn.softmax(e(op.matmul(q, k)))), v)), [1, 0, 2]))
            return [e(op.matmul(e(op.reshape(mixed, (tokens, heads * size))), const(weights[3])))]

        return program((tokens, 8), layers)

    kept = [2, 3, 6, 7]
    after = attention([m[:, kept] for m in weights[:3]] + [weights[3][kept]], 2)
    check_pair(halved(), attention(weights, heads), after)
    check_unchanged(halved(heads=False), attention(weights, heads))


def test_zeroed_weights_give_the_same():
    """Without the pass's own bookkeeping: a network of ReLUs alone, whose small channels' weights are zero."""
    first, second, third = RNG.normal(size=(8, 3, 3, 3)), RNG.normal(size=(8, 8, 3, 3)), RNG.normal(size=(5, 8, 1, 1))
    first[::2], second[1::2], bias = 0, 0, RNG.normal(size=(1, 8, 1, 1))
    bias[:, 1::2] = 0
    second[:, ::2], third[:, 1::2] = 0, 0

    def layers(e, x):
        y = e(nn.relu(e(nn.conv2d(x, const(first), padding=1))))
        y = e(nn.relu(e(op.add(e(nn.conv2d(y, const(second), padding=1)), const(bias)))))
        return [e(nn.conv2d(y, const(third)))]

    before = program((2, 3, 6, 6), layers)
    outcome = halved()(before)
    x = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(outcome.module, x), run(before, x), rtol=1e-4, atol=1e-4)
    assert [r["macs"] / r["macs_before"] for r in outcome.notes[:3]] == [0.5, 0.25, 0.5]


SMALL = {
    "bottleneck": lambda: networks.resnet((1, 2), True, 32, 10, 16),
    "basic": lambda: networks.resnet((1, 1), False, 32, 10, 16),
    "squeeze": lambda: networks.squeeze(32),
    "shuffle": lambda: networks.shuffle(32),
    "unet": lambda: networks.unet(32),
    "detector": lambda: networks.detector(32),
    "transformer": networks.transformer,
    "encoder": lambda: networks.encoder(16, 64, 4, 2, 100),
    "recurrent": lambda: networks.recurrent(4, 16, 32),
    "keyword_spotter": networks.keyword_spotter,
}
LIGHT = [
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
]
LARGE = {
    "mobilenet_v2": lambda: networks.mobilenet_v2(64),
    "efficientnet": lambda: networks.efficientnet(64),
    "vision_transformer": networks.vision_transformer,
    **{f"light_{name}": lambda name=name: networks.light(name) for name in LIGHT},
}
# What is left of the multiply-accumulates, at most. The width between the blocks of transformers stays.
MOST = {"transformer": 0.55, "encoder": 0.55, "vision_transformer": 0.5, "shuffle": 0.5}


def check_network(proto, step, executor, most):
    model = load_proto(proto)
    outcome = step(model.module)
    relax.analysis.well_formed(outcome.module)
    x = {
        s.name: RNG.integers(0, 100, s.shape).astype(s.dtype) if "int" in s.dtype else
        RNG.normal(size=s.shape).astype(s.dtype) for s in model.inputs
    }  # fmt: skip
    (ours,) = executor(outcome.module)(list(x.values()))
    (theirs,) = executor(masked(step, model.module))(list(x.values()))
    assert ours.shape == model.outputs[0].shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    counts = [sum(layer.macs for layer in macs(m)) for m in (model.module, outcome.module)]
    assert counts[1] <= most * counts[0], counts[1] / counts[0]


FAST = ("basic", "shuffle", "transformer", "recurrent")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.long) for n in SMALL])
def test_equal_to_the_network_with_zeros(name):
    check_network(SMALL[name](), halved(round_to=4), evaluate.executor, MOST.get(name, 0.45))


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_equal_to_the_large_network_with_zeros(name):
    check_network(LARGE[name](), PruneChannels(), host_executor, MOST.get(name, 0.45))


KINDS = ["conv", "grouped", "depthwise", "transposed", "norm", "gate", "add", "concat", "split", "shuffle", "pool"]
KINDS += ["pad", "take", "slice", "sigmoid", "lrn", "swap", "product"]


def step_of(draw, e, x, others):
    """One more operator on (1, c, h, w), of any kind that hands channels on."""
    c, h = graph.shape(x)[1:3]
    kind = draw(st.sampled_from(KINDS))
    if kind in ("conv", "grouped"):
        groups, out = draw(st.sampled_from([2, 4] if kind == "grouped" else [1])), draw(st.sampled_from([4, 8, 12]))
        return x if c % groups else e(nn.conv2d(x, w(out, c // groups, 3, 3), padding=1, groups=groups))
    if kind == "depthwise":
        return e(nn.conv2d(x, w(c * draw(st.sampled_from([1, 2])), 1, 3, 3), padding=1, groups=c))
    if kind == "transposed":
        return e(nn.conv2d_transpose(x, w(c, 8, 3, 3), padding=1))
    if kind == "norm":
        parameters = [const(RNG.uniform(0.5, 2, c)) for _ in range(4)]
        return e(relax.TupleGetItem(e(nn.batch_norm(x, *parameters, 1, training=False)), 0))
    if kind == "gate":
        pooled = e(op.mean(x, [2, 3], True))
        return e(op.multiply(x, e(op.sigmoid(e(nn.conv2d(e(nn.conv2d(pooled, w(4, c, 1, 1))), w(c, 4, 1, 1)))))))
    if kind in ("add", "concat"):
        fitting = [o for o in others if graph.shape(o)[2:] == (h, h) and (kind == "concat" or graph.shape(o)[1] == c)]
        other = draw(st.sampled_from(fitting)) if fitting else x
        return e(op.add(x, other)) if kind == "add" else e(op.concat([x, other], 1))
    if kind == "split":
        parts = e(op.split(x, [c // 4], 1))
        return e(op.concat([e(relax.TupleGetItem(parts, i)) for i in draw(st.permutations([0, 1]))], 1))
    if kind == "shuffle":
        swapped = e(op.permute_dims(e(op.reshape(x, (1, 2, c // 2, h, h))), [0, 2, 1, 3, 4]))
        return e(op.reshape(swapped, (1, c, h, h)))
    if kind == "swap":  # channels last, through a matrix product, and back
        last = e(op.reshape(e(op.permute_dims(x, [0, 2, 3, 1])), (h * h, c)))
        return e(op.permute_dims(e(op.reshape(e(op.matmul(last, w(c, 8))), (1, h, h, 8))), [0, 3, 1, 2]))
    if kind == "lrn":
        last = e(ops.local_response_norm(e(op.permute_dims(x, [0, 2, 3, 1])), 3, 0.5, 0.75, 1.0))
        return e(op.permute_dims(last, [0, 3, 1, 2]))
    if kind == "product":  # heads of one channel
        q, k = (e(op.reshape(x, (1, c, h * h, 1))), e(op.reshape(x, (1, c, 1, h * h))))
        return e(op.reshape(e(op.matmul(e(nn.softmax(e(op.matmul(q, k)))), q)), (1, c, h, h)))
    return {
        "pool": lambda: e(nn.max_pool2d(x, (3, 3), padding=(1, 1))),
        "pad": lambda: e(op.strided_slice(e(nn.pad(x, [0, 0, 0, 0, 1, 0, 1, 0])), [2, 3], [0, 0], [h, h])),
        "take": lambda: e(op.take(x, const(RNG.permutation(c), "int64"), 1)),
        "slice": lambda: e(op.strided_slice(x, [1], [1], [c], [2])),
        "sigmoid": lambda: e(op.add(e(op.sigmoid(x)), w(c, 1, 1))),
    }[kind]()


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_any_network_equals_itself_with_zeros(data):
    check_any(data)


@pytest.mark.long
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_many_networks_equal_themselves_with_zeros(data):
    check_any(data)


def check_any(data):
    def layers(e, x):
        tensors = [e(nn.conv2d(x, w(8, 3, 3, 3), padding=1))]
        for _ in range(data.draw(st.integers(1, 7))):
            found = step_of(data.draw, e, tensors[-1], tensors)
            tensors += [found] if graph.shape(found)[1] % 4 == 0 else []
        return [e(nn.conv2d(tensors[-1], w(3, graph.shape(tensors[-1])[1], 1, 1)))]

    before = program((1, 3, 5, 5), layers)
    step = halved(
        density=data.draw(st.sampled_from([0.2, 0.5, 0.8])), scope=data.draw(st.sampled_from(["layer", "global"]))
    )
    x = RNG.normal(size=(1, 3, 5, 5)).astype(np.float32)
    expected = run(masked(step, before), x)
    found = run(step(before).module, x)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max() + 1e-6)


def chain(*weights):
    """1x1 convolutions, named a, b, c …"""

    def layers(e, x):
        for name, weight in zip("abcdef", weights):
            x = e(nn.conv2d(x, weight), name)
        return [x]

    return program((1, graph.shape(weights[0])[1], 4, 4), layers)


@pytest.mark.parametrize("round_to, density, left", [(1, 0.5, 20), (16, 0.5, 24), (16, 0.9, 40), (4, 0.01, 4)])
def test_rounded_up(round_to, density, left):
    outcome = PruneChannels(density=density, round_to=round_to)(chain(w(40, 3, 1, 1), w(5, 40, 1, 1)))
    assert row(outcome, "a")["outputs"] == left
    why = "what would be left rounds up to all of them, or others need them" if left == 40 else ""
    assert row(outcome, "a")["why"] == why


def test_one_threshold_for_all_leaves_some_in_each():
    small = const(np.concatenate([np.full((30, 3, 1, 1), 0.01), np.full((10, 3, 1, 1), 10)]))
    before = chain(small, w(20, 40, 1, 1), w(5, 20, 1, 1))
    outcome = halved(scope="global", density=0.5, least=0.3)(before)
    left = [row(outcome, name)["outputs"] for name in "ab"]
    assert sum(left) == 30 and left[0] >= 12 and left[1] >= 6
    assert row(halved(min_channels=37)(before), "a")["outputs"] == 37


def test_skipped_layers_keep_their_channels():
    before = chain(w(8, 3, 1, 1), w(8, 8, 1, 1), w(5, 8, 1, 1))
    outcome = halved(skip=("a",))(before)
    assert [row(outcome, name)["outputs"] for name in "abc"] == [8, 4, 5]
    assert row(outcome, "a")["why"] == "skipped by name 'a'"
    with pytest.raises(RecipeError, match="skip 'fc' matches none of the model's 3 layers"):
        halved(skip=("fc",))(before)


def test_what_stops_it_is_said():
    def layers(e, x):
        y = e(op.matmul(x, w(4, 8)), "a")
        z = e(op.matmul(e(nn.layer_norm(y, w(8), w(8), [-1]), "norm"), w(8, 8)), "b")
        return [e(op.matmul(e(op.cumsum(z, 1), "sums"), w(8, 4)), "c")]

    outcome = check_unchanged(halved(), program((3, 4), layers))
    assert [r["why"] for r in outcome.notes[:3]] == [
        *("nn.layer_norm 'norm' needs them all", "cumsum 'sums' cannot be followed", "they reach the model's output")
    ]


def test_batch_norm_scales_tell():
    gamma = [1, 5, 4, 2]

    def layers(e, x):
        parameters = [const(v) for v in (gamma, [0] * 4, [0] * 4, [1] * 4)]
        y = e(
            relax.TupleGetItem(e(nn.batch_norm(e(nn.conv2d(x, w(4, 2, 1, 1)), "a"), *parameters, 1, training=False)), 0)
        )
        return [e(nn.conv2d(e(nn.conv2d(y, w(4, 4, 1, 1)), "b"), w(2, 4, 1, 1)))]

    step = halved(criterion="batch_norm")
    plan = step.plan(program((1, 2, 3, 3), layers), None)
    assert plan.alive[plan.flow.sites[0].outputs].tolist() == [False, True, True, False]
    outcome = step(program((1, 2, 3, 3), layers))
    assert row(outcome, "b")["criterion"] == "magnitude" and "criterion" not in row(outcome, "a")
    with pytest.raises(ModelError, match="put prune_channels before fold_batch_norm"):
        step(chain(w(4, 2, 1, 1), w(2, 4, 1, 1)))


def test_contributions_tell():
    """Weights of one size: the channels with large activations stay."""
    first = np.eye(4)[:, :, None, None]
    before = chain(const(first), const(np.ones((3, 4, 1, 1))))
    x = RNG.normal(size=(1, 4, 4, 4)).astype(np.float32) * np.float32([1, 10, 0.1, 5]).reshape(1, 4, 1, 1)
    plan = halved(criterion="taylor").plan(before, calibration(x))
    assert plan.alive[plan.flow.sites[0].outputs].tolist() == [False, True, False, True]
    with pytest.raises(SampleError, match="prune_channels needs samples for its criterion 'taylor'"):
        halved(criterion="taylor")(before)


def test_the_mean_of_what_goes_is_added():
    # Channel 0 goes: over samples its mean is 3, and it was read with weight 2.
    first, second = const([[[[1]], [[0]]], [[[0]], [[9]]]]), const([[[[2]], [[3]]]])
    x = np.float32([[[[2, 4]], [[1, 1]]]])

    def layers(e, x):
        return [e(op.add(e(nn.conv2d(e(nn.conv2d(x, first)), second)), const([[[[10]]]])))]

    def expected(e, x):
        return [e(op.add(e(nn.conv2d(e(nn.conv2d(x, const([[[[0]], [[9]]]]))), const([[[[3]]]]))), const([[[[16]]]])))]

    before, after = (program((1, 2, 1, 2), body) for body in (layers, expected))
    check_pair(halved(repair="bias"), before, after, calibration(x))


@pytest.mark.parametrize("kind", ["conv", "grouped", "transposed", "matmul", "weight first"])
def test_least_squares_repairs_what_can_be_told(kind):
    """Half of the channels are sums of the others: least squares loses nothing, and bias less than none."""
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    mix, base = RNG.normal(size=(8, 4)), RNG.normal(size=(4, 3))
    mix[:4] = np.eye(4) * 100
    if kind == "grouped":
        mix = np.kron(np.eye(2), RNG.normal(size=(4, 2))) + np.kron(
            np.eye(2), np.float32([[50, 0], [0, 50], [0, 0], [0, 0]])
        )
    first = (mix @ base)[:, :, None, None]

    def layers(e, x):
        y = e(nn.conv2d(x, const(first)))
        if kind == "conv":
            return [e(nn.conv2d(y, w(5, 8, 1, 1)))]
        if kind == "grouped":
            return [e(nn.conv2d(y, w(6, 4, 1, 1), groups=2))]
        if kind == "transposed":
            return [e(nn.conv2d_transpose(y, w(8, 5, 1, 1)))]
        if kind == "matmul":
            return [e(op.matmul(e(op.permute_dims(y, [0, 2, 3, 1])), w(8, 5)))]
        return [e(op.matmul(w(5, 8), e(op.reshape(y, (1, 8, 16)))))]

    before = program((1, 3, 4, 4), layers)
    xs = [RNG.normal(1, 1, size=(1, 3, 4, 4)).astype(np.float32) for _ in range(4)]
    exact = run(before, xs[0])
    found = {r: run(halved(repair=r)(before, calibration(*xs)).module, xs[0]) for r in ("bias", "least_squares")}
    assert snr_db(exact, found["least_squares"]) > 35
    plain = run(halved()(before).module, xs[0])
    assert np.square(found["bias"] - exact).sum() < np.square(plain - exact).sum()


@pytest.mark.parametrize("repair", ["bias", "least_squares"])
def test_a_repair_fills_no_zeros(repair):
    first, second = RNG.normal(size=(16, 8, 1, 1)), RNG.normal(size=(12, 16, 1, 1))
    gone = RNG.random(second.shape) < 0.8

    def body(e, x):
        y = e(nn.relu(e(nn.conv2d(x, const(first)), "first")))
        return [e(nn.conv2d(y, const(np.where(gone, 0, second))), "second")]

    xs = [RNG.normal(size=(1, 8, 6, 6)).astype(np.float32) for _ in range(4)]
    before = program((1, 8, 6, 6), body)
    after = halved(repair=repair)(before, calibration(*xs)).module
    means = [np.mean([run(mod, x)[0] for x in xs], axis=(0, 2, 3)) for mod in (before, after)]
    np.testing.assert_allclose(*means, atol=1e-4)  # what goes is made up for in the mean, with what zeros leave
    (left,) = (graph.value(b.value.args[1]) for b in graph.bindings(after) if b.var.name == "second")
    kept = [c for c in range(16) if any(np.array_equal((left == 0)[:, j], gone[:, c]) for j in range(8))]
    assert left.shape == (12, 8, 1, 1) and len(kept) == 8


def test_layers_that_share_a_constant_have_each_its_own_channels():
    """A silent channel of the second is known by the weights that make it, which are the first's, too."""
    shared = RNG.normal(size=(8, 8, 3, 3))
    shared[:4] = 0
    shared[:, :4] = 0
    first, last = RNG.normal(size=(8, 3, 1, 1)), RNG.normal(size=(5, 8, 1, 1))
    first[:4] = 0
    weight = const(shared)

    def body(e, x):
        y = e(nn.relu(e(nn.conv2d(x, const(first)))))
        for _ in range(2):
            y = e(nn.relu(e(nn.conv2d(y, weight, padding=1))))
        return [e(nn.conv2d(y, const(last)))]

    before, x = program((1, 3, 6, 6), body), RNG.normal(size=(1, 3, 6, 6)).astype(np.float32)
    after = halved()(before).module
    np.testing.assert_allclose(run(after, x)[0], run(before, x)[0], rtol=1e-4, atol=1e-5)
    assert sum(layer.macs for layer in macs(after)) < 0.4 * sum(layer.macs for layer in macs(before))


def test_steps_that_share_weights_are_not_repaired():
    model = load_proto(networks.recurrent(3, 8, 16))
    xs = [RNG.normal(size=(1, 3, 8)).astype(np.float32) for _ in range(2)]
    rows = halved(repair="bias")(model.module, calibration(*xs)).notes
    assert any(r.get("why") == "not repaired: several layers share its weights" for r in rows)


def shuffled(e, x, groups):
    n, c, h, width = graph.shape(x)
    swapped = e(op.permute_dims(e(op.reshape(x, (n, groups, c // groups, h, width))), [0, 2, 1, 3, 4]))
    return e(op.reshape(swapped, (n, c, h, width)))


def names(mod):
    return [graph.op_name(binding.value) for binding in graph.bindings(mod)]


def test_a_shuffle_stays_one():
    # One by one channels 0, 3, 6 and 7 are the largest; by places in both groups 0 and 2 are: 82 and 65, against 41.
    first = np.float32([9, 1, 1, 5, 1, 1, 8, 4]).reshape(8, 1, 1, 1)
    second = np.ones((3, 8, 1, 1))

    def body(first, second):
        return program(
            (1, 1, 2, 2),
            lambda e, x: [e(nn.conv2d(shuffled(e, e(nn.conv2d(x, const(first)), "a"), 2), const(second)), "b")],
        )

    check_pair(halved(), body(first, second), body(first[[0, 2, 4, 6]], second[:, :4]))


def test_too_few_places_are_chosen_among_one_by_one():
    scale = np.float32([4, 1, 1, 3]).reshape(4, 1, 1, 1)

    def layers(e, x):
        return [e(nn.conv2d(shuffled(e, e(nn.conv2d(x, const(scale)), "a"), 2), const(np.ones((3, 4, 1, 1)))))]

    before = program((1, 1, 2, 2), layers)
    plan = halved().plan(before, None)
    assert plan.alive[plan.flow.sites[0].outputs].tolist() == [True, False, False, True]


def test_a_group_that_must_stay_keeps_no_other():
    def layers(e, x):
        parts = [e(nn.conv2d(x, w(8, 3, 1, 1)), name) for name in "ab"]
        return [e(nn.conv2d(shuffled(e, e(op.concat(parts, 1)), 2), w(3, 16, 1, 1)))]

    outcome = halved(skip=("a",))(program((1, 3, 2, 2), layers))
    assert [row(outcome, name)["outputs"] for name in "ab"] == [8, 4]
    assert "relax.take" in names(outcome.module)


def test_each_layer_gets_its_share_of_what_shuffles_join():
    """Each third of a chain of shuffles of two halves holds larger sets than the one before."""
    outcome = PruneChannels()(simplified(load_proto(networks.shuffle(16)).module))
    left = [r["outputs"] / r["outputs_before"] for r in outcome.notes if r.get("kind") in ("conv", "depthwise")]
    assert min(left) >= 0.5 and max(left) <= 0.67
    assert names(outcome.module).count("relax.permute_dims") == 3 and "relax.take" not in names(outcome.module)


def test_grouped_convolutions_keep_their_shuffles():
    """The places of one layer's groups straddle the groups of the next: six channels are one place and a half."""

    def layers(e, x):
        y = e(nn.conv2d(x, w(24, 2, 1, 1), groups=4))
        y = e(nn.conv2d(shuffled(e, y, 4), w(24, 1, 3, 3), padding=1, groups=24))
        return [e(nn.conv2d(e(nn.conv2d(y, w(16, 6, 1, 1), groups=4)), w(3, 16, 1, 1)))]

    before = program((1, 8, 4, 4), layers)
    outcome = halved()(before)
    assert "relax.take" not in names(outcome.module)
    x = RNG.normal(size=(1, 8, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(outcome.module, x), run(masked(halved(), before), x), rtol=1e-3, atol=1e-3)


def test_groups_agree_on_the_best_they_can():
    """Readers in two groups, who take every second channel: two must stay of each group, on both sides."""
    scale = np.float32([1, 8, 1, 7, 6, 1, 5, 1]).reshape(8, 1, 1, 1)
    order = const([0, 2, 4, 6, 1, 3, 5, 7], "int64")

    def layers(e, x):
        y = e(nn.conv2d(x, const(scale * np.ones((8, 2, 1, 1))), groups=2))
        y = e(nn.conv2d(e(op.take(y, order, 1)), const(np.ones((4, 4, 1, 1))), groups=2))
        return [e(nn.conv2d(y, const(np.ones((2, 4, 1, 1)))))]

    plan = halved().plan(program((1, 4, 3, 3), layers), None)
    assert np.flatnonzero(plan.alive[plan.flow.sites[0].outputs]).tolist() == [1, 3, 4, 6]


def test_groups_that_disagree_want_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    first, second = w(8, 2, 1, 1), w(8, 4, 1, 1)
    order = const([0, 1, 4, 5, 2, 6, 3, 7], "int64")

    def layers(e, x):
        y = e(op.take(e(nn.conv2d(x, first, groups=2)), order, 1))
        return [e(nn.conv2d(e(nn.conv2d(y, second, groups=2)), w(2, 8, 1, 1)))]

    with pytest.raises(MissingDependencyError, match="pip install 'tvmcompress"):
        for density in (0.25, 0.5, 0.75):
            halved(density=density)(program((1, 4, 3, 3), layers))


def test_steps_of_recurrent_layers_are_still_one_kernel():
    target = Target.load("native")
    pruned = halved(round_to=4)(load_proto(networks.recurrent(3, 8, 16)).module).module
    _, rows = roll(pruned, isa_of(target.to_tvm(), target.l1d, target.l2))
    assert [row["macs"] for row in rows] == [2 * 8 * 32] * 2  # the first state is zero; 8 of 16 units are left


def test_faults():
    before = chain(w(4, 2, 1, 1), w(2, 4, 1, 1))
    with pytest.raises(RecipeError, match=r"density must be above 0 and at most 1, got 0.0"):
        PruneChannels(density=0.0)
    with pytest.raises(RecipeError, match=r"density must be in 0 … 1, got 1.5"):
        PruneChannels(density=1.5)
    with pytest.raises(ModelError, match="layer 'a' is already compressed"):
        PruneChannels()(QuantizeWeights(min_size=0)(before).module)
    check_unchanged(PruneChannels(density=1.0), before)
