"""Operators that are other operators in disguise."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import check_pair, check_unchanged, op_names
from tvmcompress.ir import graph, ops
from tvmcompress.ir.evaluate import evaluate
from tvmcompress.lower.decompose import decompose, phase_weights


def program(shape, body):
    return graph.program([("x", shape, "float32")], body)


def test_conv1d_is_a_convolution_of_height_one() -> None:
    w = np.arange(12, dtype=np.float32).reshape(2, 3, 2)

    def before(rw, x):
        return [relax.op.nn.conv1d(x, graph.const(w), 2, (1, 0), 3)]

    def expected(rw, x):
        tall = rw.emit(relax.op.reshape(x, (1, 3, 1, 9)))
        y = rw.emit(relax.op.nn.conv2d(tall, graph.const(w.reshape(2, 3, 1, 2)), [1, 2], [0, 1, 0, 0], [1, 3]))
        return [relax.op.reshape(y, (1, 2, 4))]

    check_pair(decompose, program((1, 3, 9), before), program((1, 3, 9), expected))


def test_conv1d_keeps_its_weights_quantized() -> None:
    w = np.arange(-6, 6, dtype=np.int8).reshape(2, 3, 2)
    scales, zeros = np.array([0.5, 0.25], np.float32), np.zeros(2, np.int8)

    def before(rw, x):
        return [relax.op.nn.conv1d(x, rw.emit(ops.dequantize(graph.const(w), scales, zeros, axis=0)))]

    def expected(rw, x):
        weight = rw.emit(ops.dequantize(graph.const(w.reshape(2, 3, 1, 2)), scales, zeros, axis=0))
        tall = rw.emit(relax.op.reshape(x, (1, 3, 1, 9)))
        y = rw.emit(relax.op.nn.conv2d(tall, weight, [1, 1], [0, 0, 0, 0], [1, 1]))
        return [relax.op.reshape(y, (1, 2, 8))]

    after = decompose(program((1, 3, 9), before))
    assert op_names(after).count("dequantize") == 1
    # The order of the two independent bindings does not matter; the values do.
    x = np.random.default_rng(0).standard_normal((1, 3, 9)).astype(np.float32)
    np.testing.assert_array_equal(evaluate(after, [x])[0], evaluate(program((1, 3, 9), expected), [x])[0])


@pytest.mark.parametrize("weight, strides, padding, dilation, groups", [
    ((6, 4, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
    ((6, 4, 2, 3, 1), (2, 1, 2), (1, 0, 2, 0, 1, 1), (2, 1, 1), 1),
    ((6, 4, 1, 3, 3), (1, 2, 1), (0, 1, 1), (1, 1, 2), 1),
    ((6, 4, 1, 1, 1), (3, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    ((8, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 4),
    ((6, 2, 3, 1, 1), (1, 1, 1), (2, 0, 0), (1, 1, 1), 2),
])  # fmt: skip
def test_conv3d_is_a_convolution_of_each_depth(weight, strides, padding, dilation, groups) -> None:
    rng, shape = np.random.default_rng(0), (2, 4, 7, 6, 5)
    w, x = (rng.integers(-9, 9, s).astype(np.float32) for s in (weight, shape))

    def body(rw, x):
        return [relax.op.nn.conv3d(x, graph.const(w), strides, padding, dilation, groups)]

    before = program(shape, body)
    after = decompose(before)
    assert op_names(after).count("nn.conv2d") == 1 and "nn.conv3d" not in op_names(after)
    np.testing.assert_array_equal(evaluate(after, [x])[0], evaluate(before, [x])[0])


@pytest.mark.parametrize("axis", [0, -1])
def test_conv3d_keeps_its_weights_quantized(axis) -> None:
    """A scale for each output, or for all, which is told with any axis."""
    rng, shape = np.random.default_rng(0), (1, 4, 4, 6, 5)
    w, x = rng.integers(-9, 9, (6, 4, 3, 3, 3)).astype(np.int8), rng.integers(-9, 9, shape).astype(np.float32)
    scales = np.arange(1, 7).astype(np.float32) if axis == 0 else np.float32(2)
    zeros = np.zeros(scales.shape, np.int8)

    def body(rw, x):
        return [relax.op.nn.conv3d(x, rw.emit(ops.dequantize(graph.const(w), scales, zeros, axis=axis)))]

    before = program(shape, body)
    after = decompose(before)
    names = op_names(after)
    assert names.count("dequantize") == 1 and names.index("dequantize") + 1 == names.index("nn.conv2d")
    np.testing.assert_array_equal(evaluate(after, [x])[0], evaluate(before, [x])[0])


def test_batch_norm_is_a_factor_and_a_shift() -> None:
    """gamma 2, beta 1, mean 3, variance 4 - 1e-5: x * 1 - 2 in the first channel."""
    gamma, beta, mean = (np.array(v, np.float32) for v in ([2, 1], [1, 0], [3, 0]))
    variance = np.array([4 - 1e-5, 1 - 1e-5], np.float32)

    def before(rw, x):
        y = relax.op.nn.batch_norm(x, *(graph.const(v) for v in (gamma, beta, mean, variance)), axis=1, training=False)
        return [relax.TupleGetItem(rw.emit(y), 0)]

    def expected(rw, x):
        y = rw.emit(relax.op.multiply(x, graph.const(np.array([1, 1], np.float32).reshape(1, 2, 1, 1))))
        return [relax.op.add(y, graph.const(np.array([-2, 0], np.float32).reshape(1, 2, 1, 1)))]

    check_pair(decompose, program((1, 2, 4, 4), before), program((1, 2, 4, 4), expected))


def test_adaptive_pooling_with_equal_windows_is_pooling() -> None:
    check_pair(
        decompose,
        program((1, 2, 6, 8), lambda rw, x: [relax.op.nn.adaptive_avg_pool2d(x, (3, 2))]),
        program((1, 2, 6, 8), lambda rw, x: [relax.op.nn.avg_pool2d(x, [2, 4], [2, 4])]),
    )
    check_pair(
        decompose,
        program((1, 2, 6, 8), lambda rw, x: [relax.op.nn.adaptive_avg_pool2d(x, (1, 1))]),
        program((1, 2, 6, 8), lambda rw, x: [relax.op.mean(x, [2, 3], True)]),
    )
    check_unchanged(decompose, program((1, 2, 7, 8), lambda rw, x: [relax.op.nn.adaptive_avg_pool2d(x, (3, 2))]))


def test_transposed_convolution_is_one_convolution_and_depth_to_space() -> None:
    """2x2 with stride 2: each of the four output phases takes one tap, so the kernel becomes 1x1."""
    w = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)  # (I, O, KH, KW)

    def before(rw, x):
        return [relax.op.nn.conv2d_transpose(x, graph.const(w), [2, 2])]

    def expected(rw, x):
        y = rw.emit(relax.op.nn.conv2d(x, graph.const(w.reshape(8, 1, 1, 1)), 1, [0, 0, 0, 0], 1, 1))
        y = rw.emit(relax.op.reshape(y, (1, 2, 2, 2, 3, 4)))
        y = rw.emit(relax.op.permute_dims(y, (0, 1, 4, 2, 5, 3)))
        return [relax.op.reshape(y, (1, 2, 6, 8))]

    check_pair(decompose, program((1, 1, 3, 4), before), program((1, 1, 3, 4), expected))


def test_phases_of_a_transposed_convolution() -> None:
    """3 taps, stride 2, padding 1 in one dimension: even outputs take tap 1, odd ones taps 2 and 0."""
    w = np.array([10.0, 20.0, 30.0]).reshape(1, 1, 1, 3)
    packed, (_, before) = phase_weights(w, [1, 2], [0, 1, 0, 1], 1)
    np.testing.assert_array_equal(packed.reshape(2, 2), [[20, 0], [30, 10]])
    assert before == 0


def test_what_is_none_of_these_stays() -> None:
    w = graph.const(np.ones((2, 2, 3, 3), np.float32))
    check_unchanged(decompose, program((1, 2, 6, 8), lambda rw, x: [relax.op.nn.conv2d(x, w)]))


def test_weights_computed_at_run_time_keep_the_transposed_convolution() -> None:
    mod = graph.program(
        [("x", (1, 2, 4, 4), "float32"), ("w", (2, 3, 2, 2), "float32")],
        lambda rw, x, w: [relax.op.nn.conv2d_transpose(x, w, 2)],
    )
    check_unchanged(decompose, mod)
