"""NHWC inside, permutes only at the borders."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import assembly, build, check_pair, check_unchanged, op_names
from tvmcompress.ir import graph, ops
from tvmcompress.ir.evaluate import evaluate
from tvmcompress.lower.channels_last import FIRST, LAST, channels_last

SHAPE = (1, 4, 6, 8)
W = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
W6 = np.random.default_rng(1).standard_normal((6, 6, 1, 1)).astype(np.float32)
BIAS = np.arange(6, dtype=np.float32)


def program(body, shape=SHAPE):
    return graph.program([("x", shape, "float32")], body)


def conv(rw, x, w=W, padding=1):
    return rw.emit(relax.op.nn.conv2d(x, graph.const(w), padding=padding))


def conv_last(rw, x, w=W, padding=1):
    return rw.emit(relax.op.nn.conv2d(x, graph.const(w), 1, [padding] * 4, 1, 1, "NHWC", "OIHW", "NHWC"))


def test_a_convolution_with_bias_and_activation() -> None:
    def before(rw, x):
        y = rw.emit(relax.op.add(conv(rw, x), graph.const(BIAS.reshape(1, 6, 1, 1))))
        return [relax.op.nn.relu(y)]

    def expected(rw, x):
        y = conv_last(rw, rw.emit(relax.op.permute_dims(x, LAST)))
        y = rw.emit(relax.op.add(y, graph.const(BIAS.reshape(1, 1, 1, 6))))
        y = rw.emit(relax.op.nn.relu(y))
        return [relax.op.permute_dims(y, FIRST)]

    check_pair(channels_last, program(before), program(expected))


def test_channels_are_picked_where_they_lie() -> None:
    picked = graph.const(np.array([4, 0, 5]), "int64")

    def before(rw, x):
        return [rw.emit(relax.op.take(conv(rw, x), picked, 1, mode="clip"))]

    def expected(rw, x):
        y = rw.emit(relax.op.take(conv_last(rw, rw.emit(relax.op.permute_dims(x, LAST))), picked, 3, mode="clip"))
        return [rw.emit(relax.op.permute_dims(y, FIRST))]

    check_pair(channels_last, program(before), program(expected))


def test_concat_split_and_pad_move_their_axes() -> None:
    def before(rw, x):
        y = conv(rw, x)
        y = rw.emit(relax.op.concat([y, y], axis=1))
        y = rw.emit(relax.op.nn.pad(y, [0, 0, 0, 0, 1, 2, 3, 4]))
        a, b = (rw.emit(relax.TupleGetItem(rw.emit(relax.op.split(y, [3], axis=1)), i)) for i in range(2))
        return [a, b]

    def expected(rw, x):
        y = conv_last(rw, rw.emit(relax.op.permute_dims(x, LAST)))
        y = rw.emit(relax.op.concat([y, y], axis=3))
        y = rw.emit(relax.op.nn.pad(y, [0, 0, 1, 2, 3, 4, 0, 0]))
        parts = rw.emit(relax.op.split(y, [3], axis=3))
        a, b = (rw.emit(relax.TupleGetItem(parts, i)) for i in range(2))
        return [rw.emit(relax.op.permute_dims(a, FIRST)), rw.emit(relax.op.permute_dims(b, FIRST))]

    mod = program(before)
    after = channels_last(mod)
    assert op_names(after).count("permute_dims") == 3
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    for got, by_hand, wanted in zip(evaluate(after, [x]), evaluate(program(expected), [x]), evaluate(mod, [x])):
        np.testing.assert_array_equal(got, by_hand)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("integers", [False, True])
def test_shuffled_channels_stay_last(integers: bool) -> None:
    """Taken apart, swapped and put together where they are; then it is one kernel."""

    def before(rw, x):
        y = conv(rw, x)
        for change in (
            lambda y: relax.op.reshape(y, (1, 2, 3, 6, 8)),
            lambda y: relax.op.permute_dims(y, (0, 2, 1, 3, 4)),
            lambda y: relax.op.reshape(y, (1, 6, 6, 8)),
        ):
            y = rw.emit(
                change(rw.emit(ops.dequantize(rw.emit(ops.quantize(y, 0.1, 3, "uint8")), 0.1, 3)) if integers else y)
            )
        return [conv(rw, y, W6, 0)]

    mod = program(before)
    after = channels_last(mod)
    assert op_names(after).count("permute_dims") == 3  # in, the swap, out
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_allclose(evaluate(after, [x])[0], evaluate(mod, [x])[0], rtol=1e-4, atol=1e-5)
    lowered = build(mod, "native")
    assert not lowered.fallbacks
    assert "__tvm_ffi_shuffle" in assembly(lowered)


def test_one_pixel_needs_no_permute_back() -> None:
    def before(rw, x):
        y = rw.emit(relax.op.mean(conv(rw, x), [2, 3], True))
        return [relax.op.reshape(y, (1, 6))]

    def expected(rw, x):
        y = conv_last(rw, rw.emit(relax.op.permute_dims(x, LAST)))
        y = rw.emit(relax.op.mean(y, [1, 2], True))
        return [relax.op.reshape(y, (1, 6))]

    check_pair(channels_last, program(before), program(expected))


def test_per_channel_scales_move_to_the_last_axis() -> None:
    scales, zeros = np.linspace(0.1, 0.6, 6, dtype=np.float32), np.zeros(6, np.int8)

    def before(rw, x):
        return [ops.quantize(conv(rw, x), scales, zeros, "int8", axis=1)]

    def expected(rw, x):
        y = conv_last(rw, rw.emit(relax.op.permute_dims(x, LAST)))
        y = rw.emit(ops.quantize(y, scales, zeros, "int8", axis=3))
        return [relax.op.permute_dims(y, FIRST)]

    check_pair(channels_last, program(before), program(expected))


def test_a_users_own_permute_meets_ours() -> None:
    """An NHWC model wrapped in transposes, as TFLite models come: no permute is left."""

    def before(rw, x):
        y = conv(rw, rw.emit(relax.op.permute_dims(x, FIRST)))
        return [relax.op.permute_dims(y, LAST)]

    mod = program(before, (1, 6, 8, 4))
    assert op_names(channels_last(mod)) == ["nn.conv2d"]


@pytest.mark.parametrize(
    "tail",
    [
        lambda rw, y: relax.op.nn.max_pool2d(y, (2, 2), (2, 2), (1, 0, 1, 0)),
        lambda rw, y: relax.op.nn.avg_pool2d(y, (3, 3), (1, 1), 1),
        lambda rw, y: relax.op.image.resize2d(y, (12, 16), layout="NCHW", method="linear"),
        lambda rw, y: relax.op.nn.softmax(y, 1),
        lambda rw, y: relax.op.nn.softmax(y, -1),
        lambda rw, y: relax.op.nn.log_softmax(y, 2),
        lambda rw, y: relax.op.max(y, [1, 2], False),
        lambda rw, y: relax.op.sum(y, [1], False),
        lambda rw, y: relax.op.mean(y, [1, 3], True),
        lambda rw, y: relax.op.add(y, graph.const(np.arange(8, dtype=np.float32))),
        lambda rw, y: relax.op.multiply(graph.const(np.arange(48, dtype=np.float32).reshape(6, 8)), y),
        lambda rw, y: relax.op.where(
            rw.emit(relax.op.greater(y, graph.const(0.5, "float32"))), y, graph.const(np.float32(-1))
        ),
        lambda rw, y: relax.op.nn.prelu(y, graph.const(np.linspace(0, 1, 6, dtype=np.float32))),
        lambda rw, y: relax.op.reshape(y, (1, 288)),
        lambda rw, y: relax.op.reshape(rw.emit(relax.op.permute_dims(y, (0, 3, 1, 2))), (1, 288)),
        lambda rw, y: relax.op.concat([y, rw.emit(relax.op.nn.relu(y))], axis=2),
        lambda rw, y: relax.op.concat([y, y], axis=-3),
        lambda rw, y: relax.op.strided_slice(y, [1], [0], [4]),
        lambda rw, y: relax.op.nn.pad(y, [0, 0, 1, 0, 0, 2, 0, 0], "constant", 1.5),
    ],
)
def test_the_numbers_stay(tail) -> None:
    mod = program(lambda rw, x: [tail(rw, conv(rw, x))])
    after = channels_last(mod)
    relax.analysis.well_formed(after)  # raises when it is not
    x = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    (got,), (wanted,) = evaluate(after, [x]), evaluate(mod, [x])
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_two_convolutions_share_the_layout_between_them() -> None:
    def before(rw, x):
        return [conv(rw, rw.emit(relax.op.nn.relu(conv(rw, x))), W6, 0)]

    assert op_names(channels_last(program(before))) == [
        "permute_dims", "nn.conv2d", "nn.relu", "nn.conv2d", "permute_dims",
    ]  # fmt: skip


def test_programs_without_convolutions_stay() -> None:
    check_unchanged(channels_last, program(lambda rw, x: [relax.op.nn.relu(rw.emit(relax.op.exp(x)))]))
