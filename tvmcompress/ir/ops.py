"""Operators that Relax lacks, registered with Relax; and shorthand for the quantized form.

unpack_int4(packed: uint8 (rows, n/2)) -> int8 (rows, n)

Two signed 4-bit values a byte, the even column in the low half: the storage of 4-bit weights.

look_up(packed: uint8 (books, m), codebook (books, 2^bits)) -> (books, m * 8 / bits), of the codebook's dtype

    codebook[r, i]: row r of `packed` holds indices i of 1, 2, 4 or 8 bits, the first of a byte in its lowest bits. The
    storage of weights that share few values.

hashed(values (n,), shape) -> shape, of the values' dtype

    values[bucket(position, n)], the position being that in a row-major array: values shared without any index.

local_response_norm(x (…, c), [size, alpha, beta, bias]) -> (…, c)

    x / (bias + alpha / size * sum of x^2 over `size` neighbours along the last axis)^beta

Of an even number of neighbours one more lies behind than before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax, te
from tvm.ir import Op, register_op_attr
from tvm.ir import _ffi_api as ir_api

from tvmcompress.ir import graph

UNPACK_INT4 = "tvmcompress.unpack_int4"
LOOK_UP = "tvmcompress.look_up"
HASHED = "tvmcompress.hashed"
LOCAL_RESPONSE_NORM = "tvmcompress.local_response_norm"
INDEX_BITS = {2: 1, 4: 2, 16: 4, 256: 8}  # by the entries of a codebook


def _unpack_int4_type(call, _context):
    rows, half = call.args[0].ty.shape
    return relax.TensorType([rows, half * 2], "int8")


def _look_up_type(call, _context):
    packed, codebook = call.args
    books, size = packed.ty.shape
    return relax.TensorType([books, size * (8 // INDEX_BITS[int(codebook.ty.shape[1])])], codebook.ty.dtype)


def _hashed_type(call, _context):
    return relax.TensorType(list(call.args[1].values), call.args[0].ty.dtype)


def _register(name: str, says: str, infer_type: Callable) -> None:
    if name not in Op.list_op_names():
        ir_api.RegisterOp(name, says)
        register_op_attr(name, "FInferType", infer_type)
        register_op_attr(name, "FPurity", True)
        register_op_attr(name, "TScriptPrinterName", name)


_register(UNPACK_INT4, "Two signed 4-bit values a byte, the even column in the low half.", _unpack_int4_type)
_register(LOOK_UP, "Entries of a codebook by packed indices.", _look_up_type)
_register(HASHED, "Values by a hash of the position.", _hashed_type)
_register(LOCAL_RESPONSE_NORM, "Division by a power of the neighbouring channels.", lambda call, _: call.args[0].ty)


def unpack_int4(packed: graph.Expr) -> graph.Expr:
    return relax.Call(Op.get(UNPACK_INT4), [packed])


def pack_int4(values: np.ndarray) -> np.ndarray:
    """int8 (rows, n) in -8 … 7, n even, to uint8 (rows, n/2)."""
    low, high = values[:, 0::2].astype(np.uint8) & 15, values[:, 1::2].astype(np.uint8) & 15
    return low | (high << 4)


def te_unpack_int4(packed: te.Tensor) -> te.Tensor:
    rows, half = packed.shape

    def element(r, c):
        shifted = tvm.tirx.Cast("int32", packed[r, c // 2]) >> (4 * (c % 2))
        return tvm.tirx.Cast("int8", ((shifted & 15) ^ 8) - 8)

    return te.compute((rows, half * 2), element, name="unpack_int4")


def look_up(packed: graph.Expr, codebook: graph.Expr) -> graph.Expr:
    return relax.Call(Op.get(LOOK_UP), [packed, codebook])


def pack_indices(indices: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (books, n) below 2^bits, to uint8 (books, n * bits / 8); zeros fill the last byte."""
    books, n = indices.shape
    per = 8 // bits
    padded = np.pad(indices.astype(np.uint8), ((0, 0), (0, -n % per))).reshape(books, -1, per)
    return np.bitwise_or.reduce(padded << (np.arange(per) * bits).astype(np.uint8), axis=2)


