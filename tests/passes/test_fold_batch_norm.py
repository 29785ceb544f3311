import numpy as np
import pytest
from tvm import relax

from tests.ir_pairs import check_pair, check_unchanged, const, program, run
from tvmcompress.ir import ops
from tvmcompress.passes import FoldBatchNorm

nn, add, multiply = relax.op.nn, relax.op.add, relax.op.multiply

# gamma / sqrt(var + 1) = 4 / 2, 3 / 3; beta - mean * scale = 5 - 1 * 2, 7 - 2 * 1
NORM = [const(v) for v in ([4, 3], [5, 7], [1, 2], [3, 8])]
SCALE, SHIFT = const([[[[2]], [[1]]]]), const([[[[3]], [[5]]]])


def norm(emit, x, axis=1, parameters=NORM):
    return emit(relax.TupleGetItem(emit(nn.batch_norm(x, *parameters, axis, 1.0, training=False)), 0), "bn")


def test_into_a_convolution():
    before = program((1, 1, 2, 2), lambda e, x: [norm(e, e(nn.conv2d(x, const([[[[1]]], [[[10]]]])), "c"))])
    after = program((1, 1, 2, 2), lambda e, x: [e(add(e(nn.conv2d(x, const([[[[2]]], [[[10]]]]))), SHIFT))])
    check_pair(FoldBatchNorm(), before, after)


def test_into_a_convolution_with_bias():
    bias, both = const([[[[10]], [[20]]]]), const([[[[23]], [[25]]]])
    before = program((1, 1, 2, 2), lambda e, x: [norm(e, e(add(e(nn.conv2d(x, const([[[[1]]], [[[10]]]]))), bias)))])
    after = program((1, 1, 2, 2), lambda e, x: [e(add(e(nn.conv2d(x, const([[[[2]]], [[[10]]]]))), both))])
    check_pair(FoldBatchNorm(), before, after)


def test_scale_and_shift_where_nothing_can_take_it():
    before = program((1, 2, 2, 2), lambda e, x: [norm(e, e(nn.relu(x)))])
    after = program((1, 2, 2, 2), lambda e, x: [e(add(e(multiply(e(nn.relu(x)), SCALE)), SHIFT))])
    check_pair(FoldBatchNorm(), before, after)


def test_a_compressed_weight_is_left():
    integers = np.array([[[[1]]], [[[2]]]], np.int8)

    def conv(e, x):
        weight = e(ops.dequantize(const(integers, "int8"), np.float32([1, 2]), np.int8(0), 0))
        return e(nn.conv2d(x, weight))

    before = program((1, 1, 2, 2), lambda e, x: [norm(e, conv(e, x))])
    after = program((1, 1, 2, 2), lambda e, x: [e(add(e(multiply(conv(e, x), SCALE)), SHIFT))])
    check_pair(FoldBatchNorm(), before, after)


def test_a_layer_that_others_read_keeps_its_weights():
    def before(e, x):
        y = e(nn.conv2d(x, const([[[[1]]], [[[10]]]])))
        return [norm(e, y), y]

    def after(e, x):
        y = e(nn.conv2d(x, const([[[[1]]], [[[10]]]])))
        return [e(add(e(multiply(y, SCALE)), SHIFT)), y]

    check_pair(FoldBatchNorm(), program((1, 1, 2, 2), before), program((1, 1, 2, 2), after))


def test_nothing_to_fold():
    check_unchanged(FoldBatchNorm(), program((1, 1, 2, 2), lambda e, x: [e(nn.conv2d(x, const([[[[1]]]])))]))


RNG = np.random.default_rng(0)


def w(*shape):
    return const(RNG.normal(size=shape))


LAYERS = {
    "conv1d": ((1, 4, 9), nn.conv1d, [w(6, 4, 3)], {}, 1),
    "grouped": ((1, 4, 6, 6), nn.conv2d, [w(6, 2, 3, 3)], {"groups": 2}, 1),
    "depthwise": ((1, 6, 6, 6), nn.conv2d, [w(6, 1, 3, 3)], {"groups": 6}, 1),
    "transposed": ((1, 4, 5, 5), nn.conv2d_transpose, [w(4, 6, 3, 3)], {"strides": 2}, 1),
    "transposed, grouped": ((1, 4, 5, 5), nn.conv2d_transpose, [w(4, 3, 3, 3)], {"groups": 2}, 1),
    "matmul": ((3, 5), relax.op.matmul, [w(5, 6)], {}, 1),
    "weight first": ((5, 3), lambda x, weight: relax.op.matmul(weight, x), [w(6, 5)], {}, 0),
    "weight first, norm of columns": ((5, 6), lambda x, weight: relax.op.matmul(weight, x), [w(6, 5)], {}, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_numerics(name):
    shape, layer, args, options, axis = LAYERS[name]
    gamma, beta, mean, var = RNG.normal(size=6), RNG.normal(size=6), RNG.normal(size=6), RNG.uniform(0.5, 2, 6)
    parameters = [const(v) for v in (gamma, beta, mean, var)]
    plain = program(shape, lambda e, x: [e(layer(x, *args, **options))])
    before = program(shape, lambda e, x: [norm(e, e(layer(x, *args, **options)), axis, parameters)])
    x = RNG.normal(size=shape).astype(np.float32)
    y = np.moveaxis(run(plain, x), axis, -1)
    expected = np.moveaxis((y - mean) / np.sqrt(var + 1) * gamma + beta, -1, axis)
    after = FoldBatchNorm()(before).module
    folded = "R.multiply" not in after.script()
    assert folded == (name != "weight first, norm of columns")
    np.testing.assert_allclose(run(after, x), expected, rtol=1e-4, atol=1e-4)


def test_statistics_of_the_batch_are_left():
    def body(e, x):
        return [e(relax.TupleGetItem(e(nn.batch_norm(x, *NORM, 1, training=True)), 0))]

    check_unchanged(FoldBatchNorm(), program((4, 2, 3, 3), body))
