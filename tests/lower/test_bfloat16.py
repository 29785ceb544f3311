"""Element-wise readers of what a bfloat16 kernel reads: the bits, and no second array."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmcompress.ir import evaluate, graph
from tvmcompress.kernels import tile
from tvmcompress.lower.bfloat16 import share_bits

X = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
BITS = (X.view(np.uint32) + 0x7FFF + ((X.view(np.uint32) >> 16) & 1)) >> 16
ROUNDED = (BITS << 16).astype(np.uint32).view(np.float32)


def program(reader):
    """relu(x) is read by `bits` and by reader."""

    def body(rw, x):
        y = rw.emit(relax.op.nn.relu(x))
        other = rw.emit(reader(y, x))
        return [rw.emit(rw.builder.call_te(tile.bits, y, primfunc_name_hint="bits")), other]

    return graph.program([("x", X.shape, "float32")], body)


def names(mod) -> list[str]:
    calls = [b.value for b in graph.bindings(mod) if isinstance(b.value, relax.Call)]
    return [c.args[0].name_hint if graph.op_name(c) == "relax.call_tir" else graph.op_name(c) for c in calls]


def test_a_sum_reads_the_bits():
    after = share_bits(program(relax.op.add))
    assert names(after) == ["relax.nn.relu", "bits", "real", "relax.add"]
    bits, total = evaluate.evaluate(after, [X])
    positive = np.maximum(ROUNDED, 0)
    np.testing.assert_array_equal(bits, (positive.view(np.uint32) >> 16).astype(np.uint16))
    np.testing.assert_array_equal(total, positive + X)


def test_other_readers_keep_what_they_read():
    before = program(lambda y, _x: relax.op.nn.softmax(y))
    assert names(share_bits(before)) == names(before)


def test_results_are_not_rounded():
    def body(rw, x):
        y = rw.emit(relax.op.nn.relu(x))
        return [y, rw.emit(rw.builder.call_te(tile.bits, y, primfunc_name_hint="bits")), rw.emit(relax.op.add(y, x))]

    before = graph.program([("x", X.shape, "float32")], body)
    np.testing.assert_array_equal(evaluate.evaluate(share_bits(before), [X])[0], np.maximum(X, 0))
    assert names(share_bits(before)) == names(before)
