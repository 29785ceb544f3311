"""Matrix products of few rows whose weights share 16 values: `kernels.few_rows` in place of weights unpacked at load.

matmul(x, reshape(look_up(packed, codebook), (k, n))) -> shared_matmul(x, packed again, codebook)

Like sparse kernels they are taken where that is estimated to be faster, or as `Keep` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmcompress.coding import parts
from tvmcompress.ir import constants, graph, ops
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels import few_rows
from tvmcompress.lower import compressed
from tvmcompress.lower.schedules import WORK
from tvmcompress.lower.sparse import Keep, shared, streamed


@dataclass(frozen=True)
class Shared:
    """`packed` weights (see `few_rows.pack`) of `columns` outputs, into `codebook` (1, 16); `cycles`: as estimated."""

    packed: np.ndarray
    columns: int
    codebook: np.ndarray
    cycles: float


def kept(
    rw: Rewriter, x: Expr, weight: Expr, isa: Isa, keep: Keep, name: str, several: bool
) -> tuple[Shared | None, dict]:
    """The weights of a product for the kernel that looks them up, None where they are unpacked; and a row for the
    report, empty where weights share no values. `several`: the package has builds for other targets too."""
    call = shared(weight, rw.definition)
    value = None if call is None else constants.known(weight, rw.definition)
    if call is None or value is None:
        return None, {}
    (*outer, k), n = graph.shape(x), value.shape[-1]
    rows = math.prod(outer)
    density = float(np.count_nonzero(value)) / max(value.size, 1)
    row = compressed.plain("shared", density, [graph.value(a) for a in call.args if graph.is_const(a)], keep.storage)
    if why := unfit(call, rows, k, n, isa, graph.dtype(x), several):
        return None, row | {"why": why}
    if keep.policy == "never":
        return None, row | {"why": "unpacking was asked for"}
    cycles = max(few_rows.cycles(rows, k, n) / isa.cores, streamed(k * n / 2, isa))
    dense = max(few_rows.dense_cycles(rows, k, n) / isa.cores, streamed(4 * k * n, isa))
    row |= {"estimate": cycles / dense}
    if name in keep.dense:
        return None, row | {"why": "measured: looking values up is slower"}
    if keep.policy == "faster" and cycles >= dense:
        return None, row | {"why": f"looking values up would take {cycles / dense:.2f} times as long"}
    book = np.sort(graph.value(call.args[1]).reshape(-1))
    packed = few_rows.pack(np.searchsorted(book, value).astype(np.uint8), rows)
    bytes_ = round(parts.expected(packed, keep.storage)) + book.nbytes
    row |= {"format": "16 values looked up", "kept": True, "bytes": bytes_, "why": ""}
    return Shared(packed, n, book.reshape(1, -1), cycles), row


def unfit(call: relax.Call, rows: int, k: int, n: int, isa: Isa, data: str, several: bool) -> str:
    """Why the kernel is not for such a product; nothing where it is."""
    if op_name(call) != ops.LOOK_UP or graph.shape(call.args[1]) != (1, 16):
        return "kernels look up 16 values of a layer, not more and not hashed ones"
    if data != "float32" or graph.dtype(call.args[1]) != "float32":
        return "kernels look up float32"
    if several:
        return "all builds of the package read the same weights"
    if not isa.permutes_floats:
        return "this target does not pick 16 floats out of 16"
    if not few_rows.offered(rows, n):
        return f"{rows} rows of {n}: kernels look values up for {few_rows.MOST_ROWS} rows at most, of many columns"
    return ""


def product(rw: Rewriter, x: Expr, found: Shared) -> Expr:
    """The product as the kernel computes it."""
    *outer, k = graph.shape(x)
    rows, blocks = math.prod(outer), len(found.packed)
    columns = blocks * few_rows.width(rows)
    work = ["few_rows", rows * k * found.columns, "float32", ""]
    kernel = rw.builder.add_func(few_rows.shared_matmul(rows, k, blocks).with_attr(WORK, work), "shared_matmul")
    x = rw.emit(relax.op.reshape(x, (rows, k)))
    operands = [x, graph.const(found.packed), graph.const(found.codebook)]
    y = relax.op.call_tir(kernel, operands, relax.TensorType((rows, columns), "float32"))
    if columns != found.columns:
        y = relax.op.strided_slice(rw.emit(y), [1], [0], [found.columns])
    return relax.op.reshape(rw.emit(y), (*outer, found.columns))
