"""Element-wise operators whose stock converters are wrong for some dtype or sign."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import scalar
from tvmcompress.ir import graph

op = relax.op


def power(node: Node) -> graph.Expr:
    """The result has the base's dtype. Integers are raised by repeated products where the exponent is known."""
    x, y, kind = node.x(0), node.x(1), node.dtype(0)
    known = node.known(1)
    if known is not None and known.size == 1 and float(known.reshape(-1)[0]) == 2.0 and not known.shape:
        return op.multiply(x, x)
    if kind.startswith("float") and node.dtype(1) == kind:
        return op.power(x, y)
    wide = kind if kind.startswith("float") else "float64"
    base = x if kind == wide else node.emit(op.astype(x, wide), "base")
    exponent = y if node.dtype(1) == wide else node.emit(op.astype(y, wide), "exponent")
    result = node.emit(op.power(base, exponent), "power")
    if kind == wide:
        return result
    if node.dtype(1).startswith(("int", "uint")):  # exact again after rounding, up to 2**53
        result = node.emit(op.round(result), "rounded")
    return op.astype(result, kind)


def nonzero(node: Node) -> graph.Expr:
    """Input 1, integers, with 0 replaced by 1: a division by zero, even in a masked lane, would end the process."""
    y, known, kind = node.x(1), node.known(1), node.dtype(1)
    if known is not None and (known != 0).all():
        return y
    return node.emit(op.where(op.equal(y, scalar(0, kind)), scalar(1, kind), y), "divisor")


def divide(node: Node) -> graph.Expr:
    """Integers are divided towards zero."""
    if node.dtype(0).startswith(("int", "uint")):
        return op.divide(node.x(0), nonzero(node))
    return op.divide(node.x(0), node.x(1))


def hyperbolic(sign: float) -> Callable[[Node], graph.Expr]:
    """cosh and sinh by exponentials; LLVM has no intrinsic of theirs."""

    def convert(node: Node) -> graph.Expr:
        x, half = node.x(0), scalar(0.5, node.dtype(0))
        up, down = node.emit(op.exp(x), "exp"), node.emit(op.exp(op.negative(x)), "exp_negative")
        return op.multiply(op.add(up, down) if sign > 0 else op.subtract(up, down), half)

    return convert


def mod(node: Node) -> graph.Expr:
    """fmod=0 has the divisor's sign, also for floats, where infinities and signed zeros count."""
    kind = node.dtype(0)
    if not kind.startswith("float"):
        rest = op.mod if node.attr("fmod", 0) else op.floor_mod
        return rest(node.x(0), nonzero(node))
    if node.attr("fmod", 0):
        return NotImplemented
    x, y, zero = node.x(0), node.x(1), scalar(0.0, kind)
    rest = node.emit(op.mod(x, y), "remainder")
    differs = op.logical_xor(op.less(rest, zero), op.less(y, zero))
    wrong = node.emit(op.logical_and(op.not_equal(rest, zero), differs), "wrong")
    moved = node.emit(op.where(wrong, node.emit(op.add(rest, y), "moved"), rest), "signed")
    signed_zero = op.where(op.less(y, zero), scalar(-0.0, kind), zero)
    return op.where(op.equal(moved, zero), signed_zero, moved)


def bit_shift(node: Node) -> graph.Expr:
    """Shifts by the width or more give 0 (or the sign), as ONNX's reference does; in C they are undefined."""
    kind = node.dtype(0)
    x, y = node.x(0), node.x(1)
    bits, left = np.iinfo(kind).bits, node.attr("direction") == "LEFT"
    shift = op.left_shift if left else op.right_shift
    signed = kind.startswith("int")
    most = graph.const(np.array(bits - 1, kind))
    beyond = op.greater(y, most)
    if signed:
        beyond = op.logical_or(beyond, op.less(y, graph.const(np.array(0, kind))))
    beyond = node.emit(beyond, "beyond")
    amount = node.emit(op.where(beyond, most, y), "amount")
    result = node.emit(shift(x, amount), "shifted")
    empty = result if signed and not left else graph.const(np.array(0, kind))
    return op.where(beyond, empty, result)


def is_inf(node: Node) -> graph.Expr:
    x, kind = node.x(0), node.dtype(0)
    positive, negative = node.attr("detect_positive", 1), node.attr("detect_negative", 1)
    if positive and negative:
        return op.isinf(x)
    infinity = scalar(math.inf if positive else -math.inf, kind)
    return op.equal(x, infinity) if positive or negative else op.full_like(x, graph.const(np.array(False)), "bool")


