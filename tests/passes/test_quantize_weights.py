import numpy as np
import pytest
from tvm import relax

from tests.ir_pairs import check_pair, check_unchanged, const, program, run, snr_db
from tvmcompress.errors import ModelError, RecipeError
from tvmcompress.ir import graph, ops
from tvmcompress.passes import QuantizeWeights
from tvmcompress.passes.support.weights import Grouping, grouping

op = relax.op


def test_eight_bits_per_channel():
    # Every weight is a whole number of steps (1 and 2), so that the search finds no error to lessen.
    before = program((1, 2), lambda e, x: [e(op.matmul(x, const([[127, -20], [10, 254]])), "fc")])

    def after(e, x):
        integers = const([[127, -10], [10, 127]], "int8")
        return [e(op.matmul(x, e(ops.dequantize(integers, np.float32([1, 2]), np.int8(0), 1))))]

    check_pair(QuantizeWeights(min_size=0), before, program((1, 2), after))


def test_four_bits_in_groups():
    # A row of 16 in two groups of 8: up to 7 (scale 1) and up to 14 (scale 2).
    row = [7, -7, 1, 0, 2, -3, 4, 5, 14, -14, 2, 0, 4, -6, 8, 10]
    before = program((1, 1), lambda e, x: [e(op.matmul(x, const([row])), "fc")])

    def after(e, x):
        # The even column in the low half of a byte: 7 | (-7 & 15) << 4 = 0x97.
        group = [0x97, 0x01, 0xD2, 0x54]
        packed = const([group, group], "uint8")
        scales = graph.const(np.array([1, 2], np.float16))
        integers = e(ops.unpack_int4(packed))
        real = e(op.dequantize(integers, scales, const(0, "int8"), 0, "float32"))
        return [e(op.matmul(x, e(op.reshape(real, (1, 16)))))]

    check_pair(QuantizeWeights(bits=4, group=8, min_size=0), before, program((1, 1), after))


def test_rows_are_padded_when_groups_do_not_divide_them():
    weight = np.random.default_rng(0).integers(-7, 8, (4, 37)).astype(np.float32)
    weight[:, ::5] = 7  # every group reaches 7: scale 1, no error
    before = program((2, 4), lambda e, x: [e(op.matmul(x, const(weight)))])
    after = QuantizeWeights(bits=4, group=8, min_size=0)(before).module
    x = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(run(after, x), x @ weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "columns, wanted, found",
    [(128, 64, (2, 64)), (576, 64, (9, 64)), (1000, 64, (20, 50)), (147, 64, (2, 74)), (24, 64, (1, 24))],
)
def test_grouping(columns, wanted, found):
    assert grouping(columns, wanted) == Grouping(columns, *found)


@pytest.mark.parametrize("bits, least", [(8, 40), (4, 17)])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "transposed"])
def test_numerics(kind, bits, least):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 1 if kind == "depthwise" else 32, 3, 3)).astype(np.float32)
    layer = op.nn.conv2d_transpose if kind == "transposed" else op.nn.conv2d
    groups = 32 if kind == "depthwise" else 1
    before = program((1, 32, 8, 8), lambda e, x: [e(layer(x, const(weight), groups=groups), "c")])
    after = QuantizeWeights(bits=bits, group=32 if bits == 4 else 0, min_size=0)(before).module
    x = rng.normal(size=(1, 32, 8, 8)).astype(np.float32)
    assert snr_db(run(before, x), run(after, x)) > least


def test_bytes_of_four_bits():
    weight = np.random.default_rng(0).normal(size=(64, 64, 3, 3))
    before = program((1, 64, 4, 4), lambda e, x: [e(op.nn.conv2d(x, const(weight)))])
    after = QuantizeWeights(bits=4, group=64)(before).module
    stored = sum(graph.value(c).nbytes for b in graph.bindings(after) for c in graph.constants_of(b.value))
    assert stored == weight.size * 4.25 / 8 + 1  # 16 bits a group of 64, and the zero point


def test_what_is_left_alone():
    small = program(
        (1, 2), lambda e, x: [e(op.matmul(x, const(np.ones((2, 2)))), "fc"), e(op.matmul(x, op.permute_dims(x)))]
    )
    assert [row["why"] for row in check_unchanged(QuantizeWeights(), small).notes] == [
        "smaller than min_size = 1024",
        "its weights are not constant",
    ]
    once = QuantizeWeights(min_size=0)(small).module
    assert check_unchanged(QuantizeWeights(min_size=0), once).notes[0]["why"] == "already compressed"


def test_weights_that_are_not_numbers():
    broken = program((1, 2), lambda e, x: [e(op.matmul(x, const([[1, np.nan]] * 2)), "fc")])
    with pytest.raises(ModelError, match="weights of 'fc' hold NaN"):
        QuantizeWeights()(broken)


def test_options():
    with pytest.raises(RecipeError, match="4 bits need a group"):
        QuantizeWeights(bits=4)
    with pytest.raises(RecipeError, match="group must be 0 or an even number from 8 on, got 9"):
        QuantizeWeights(group=9)
