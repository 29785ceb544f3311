"""Convolutions and products become kernels; their weights are packed now, or when a package is loaded."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import dequantized, op_names, quantized, random_bytes, weights
from tvmcompress.ir import graph, ops
from tvmcompress.isa import Dot, Isa
from tvmcompress.kernels import conv2d, matmul
from tvmcompress.lower import host
from tvmcompress.lower.anchors import anchors
from tvmcompress.lower.integer import integer
from tvmcompress.lower.weights import split

PLAIN = Isa("test", 4, 16, 1)
DOT = Isa("test-dot", 4, 16, 1, Dot("tvmcompress.pmaddwd_4", 4, 2, "uint8", "int8", "pmaddwd"))
W = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
IMAGE = (1, 6, 8, 4)


def program(body, shape=IMAGE, dtype="float32"):
    return graph.program([("x", shape, dtype)], body)


def conv(x, w, groups=1, padding=0):
    return relax.op.nn.conv2d(x, w, 1, padding, 1, groups, "NHWC", "OIHW", "NHWC")


def test_constant_weights_are_packed_now() -> None:
    mod, rows = anchors(program(lambda rw, x: [conv(x, graph.const(W))]), PLAIN)
    assert op_names(mod) == ["call_tir:conv2d_float"]
    shape = conv2d.Conv2d(1, 6, 8, 4, 6, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    plan = conv2d.plan(shape, PLAIN, "float32", "float32")
    (call,) = (b.value for b in graph.bindings(mod) if graph.op_name(b.value))
    np.testing.assert_array_equal(graph.value(call.args[1].fields[1]), conv2d.pack(W, shape, plan))
    (row,) = rows
    assert (row["kind"], row["macs"], row["integer"]) == ("conv2d", 4 * 6 * 6 * 4 * 9, False)
    assert not split(mod).prepares


def test_weights_stored_in_four_bits_are_packed_at_load() -> None:
    """unpack, dequantize and packing move to `prepare`; what is stored stays small."""
    packed = random_bytes((54, 2), "uint8")

    def body(rw, x):
        w = rw.emit(ops.unpack_int4(graph.const(packed)))
        w = rw.emit(ops.dequantize(w, np.full(54, 0.1), np.zeros(54), axis=0))
        return [conv(x, rw.emit(relax.op.reshape(w, (6, 4, 3, 3))))]

    mod, _ = anchors(program(body), PLAIN)
    parts = split(ops.expand(mod))
    assert parts.prepares
    assert sorted(t.shape for t in parts.stored) == [(54,), (54, 2)] or (54, 2) in [
        tuple(t.shape) for t in parts.stored
    ]
    assert max(np.prod(t.shape) for t in parts.stored) == packed.size
    assert parts.inputs == 1
    assert [n for n in op_names(parts.module) if "conv" not in n] == []


@pytest.mark.parametrize("groups, outputs", [(1, 10), (2, 10), (6, 6)])
def test_packing_at_load_is_packing_now(groups: int, outputs: int) -> None:
    """Operators and NumPy lay weights out alike; odd sizes, so that blocks hang over."""
    rng = np.random.default_rng(1)
    w = rng.integers(-8, 8, (outputs, 6 // groups, 3, 2)).astype(np.int8)
    dense = rng.integers(-8, 8, (14, 9)).astype(np.int8)
    x = rng.standard_normal((1, 6, 7, 5)).astype(np.float32)
    z = rng.standard_normal((3, 14)).astype(np.float32)

    def unpacked(rw, values):
        flat = rw.emit(ops.unpack_int4(graph.const(ops.pack_int4(values.reshape(1, -1)))))
        flat = rw.emit(ops.dequantize(flat, np.ones(1, np.float32), np.zeros(1), axis=0))
        return rw.emit(relax.op.reshape(flat, values.shape))

    def body(make):
        def inner(rw, a, b):
            y = relax.op.nn.conv2d(a, make(rw, w), padding=1, groups=groups)
            return [y, relax.op.matmul(b, make(rw, dense))]

        return inner

    inputs = [("x", x.shape, "float32"), ("z", z.shape, "float32")]
    later = host.executor(graph.program(inputs, body(unpacked)))([x, z])
    now = host.executor(graph.program(inputs, body(lambda _rw, v: graph.const(v.astype(np.float32)))))([x, z])
    for a, b in zip(later, now):
        np.testing.assert_array_equal(a, b)


def test_padding_of_integers_is_absorbed_with_its_value() -> None:
    def body(rw, q):
        y = rw.emit(conv(dequantized(rw, q), weights(rw, random_bytes((6, 4, 3, 3), "int8")), 1, 1))
        return [quantized(rw, y)]

    mod, (row,) = anchors(integer(program(body, dtype="uint8")), DOT)
    assert op_names(mod) == ["call_tir:conv2d_int", "add", "call_tir:requantize"]
    assert row["integer"] and row["dtype"] == "uint8xint8"


def test_three_channels_are_padded_to_whole_steps_for_the_dot_product_only() -> None:
    def body(dtype, zero):
        def inner(rw, q):
            w = rw.emit(ops.dequantize(graph.const(random_bytes((6, 3, 1, 1), dtype)), 0.1, zero))
            return [quantized(rw, rw.emit(conv(dequantized(rw, q), w)))]

        return inner

    shape = (1, 6, 8, 3)
    padded, (row,) = anchors(integer(program(body("int8", 0), shape, "uint8")), DOT)
    assert op_names(padded)[0] == "nn.pad"
    assert row["macs"] == 6 * 8 * 6 * 3
    wide, (row,) = anchors(integer(program(body("uint8", 7), shape, "uint8")), DOT)  # int16 weights
    assert "nn.pad" not in op_names(wide)
    assert row["macs"] == 6 * 8 * 6 * 3


def test_kinds_of_kernels() -> None:
    w = graph.const(np.ones((4, 1, 3, 3), np.float32))
    _, (row,) = anchors(program(lambda rw, x: [conv(x, w, 4)]), PLAIN)
    assert row["kind"] == "depthwise"
    mod = graph.program(
        [("a", (2, 3, 4), "float32"), ("b", (2, 4, 5), "float32")], lambda rw, a, b: [relax.op.matmul(a, b)]
    )
    after, (row,) = anchors(mod, PLAIN)
    assert op_names(after) == ["call_tir:matmul_batched"]
    assert row["macs"] == 2 * 3 * 4 * 5
    assert matmul.plan(3, 4, 5, 1, DOT, "uint8", "int8").depth == 2
    assert matmul.plan(3, 4, 5, 1, DOT, "uint8", "int16").depth == 1


def test_open_shapes_and_other_layouts_stay() -> None:
    w = graph.const(W)
    mod, rows = anchors(program(lambda rw, x: [relax.op.nn.conv2d(x, w)], (1, 4, 6, 8)), PLAIN)
    assert op_names(mod) == ["nn.conv2d"]
    assert rows == []