def unpack_indices(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack_indices`, with what fills the last byte."""
    shifts = np.arange(0, 8, bits).astype(np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8(2**bits - 1)).reshape(len(packed), -1)


def te_look_up(packed: te.Tensor, codebook: te.Tensor) -> te.Tensor:
    books, size = packed.shape
    bits = INDEX_BITS[int(codebook.shape[1])]
    per = 8 // bits

    def element(r, i):
        byte = tvm.tirx.Cast("int32", packed[r, i // per])
        return codebook[r, (byte >> (bits * (i % per))) & (2**bits - 1)]

    return te.compute((books, size * per), element, name="shared")


def hashed(values: graph.Expr, shape: Sequence[int]) -> graph.Expr:
    return relax.Call(Op.get(HASHED), [values, relax.ShapeExpr(list(shape))])


def bucket(position, buckets: int, number: Callable = int):
    """Which of `buckets` values a position shares: an int64 array in NumPy, an expression in a tensor program.

    Two rounds of multiplication and shift mix 32 bits; no product exceeds 63. `number` makes the constants: TVM takes
    a Python integer of 32 bits for a negative one.
    """
    mask, factor = number(0xFFFFFFFF), number(0x45D9F3B)
    h = position & mask
    for _ in range(2):
        h = ((h ^ (h >> number(16))) * factor) & mask
    return ((h ^ (h >> number(16))) * number(buckets)) >> number(32)


def te_hashed(values: te.Tensor, shape: Sequence[int]) -> te.Tensor:
    wide = lambda number: tvm.tirx.const(number, "int64")  # noqa: E731

    def element(*i):
        position = wide(0)
        for axis, size in zip(i, shape):
            position = position * wide(size) + axis.astype("int64")
        return values[bucket(position, int(values.shape[0]), wide).astype("int32")]

    return te.compute(tuple(shape), element, name="shared")


def local_response_norm(x: graph.Expr, size: int, alpha: float, beta: float, bias: float) -> graph.Expr:
    return relax.Call(Op.get(LOCAL_RESPONSE_NORM), [x, graph.const(np.array([size, alpha, beta, bias]), "float32")])


def te_local_response_norm(x: te.Tensor, size: int, alpha: float, beta: float, bias: float) -> te.Tensor:
    channels, before = x.shape[-1], (size - 1) // 2
    real = lambda value: tvm.tirx.const(value, "float32")  # noqa: E731

    def element(*i):
        *head, c = i
        total = real(0)
        for k in (c + (j - before) for j in range(size)):
            value = x[(*head, k)].astype("float32")
            total = total + tvm.tirx.if_then_else(tvm.tirx.all(k >= 0, k < channels), value * value, real(0))
        power = tvm.tirx.power(real(bias) + real(alpha / size) * total, real(beta))
        return (x[i].astype("float32") / power).astype(x.dtype)

    return te.compute(x.shape, element, name="local_response_norm")


def expand(mod: tvm.IRModule) -> tvm.IRModule:
    """The program with the operators of this file turned into tensor programs, so that TVM's passes accept it."""

    def visit(rewriter, var, expr):
        if graph.op_name(expr) == UNPACK_INT4:
            return rewriter.builder.call_te(te_unpack_int4, expr.args[0])
        if graph.op_name(expr) == LOOK_UP:
            return rewriter.builder.call_te(te_look_up, *expr.args)
        if graph.op_name(expr) == HASHED:
            shape = [graph.static_int(d) for d in expr.args[1].values]
            return rewriter.builder.call_te(te_hashed, expr.args[0], shape)
        if graph.op_name(expr) == LOCAL_RESPONSE_NORM:
            size, *numbers = (float(v) for v in graph.value(expr.args[1]))
            return rewriter.builder.call_te(te_local_response_norm, expr.args[0], int(size), *numbers)
        return None

    return graph.rewrite(mod, visit)


def quantize(x: graph.Expr, scale: graph.Value, zero: graph.Value, dtype: str, axis: int = -1) -> graph.Expr:
    """clip(round_half_even(x / scale) + zero), `scale` and `zero` scalars or vectors along `axis`."""
    return relax.op.quantize(x, graph.const(scale, "float32"), graph.const(zero, dtype), axis, dtype)


def dequantize(q: graph.Expr, scale: graph.Value, zero: graph.Value, axis: int = -1) -> graph.Expr:
    """(q - zero) * scale in float32, `scale` and `zero` scalars or vectors along `axis`."""
    return relax.op.dequantize(q, graph.const(scale, "float32"), graph.const(zero, graph.dtype(q)), axis, "float32")
