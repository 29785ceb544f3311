"""Chains of reshapes become one, others stay."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tests.lower.tools import check_pair, check_unchanged
from tvmcompress.ir import graph
from tvmcompress.lower.reshapes import one_reshape

op = relax.op
INPUT = [("x", (2, 6), "float32")]


def test_a_chain_is_one():
    """What else reads its links still can."""

    def before(rw, x):
        y = rw.emit(op.reshape(x, (3, 4)))
        z = rw.emit(op.reshape(rw.emit(op.reshape(y, (12,))), (4, 3)))
        return [rw.emit(op.exp(y)), z]

    def after(rw, x):
        y = rw.emit(op.reshape(x, (3, 4)))
        z = rw.emit(op.reshape(x, (4, 3)))
        return [rw.emit(op.exp(y)), z]

    check_pair(one_reshape, graph.program(INPUT, before), graph.program(INPUT, after))


def test_reshapes_with_something_in_between_stay():
    def body(rw, x):
        y = rw.emit(op.permute_dims(rw.emit(op.reshape(x, (3, 4))), [1, 0]))
        return [rw.emit(op.reshape(y, (12,)))]

    check_unchanged(one_reshape, graph.program(INPUT, body))


def test_a_constant():
    value = graph.const(np.arange(12, dtype=np.float32).reshape(3, 4))

    def body(rw, x):
        return [rw.emit(op.add(x, rw.emit(op.reshape(value, (2, 6)))))]

    check_unchanged(one_reshape, graph.program(INPUT, body))