def clip(node: Node) -> graph.Expr:
    """One operator where the bounds are known: passes and kernels recognise it. (TVM's takes care of NaN with four.)"""
    if not node.dtype(0).startswith("float"):
        return NotImplemented
    bounds = []
    for index, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        known = node.known(index) if node.has(index) else np.array(node.attr(name, default))
        if known is None or known.size != 1:
            return NotImplemented
        bounds.append(float(known.reshape(-1)[0]))
    low, high = bounds
    if low == 0 and high == math.inf:
        return op.nn.relu(node.x(0))
    return op.clip(node.x(0), low, high) if low <= high and np.isfinite(bounds).all() else NotImplemented


def eye_like(node: Node) -> np.ndarray:
    from onnx.helper import tensor_dtype_to_np_dtype

    from tvmcompress.spec import numpy_dtype

    kind = node.attr("dtype")
    dtype = tensor_dtype_to_np_dtype(kind) if kind else numpy_dtype(node.dtype(0))
    rows, columns = node.shape(0)
    return np.eye(rows, columns, node.attr("k", 0)).astype(dtype)


def trilu(node: Node) -> graph.Expr:
    """A mask from row and column numbers; the diagonal may be known at run time only."""
    dims = node.shape(0)
    upper = node.attr("upper", 1)
    distance = (np.arange(dims[-1])[None, :] - np.arange(dims[-2])[:, None]).astype("int64")
    known = node.known(1) if node.has(1) else np.array(0)
    if math.prod(dims) == 0:
        return node.x(0)
    zero = graph.const(np.zeros((), graph.value(scalar(0, node.dtype(0))).dtype))
    if known is not None:
        k = int(known.reshape(-1)[0])
        mask = graph.const(distance >= k if upper else distance <= k)
    else:
        k_at_run = node.emit(op.reshape(node.x(1), ()), "diagonal")
        compare = op.greater_equal if upper else op.less_equal
        mask = node.emit(compare(graph.const(distance), k_at_run), "mask")
    return op.where(mask, node.x(0), zero)


def mish(node: Node) -> graph.Expr:
    """x * tanh(softplus(x)), with a softplus that keeps its digits for large negative x."""
    x, kind = node.x(0), node.dtype(0)
    zero = scalar(0.0, kind)
    return op.multiply(x, op.tanh(node.emit(softplus_of(node, x, zero), "softplus")))


def softplus_of(node: Node, x: graph.Expr, zero: graph.Expr) -> graph.Expr:
    e = node.emit(op.exp(op.negative(op.abs(x))), "exp")
    one = scalar(1.0, graph.dtype(x))
    shifted = node.emit(op.add(one, e), "shifted")
    # log1p(e) = log(1 + e) * e / ((1 + e) - 1), which is exact where 1 + e rounds (Kahan).
    lost = node.emit(op.subtract(shifted, one), "kept")
    ratio = op.where(op.equal(lost, zero), one, op.divide(e, lost))
    log1p = op.where(op.equal(lost, zero), e, op.multiply(op.log(shifted), ratio))
    return op.add(op.maximum(x, zero), node.emit(log1p, "log1p"))


def one_by_one(combine: Callable, mean: bool = False) -> Callable[[Node], graph.Expr]:
    """Of any number of inputs, in pairs: stacked, as TVM has them, they would leave their layout."""

    def convert(node: Node) -> graph.Expr:
        result = node.x(0)
        count = len(node.proto.input)
        for index in range(1, count):
            result = node.emit(combine(result, node.x(index)), "partial")
        return op.multiply(result, scalar(1 / count, node.dtype(0))) if mean else result

    return convert


TABLE = {
    "Sum": one_by_one(op.add),
    "Mean": one_by_one(op.add, True),
    "Max": one_by_one(op.maximum),
    "Min": one_by_one(op.minimum),
    "Clip": clip,
    "Div": divide,
    "Cosh": hyperbolic(1.0),
    "Sinh": hyperbolic(-1.0),
    "Pow": power,
    "Mod": mod,
    "BitShift": bit_shift,
    "IsInf": is_inf,
    "EyeLike": eye_like,
    "Trilu": trilu,
    "Mish": mish,
}
