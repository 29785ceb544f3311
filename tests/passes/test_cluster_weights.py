import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.ir_pairs import calibration, check_pair, check_unchanged, const, program, run, snr_db
from tvmcompress.errors import ModelError, RecipeError
from tvmcompress.ir import constants, graph, ops
from tvmcompress.passes import ClusterWeights, FoldConstants, QuantizeStatic, QuantizeWeights, ToBf16

op, nn = relax.op, relax.op.nn
ALL = ClusterWeights(min_size=0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def pruned(*shape):
    weight = normal(*shape)
    weight[np.abs(weight) < 1] = 0
    return weight


def weights_of(mod, name):
    """The value of the weights of a layer, in whatever form they are."""
    definition = graph.definitions(mod).get
    (call,) = [b.value for b in graph.bindings(mod) if b.var.name == name]
    return constants.known(call.args[1], definition)


def stored_bytes(mod):
    return sum(graph.value(c).nbytes for b in graph.bindings(mod) for c in graph.constants_of(b.value))


def test_two_values_of_a_matrix():
    """1 and 3 become 2, 10 stays; indices 1 0 0 | 0 1 0, one bit each, from the lowest on: 0b010001."""
    before = program((1, 2), lambda e, x: [e(op.matmul(x, const([[10, 1, 3], [1, 10, 3]])), "fc")])

    def after(e, x):
        shared = e(ops.look_up(const([[0b010001]], "uint8"), const([[2, 10]])))
        weight = e(op.reshape(e(op.strided_slice(shared, [1], [0], [6])), (2, 3)))
        return [e(op.matmul(x, weight))]

    outcome = check_pair(ClusterWeights(clusters=2, min_size=0), before, program((1, 2), after))
    (row,) = outcome.notes
    assert row["clustered"] and row["values"] == 2 and (row["bytes_before"], row["bytes_after"]) == (24, 9)
    assert row["weights_snr_db"] == round(10 * np.log10(220 / 4), 2)


def test_four_bits_share_a_byte():
    values = np.arange(16)[::-1]
    before = program((1, 4, 1, 1), lambda e, x: [e(nn.conv2d(x, const(values.reshape(4, 4, 1, 1))), "c")])

    def after(e, x):
        packed = [0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01]
        shared = e(ops.look_up(const([packed], "uint8"), const([np.arange(16)])))
        return [e(nn.conv2d(x, e(op.reshape(shared, (4, 4, 1, 1)))))]

    check_pair(ALL, before, program((1, 4, 1, 1), after))


def test_codebooks_of_groups_of_columns():
    """Output channels of a matrix are its columns: they come first while they are grouped."""
    before = program((1, 2), lambda e, x: [e(op.matmul(x, const([[1, 7, 5, 2], [1, 7, 6, 2]])), "fc")])

    def after(e, x):
        # Columns 1 1, 7 7 | 5 6, 2 2: numbers 0 0 1 1 | 1 1 0 0.
        shared = e(ops.look_up(const([[0b1100], [0b0011]], "uint8"), const([[1, 7], [2, 5.5]])))
        columns = e(op.reshape(e(op.strided_slice(shared, [1], [0], [4])), (4, 2)))
        return [e(op.matmul(x, e(op.permute_dims(columns, [1, 0]))))]

    check_pair(ClusterWeights(clusters=2, group=2, min_size=0), before, program((1, 2), after))


def test_values_by_position():
    before = program((1, 4), lambda e, x: [e(op.matmul(x, const(np.arange(1, 25).reshape(4, 6))), "fc")])
    step = ClusterWeights(sharing="hashed", buckets=0.125, min_size=0)
    at = ops.bucket(np.arange(24), 3)
    means = [np.mean([i + 1 for i in range(24) if at[i] == b]) for b in range(3)]

    def after(e, x):
        return [e(op.matmul(x, e(ops.hashed(const(means), (4, 6)))))]

    (row,) = check_pair(step, before, program((1, 4), after)).notes
    assert row["values"] == 3 and row["bytes_after"] == 12


KINDS = {
    "conv": lambda w, x: nn.conv2d(x, w),
    "grouped": lambda w, x: nn.conv2d(x, w, groups=4),
    "depthwise": lambda w, x: nn.conv2d(x, w, groups=16),
    "transposed": lambda w, x: nn.conv2d_transpose(x, w),
}
SHAPES = {"conv": (24, 16, 3, 3), "grouped": (8, 4, 3, 3), "depthwise": (16, 1, 3, 3), "transposed": (16, 24, 3, 3)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, least",
    [({}, 19), ({"clusters": 256}, 40), ({"group": 8}, 19), ({"clusters": 5}, 9), ({"sharing": "hashed"}, 0.2)],
)
def test_numerics(kind, options, least):
    weight, x = normal(*SHAPES[kind]), normal(1, 16, 6, 6)
    layer = KINDS[kind]
    before = program(x.shape, lambda e, x: [e(layer(const(weight), x), "c")])
    after = ClusterWeights(min_size=0, **options)(before).module
    found = weights_of(after, "c")
    dense = program(x.shape, lambda e, x: [e(layer(const(found), x), "c")])
    np.testing.assert_array_equal(run(after, x), run(dense, x))
    assert snr_db(weight, found) > least


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.integers(2, 40),
    st.integers(0, 5),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_zeros_stay_and_every_weight_gets_the_nearest_value(shape, clusters, group, density, seed):
    random = np.random.default_rng(seed)
    weight = np.where(random.random(shape) < density, random.normal(size=shape), 0).astype(np.float32)
    before = program((1, shape[0]), lambda e, x: [e(op.matmul(x, const(weight)), "fc")])
    outcome = ClusterWeights(clusters=clusters, group=group, min_size=0)(before)
    found = weights_of(outcome.module, "fc")
    assert not found[weight == 0].any()
    books = shape[1] // next(n for n in range(min(group or shape[1], shape[1]), shape[1] + 1) if shape[1] % n == 0)
    for mine, theirs in zip(np.split(weight, books, 1), np.split(found, books, 1)):
        used = np.unique(theirs)
        assert len(used) <= clusters
        nearest = np.abs(mine[..., None] - used).min(axis=-1)
        np.testing.assert_allclose(np.abs(mine - theirs), nearest, atol=1e-6)


def test_sixteen_values_take_an_eighth():
    before = program((1, 64, 4, 4), lambda e, x: [e(nn.conv2d(x, const(normal(64, 64, 3, 3))))])
    assert stored_bytes(ClusterWeights()(before).module) == 64 * 64 * 9 / 2 + 64


def test_pruned_weights_stay_pruned():
    weight = pruned(32, 32, 3, 3)
    before = program((1, 32, 4, 4), lambda e, x: [e(nn.conv2d(x, const(weight)), "c")])
    np.testing.assert_array_equal(weights_of(ALL(before).module, "c") == 0, weight == 0)


def quantized_net():
    """A convolution and a matrix product of pruned weights, quantized; and an input."""
    conv, fc, x = pruned(16, 8, 3, 3), pruned(16 * 16, 24), normal(1, 8, 6, 6)

    def body(e, x):
        y = e(nn.relu(e(nn.conv2d(x, const(conv)), "c")))
        return [e(op.matmul(e(op.reshape(y, (1, 256))), const(fc)), "fc")]

    mod = program(x.shape, body)
    return mod, QuantizeStatic(measure=False)(mod, calibration(normal(1, 8, 6, 6), x)).module, x


def test_prune_quantize_cluster():
    """The integers are shared: 4 bits, zeros where there were zeros, errors small beside each channel's scale."""
    real, mod, x = quantized_net()
    outcome = ALL(mod)
    assert [(row["layer"], row["clustered"], row["values"] <= 16) for row in outcome.notes] == [
        ("c", True, True),
        ("fc", True, True),
    ]
    for name, row in zip(("c", "fc"), outcome.notes):
        before, after = weights_of(mod, name), weights_of(outcome.module, name)
        assert not after[before == 0].any() and snr_db(before, after) > 19
        assert snr_db(before, after) == pytest.approx(row["weights_snr_db"], abs=0.02)
    stored = [graph.dtype(b.value) for b in graph.bindings(outcome.module) if graph.op_name(b.value) == ops.LOOK_UP]
    assert stored == ["int8", "int8"]
    assert snr_db(run(real, x), run(outcome.module, x)) > 12


def test_a_dequantized_weight_that_two_layers_read_is_stored_once():
    def body(e, x):
        w = e(
            ops.dequantize(const(RNG.integers(-100, 100, (8, 8)), "int8"), np.ones(8, np.float32), np.zeros(8, np.int8))
        )
        return [e(op.matmul(e(op.matmul(x, w), "one"), w), "two")]

    outcome = ALL(program((2, 8), body))
    assert [row["clustered"] for row in outcome.notes] == [True, True]
    assert outcome.notes[0]["bytes_after"] == outcome.notes[1]["bytes_after"] == 32 + 16
    assert [graph.op_name(b.value) for b in graph.bindings(outcome.module)].count(ops.LOOK_UP) == 1


def test_a_constant_that_two_layers_read_is_stored_once():
    w = const(normal(8, 8))
    outcome = ALL(program((2, 8), lambda e, x: [e(op.matmul(e(op.matmul(x, w), "one"), w), "two")]))
    assert [graph.op_name(b.value) for b in graph.bindings(outcome.module)].count(ops.LOOK_UP) == 1


def why(step, mod):
    return [row["why"] for row in check_unchanged(step, mod).notes]


def test_what_is_left_alone():
    mod = program(
        (1, 2), lambda e, x: [e(op.matmul(x, const(np.ones((2, 2)))), "fc"), e(op.matmul(x, op.permute_dims(x)))]
    )
    assert why(ClusterWeights(), mod) == ["smaller than min_size = 1024", "its weights are not constant"]
    assert why(ClusterWeights(min_size=0, skip=("fc",)), mod)[0] == "skipped by name 'fc'"
    holes = program((1, 2), lambda e, x: [e(op.matmul(x, const(np.eye(2))), "fc")])
    assert why(ClusterWeights(min_size=0, sharing="hashed"), holes) == [
        "it holds zeros, which hashed sharing would fill"
    ]
    assert ClusterWeights(min_size=0, sharing="hashed", preserve_zeros=False)(holes).notes[0]["clustered"]


def test_orders_that_cannot_be():
    wide = program((1, 16), lambda e, x: [e(op.matmul(x, const(normal(16, 16))), "fc")])
    once = ALL(wide).module
    assert why(ALL, once) == ["already compressed"]
    assert why(QuantizeWeights(min_size=0), once) == ["already compressed"]
    check_unchanged(FoldConstants(), once)
    four = QuantizeWeights(bits=4, group=16, min_size=0)(wide).module
    assert why(ALL, four) == ["already compressed"]
    eight = QuantizeWeights(min_size=0)(wide).module
    assert why(ClusterWeights(clusters=256, min_size=0), eight) == [
        "its weights are 8-bit integers, which only 16 values or fewer make smaller"
    ]
    half = ToBf16()(wide).module
    assert why(ALL, half) == ["its weights are bfloat16: give the model in float32, and make it narrow last"]


def test_weights_that_are_not_numbers():
    broken = program((1, 2), lambda e, x: [e(op.matmul(x, const([[1, np.nan]] * 2)), "fc")])
    with pytest.raises(ModelError, match="weights of 'fc' hold NaN"):
        ALL(broken)


def test_options():
    with pytest.raises(RecipeError, match="clusters must be in 2 … 256, got 257"):
        ClusterWeights(clusters=257)
    with pytest.raises(RecipeError, match=r"sharing must be one of .*, got 'kmean'; did you mean 'kmeans'"):
        ClusterWeights(sharing="kmean")
    with pytest.raises(RecipeError, match="buckets must be in"):
        ClusterWeights(buckets=0)
