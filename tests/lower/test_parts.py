"""Channels that are split off, put together and shuffled are read where they are."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import op_names
from tvmcompress.ir import graph
from tvmcompress.isa import Isa
from tvmcompress.lower import host
from tvmcompress.lower.anchors import anchors

PLAIN = Isa("test", 4, 16, 1)
RNG = np.random.default_rng(0)
SHAPE = (1, 3, 5, 8)
X = RNG.standard_normal(SHAPE).astype(np.float32)


def halves(rw, x, axis=3):
    both = rw.emit(relax.op.split(x, 2, axis))
    return [rw.emit(relax.TupleGetItem(both, i)) for i in range(2)]


def shuffled(rw, y, groups=2):
    n, h, w, c = graph.shape(y)
    y = rw.emit(relax.op.reshape(y, (n, h, w, groups, c // groups)))
    return rw.emit(relax.op.reshape(rw.emit(relax.op.permute_dims(y, (0, 1, 2, 4, 3))), (n, h, w, c)))


def pointwise(rw, x):
    weight = graph.const(2 * np.eye(graph.shape(x)[-1], dtype=np.float32)[:, :, None, None])
    return rw.emit(relax.op.nn.conv2d(x, weight, 1, 0, 1, 1, "NHWC", "OIHW", "NHWC"))


def unit(rw, x):
    left, right = halves(rw, x)
    return shuffled(rw, rw.emit(relax.op.concat([left, pointwise(rw, right)], 3)))


def wide(rw, x):
    """The parts that are put together are no groups."""
    left, right = halves(rw, x)
    return shuffled(rw, rw.emit(relax.op.concat([left, pointwise(rw, right)], 3)), 4)


def rows(rw, x):
    upper, lower = halves(rw, rw.emit(relax.op.concat([x, x], 1)), 1)
    return rw.emit(relax.op.concat([lower, pointwise(rw, upper)], 3))


def twice(rw, x):
    """The split is wanted by itself too."""
    left, right = halves(rw, x)
    return rw.emit(relax.op.concat([pointwise(rw, right), rw.emit(relax.op.nn.relu(right)), left], 3))


BY_HAND = {
    unit: np.stack([X[..., :4], 2 * X[..., 4:]], -1).reshape(SHAPE),
    wide: np.concatenate([X[..., :4], 2 * X[..., 4:]], -1).reshape(1, 3, 5, 4, 2).swapaxes(3, 4).reshape(SHAPE),
    rows: np.concatenate([X, 2 * X], -1),
    twice: np.concatenate([2 * X[..., 4:], np.maximum(X[..., 4:], 0), X[..., :4]], -1),
}
LEFT = {
    unit: ["call_tir:conv2d_float", "call_tir:shuffle"],
    wide: ["call_tir:conv2d_float", "call_tir:concat", "call_tir:shuffle"],
    rows: ["call_tir:concat", "split", "call_tir:conv2d_float", "call_tir:concat"],
    twice: ["split", "call_tir:conv2d_float", "nn.relu", "call_tir:concat"],
}


@pytest.mark.parametrize("body", BY_HAND, ids=lambda body: body.__name__)
def test_read_where_they_are(body) -> None:
    mod = graph.program([("x", SHAPE, "float32")], lambda rw, x: [body(rw, x)])
    assert op_names(anchors(mod, PLAIN)[0]) == LEFT[body]
    np.testing.assert_array_equal(host.executor(mod)([X])[0], BY_HAND[body])
