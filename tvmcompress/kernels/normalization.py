"""Softmax and layer normalisation over the last axis, row by row, in float32.

    softmax     y = exp(x - max) / sum exp(x - max)
    layer norm  y = (x - mean) / sqrt(variance + epsilon) * gain + shift, the variance in a second pass over the row

TVM's own layer norm sums x and x^2 together, which loses digits and does not vectorise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx

LANES = 16  # rows are reduced in whole vectors of the widest unit, what is left over by itself


def reduce_rows(rows: Sequence[int], n: int, value: Callable, kind: str, name: str) -> te.Tensor:
    """The sum or maximum over k < n of value(*row, k); `value` is evaluated where it stands."""
    reducer, combine = (te.sum, lambda a, b: a + b) if kind == "sum" else (te.max, te.max)
    whole = n // LANES * LANES

    def part(start: int, size: int, suffix: str) -> te.Tensor:
        k = te.reduce_axis((0, size), "k")
        return te.compute(rows, lambda *i: reducer(value(*i, k + start), axis=[k]), name=name + suffix)

    if whole in (0, n) or n < 2 * LANES:
        return part(0, n, "")
    main, rest = part(0, whole, "_main"), part(whole, n - whole, "_rest")
    return te.compute(rows, lambda *i: combine(main[i], rest[i]), name=name)


def softmax(x: te.Tensor) -> te.Tensor:
    """x (…, n): the same shape."""
    *rows, n = (int(d) for d in x.shape)
    top = reduce_rows(rows, n, lambda *i: x[i], "max", "softmax_max")
    power = te.compute((*rows, n), lambda *i: te.exp(x[i] - top[i[:-1]]), name="softmax_exp")
    total = reduce_rows(rows, n, lambda *i: power[i], "sum", "softmax_sum")
    inverse = te.compute(rows, lambda *i: tirx.const(1.0, "float32") / total[i], name="softmax_inverse")
    return te.compute((*rows, n), lambda *i: power[i] * inverse[i[:-1]], name="softmax")


def layer_norm(x: te.Tensor, gain: te.Tensor, shift: te.Tensor, epsilon: float) -> te.Tensor:
    """x (…, n), gain and shift (n,)."""
    *rows, n = (int(d) for d in x.shape)
    share = tirx.const(1.0 / n, "float32")
    total = reduce_rows(rows, n, lambda *i: x[i], "sum", "norm_sum")

    def distance(*i):
        return x[i] - total[i[:-1]] * share

    square = reduce_rows(rows, n, lambda *i: distance(*i) * distance(*i), "sum", "norm_square")

    def inverse_of(*i):
        return tirx.const(1.0, "float32") / tirx.sqrt(square[i] * share + tirx.const(epsilon, "float32"))

    inverse = te.compute(rows, inverse_of, name="norm_inverse")
    return te.compute((*rows, n), lambda *i: distance(*i) * inverse[i[:-1]] * gain[i[-1]] + shift[i[-1]], name="norm")
