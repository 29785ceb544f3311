"""What expressions of constants alone stand for: compressed weights as the values that kernels will see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmcompress.ir import graph, ops
from tvmcompress.spec import numpy_dtype

Definition = Callable[[graph.Expr], graph.Expr | None]


def known(expr: graph.Expr, definition: Definition) -> np.ndarray | None:
    """The value of a constant, or of what is unpacked, looked up, dequantized or moved about from constants; else None.

    `definition` leads from a variable to the call it stands for: `rewriter.definition`, or the `get` of
    `graph.definitions(mod)`. Nothing is kept: a large weight is computed anew with each call.
    """
    if graph.is_const(expr):
        return graph.value(expr)
    call = definition(expr)
    how = HANDLERS.get(graph.op_name(call)) if call is not None else None
    if call is None or how is None:
        return None
    operands = [known(a, definition) for a in call.args if graph.is_const(a) or isinstance(a, relax.Var)]
    return None if any(o is None for o in operands) else how(call, *operands)


def unpack_int4(_call: relax.Call, packed: np.ndarray) -> np.ndarray:
    return np.stack([(packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4], -1).reshape(len(packed), -1)


def look_up(_call: relax.Call, packed: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    return np.take_along_axis(codebook, ops.unpack_indices(packed, ops.INDEX_BITS[codebook.shape[1]]), 1)


def hashed(call: relax.Call, values: np.ndarray) -> np.ndarray:
    shape = [graph.static_int(d) for d in call.args[1].values]
    return values[ops.bucket(np.arange(np.prod(shape, dtype=np.int64)), len(values))].reshape(shape)


def dequantize(call: relax.Call, q: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    along = [1] * q.ndim
    along[int(call.attrs.axis) % q.ndim] = -1
    scale, zero = (v.reshape(along if v.size > 1 else ()) for v in (scale.astype(np.float32), zero.astype(np.float32)))
    return ((q.astype(np.float32) - zero) * scale).astype(numpy_dtype(str(call.attrs.out_dtype)))


def strided_slice(call: relax.Call, x: np.ndarray) -> np.ndarray:
    axes, begin, end, *steps = ([int(graph.number(v)) for v in argument.fields] for argument in call.args[1:])
    cut = [slice(None)] * x.ndim
    for axis, first, last, step in zip(axes, begin, end, steps[0] if steps else [1] * len(axes)):
        cut[axis] = slice(first, last, step)
    return x[tuple(cut)]


def permute_dims(call: relax.Call, x: np.ndarray) -> np.ndarray:
    return x.transpose(None if call.attrs.axes is None else [int(a) for a in call.attrs.axes])


def pad(call: relax.Call, x: np.ndarray) -> np.ndarray | None:
    if str(call.attrs.pad_mode) != "constant":
        return None
    width = np.reshape([int(w) for w in call.attrs.pad_width], (-1, 2))
    return np.pad(x, width, constant_values=float(call.attrs.pad_value))


HANDLERS: dict[str, Callable[..., np.ndarray | None]] = {
    ops.UNPACK_INT4: unpack_int4,
    ops.LOOK_UP: look_up,
    ops.HASHED: hashed,
    "relax.dequantize": dequantize,
    "relax.astype": lambda call, x: x.astype(numpy_dtype(str(call.attrs.dtype))),
    "relax.reshape": lambda call, x: x.reshape(graph.shape(call)),
    "relax.permute_dims": permute_dims,
    "relax.flip": lambda call, x: np.flip(x, int(call.attrs.axis)),
    "relax.nn.pad": pad,
    "relax.strided_slice": strided_slice,
}
