"""Operators on single elements; they stay in whichever layout their operands are in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import Expr

from tvmcompress.frontend.tflite.context import TO_NCHW, Constant, Context
from tvmcompress.frontend.tflite.layers import activation
from tvmcompress.ir import graph

Formula = Callable[..., Expr]


def operands(ctx: Context) -> tuple[list[Expr], bool]:
    """All inputs in one layout: NCHW when one of them is, and none that is computed has another rank than 4."""
    places = range(len(ctx.operator.inputs))
    computed = [p for p in places if not ctx.is_const(p)]
    ranks = [ctx.rank(p) for p in places]
    nchw = any(ctx.is_nchw(p) for p in computed) and all(ctx.rank(p) in (0, 4) for p in computed) and max(ranks) == 4
    return [operand(ctx, p, nchw) for p in places], nchw


def operand(ctx: Context, place: int, nchw: bool) -> Expr:
    if not nchw or not ctx.is_const(place) or ctx.rank(place) in (0, 4):
        return ctx.input(place, nchw)
    constant = ctx.const(place)
    missing = 4 - constant.array.ndim
    array, q = constant.array.reshape((1,) * missing + constant.array.shape), constant.quantization
    if q is not None:
        q = type(q)(q.scale, q.zero, q.axis + missing)
    return ctx.weight(Constant(array, q), TO_NCHW)


def elementwise(formula: Formula, fused: bool = False) -> Callable[[Context], None]:
    def convert(ctx: Context) -> None:
        inputs, nchw = operands(ctx)
        out = ctx.emit(formula(*inputs))
        ctx.output(activation(ctx, out) if fused else out, nchw=nchw)

    return convert


def with_options(formula: Callable[..., Expr]) -> Callable[[Context], None]:
    """As `elementwise`, with the context in front of the operands."""

    def convert(ctx: Context) -> None:
        inputs, nchw = operands(ctx)
        ctx.output(ctx.emit(formula(ctx, *inputs)), nchw=nchw)

    return convert


def scalar(like: Expr, number: float) -> Expr:
    return graph.const(number, graph.dtype(like))


def hard_swish(x: Expr) -> Expr:
    """x * clip(x + 3, 0, 6) / 6."""
    return relax.op.divide(relax.op.multiply(x, relax.op.clip(relax.op.add(x, scalar(x, 3)), 0, 6)), scalar(x, 6))


def elu(x: Expr) -> Expr:
    """x where x > 0, else exp(x) - 1."""
    below = relax.op.subtract(relax.op.exp(relax.op.minimum(x, scalar(x, 0))), scalar(x, 1))
    return relax.op.add(relax.op.nn.relu(x), below)


def gelu(ctx: Context, x: Expr) -> Expr:
    return relax.op.nn.gelu_tanh(x) if ctx.operator.options.Approximate() else relax.op.nn.gelu(x)


def leaky_relu(ctx: Context, x: Expr) -> Expr:
    return relax.op.nn.leakyrelu(x, ctx.operator.options.Alpha())


def prelu(ctx: Context) -> None:
    """PRELU: alpha is (1, 1, C) nearly always; then it is nn.prelu, else relu(x) + alpha * min(x, 0)."""
    (x, alpha), nchw = operands(ctx)
    if ctx.is_const(1) and ctx.const(1).array.size == ctx.shape(0)[-1] == ctx.const(1).array.shape[-1]:
        constant = ctx.const(1)
        slope = graph.const(constant.floats().reshape(-1).astype(np.float32))
        out = relax.op.nn.prelu(x, slope, axis=1 if nchw else ctx.rank(0) - 1)
    else:
        out = relax.op.add(relax.op.nn.relu(x), relax.op.multiply(alpha, relax.op.minimum(x, scalar(x, 0))))
    ctx.output(ctx.emit(out), nchw=nchw)


def squared_difference(x: Expr, y: Expr) -> Expr:
    return relax.op.square(relax.op.subtract(x, y))


def add_n(*inputs: Expr) -> Expr:
    out = inputs[0]
    for more in inputs[1:]:
        out = relax.op.add(out, more)
    return out


def round_half_even(x: Expr) -> Expr:
    return relax.op.round(x)


def divide(x: Expr, y: Expr) -> Expr:
    """Integers are truncated towards zero."""
    if graph.dtype(x).startswith("float"):
        return relax.op.divide(x, y)
    quotient = relax.op.divide(relax.op.astype(x, "float64"), relax.op.astype(y, "float64"))
    return relax.op.astype(relax.op.trunc(quotient), graph.dtype(x))


def cast(ctx: Context) -> None:
    place_nchw = ctx.is_nchw(0)
    out = ctx.graph.tensors[ctx.operator.outputs[0]]
    x = ctx.input(0, place_nchw)
    if graph.dtype(x).startswith("float") and not out.dtype.startswith("float") and out.dtype != "bool":
        x = ctx.emit(relax.op.trunc(x))
    ctx.output(ctx.emit(relax.op.astype(x, out.dtype)), nchw=place_nchw)


def requantize(ctx: Context) -> None:
    """QUANTIZE, DEQUANTIZE: the real value, which `output` brings to the output's form."""
    if ctx.is_const(0) and not ctx.graph.tensors[ctx.operator.outputs[0]].quantization:
        ctx.constants[ctx.operator.outputs[0]] = ctx.const(0)  # a compact weight: the layer that reads it unpacks it
        return
    nchw = ctx.is_nchw(0)
    ctx.output(ctx.input(0, nchw), nchw=nchw)


