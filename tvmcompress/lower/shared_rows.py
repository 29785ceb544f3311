"""Matrix products of few rows whose weights share 16 values: `kernels.few_rows` in place of weights unpacked at load.

matmul(x, reshape(look_up(packed, codebook), (k, n))) -> shared_matmul(x, packed again, codebook)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmcompress.ir import graph, ops
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import few_rows
from tvmcompress.lower.schedules import WORK


@dataclass(frozen=True)
class Shared:
    """`indices` (k, n), below 16, into `codebook` (1, 16)."""

    indices: np.ndarray
    codebook: Expr


def read(rw: Rewriter, weight: Expr) -> Shared | None:
    """What a weight is looked up from, when it is one codebook of 16 floats; else None."""
    call, shape = rw.definition(weight), graph.shape(weight)
    while op_name(call) == "relax.reshape" or cuts_the_end(call):
        call = rw.definition(call.args[0])
    if op_name(call) != ops.LOOK_UP or not all(graph.is_const(a) for a in call.args):
        return None
    if graph.shape(call.args[1]) != (1, 16) or graph.dtype(call.args[1]) != "float32":
        return None
    indices = ops.unpack_indices(graph.value(call.args[0]), 4)
    return Shared(indices[0, : math.prod(shape)].reshape(shape), call.args[1])


def cuts_the_end(call: Expr | None) -> bool:
    """Off each row, as what fills the last byte is."""
    if call is None or op_name(call) != "relax.strided_slice" or len(call.args) != 4:
        return False
    return [int(graph.number(v)) for argument in call.args[1:3] for v in argument.fields] == [1, 0]


def product(rw: Rewriter, x: Expr, weight: Expr, isa: Isa) -> Expr | None:
    """The product as the kernel computes it, where it is the faster way: weights that no cache holds."""
    (*outer, k), n = graph.shape(x), graph.shape(weight)[-1]
    rows = math.prod(outer)
    if not few_rows.offered(rows, k, n, isa) or graph.dtype(x) != "float32":
        return None
    found = read(rw, weight)
    if found is None:
        return None
    packed = few_rows.pack(found.indices, rows)
    columns = len(packed) * few_rows.width(rows)
    kernel = few_rows.shared_matmul(rows, k, len(packed)).with_attr(WORK, ["few_rows", rows * k * n, "float32", ""])
    kernel = rw.builder.add_func(kernel, "shared_matmul")
    x = rw.emit(relax.op.reshape(x, (rows, k)))
    y = relax.op.call_tir(
        kernel, [x, graph.const(packed), found.codebook], relax.TensorType((rows, columns), "float32")
    )
    if columns != n:
        y = relax.op.strided_slice(rw.emit(y), [1], [0], [n])
    return relax.op.reshape(rw.emit(y), (*outer, n))