def select(ctx: Context) -> None:
    """SELECT, SELECT_V2: where(condition, x, y); the old form takes a condition of rank 1 that chooses rows."""
    if ctx.operator.kind == "SELECT" and ctx.rank(0) == 1 and ctx.rank(1) > 1:
        condition = ctx.emit(relax.op.reshape(ctx.input(0), [-1] + [1] * (ctx.rank(1) - 1)))
        ctx.output(ctx.emit(relax.op.where(condition, ctx.input(1), ctx.input(2))))
        return
    (condition, x, y), nchw = operands(ctx)
    ctx.output(ctx.emit(relax.op.where(condition, x, y)), nchw=nchw)


op: Any = relax.op
CONVERTERS: dict[str, Callable[[Context], None]] = {
    **{kind: elementwise(f, fused=True) for kind, f in {"ADD": op.add, "SUB": op.subtract, "MUL": op.multiply}.items()},
    "DIV": elementwise(divide, fused=True),
    **{
        kind: elementwise(formula)
        for kind, formula in {
            "LOGISTIC": op.sigmoid,
            "TANH": op.tanh,
            "RELU": op.nn.relu,
            "RELU6": lambda x: op.clip(x, 0, 6),
            "RELU_N1_TO_1": lambda x: op.clip(x, -1, 1),
            "RELU_0_TO_1": lambda x: op.clip(x, 0, 1),
            "HARD_SWISH": hard_swish,
            "ELU": elu,
            "EXP": op.exp,
            "LOG": op.log,
            "SQRT": op.sqrt,
            "RSQRT": lambda x: op.divide(scalar(x, 1), op.sqrt(x)),
            "SQUARE": op.square,
            "ABS": op.abs,
            "NEG": op.negative,
            "FLOOR": op.floor,
            "CEIL": op.ceil,
            "ROUND": round_half_even,
            "SIN": op.sin,
            "COS": op.cos,
            "SIGN": op.sign,
            "POW": op.power,
            "MAXIMUM": op.maximum,
            "MINIMUM": op.minimum,
            "SQUARED_DIFFERENCE": squared_difference,
            "FLOOR_DIV": op.floor_divide,
            "FLOOR_MOD": op.floor_mod,
            "ADD_N": add_n,
            "EQUAL": op.equal,
            "NOT_EQUAL": op.not_equal,
            "GREATER": op.greater,
            "GREATER_EQUAL": op.greater_equal,
            "LESS": op.less,
            "LESS_EQUAL": op.less_equal,
            "LOGICAL_AND": op.logical_and,
            "LOGICAL_OR": op.logical_or,
            "LOGICAL_NOT": op.logical_not,
            "ZEROS_LIKE": op.zeros_like,
        }.items()
    },
    "GELU": with_options(gelu),
    "LEAKY_RELU": with_options(leaky_relu),
    "PRELU": prelu,
    "CAST": cast,
    "QUANTIZE": requantize,
    "DEQUANTIZE": requantize,
    "SELECT": select,
    "SELECT_V2": select,
}
