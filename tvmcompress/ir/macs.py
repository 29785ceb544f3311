"""How much work a program is: multiply-accumulates, layer by layer, and which of them are on integers.

A convolution or matrix product counts as integer when both its operands come from `dequantize` of 8-bit tensors, with
nothing but data movement between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import relax

from tvmcompress.ir import graph

CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
TRANSPOSED = ("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose", "relax.nn.conv3d_transpose")
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, "relax.matmul")
MOVEMENT = tuple(
    f"relax.{name}"
    for name in (
        "permute_dims",
        "reshape",
        "squeeze",
        "expand_dims",
        "flatten",
        "strided_slice",
        "broadcast_to",
        "take",
    )
) + ("relax.nn.max_pool2d", "relax.nn.pad", "relax.tile", "relax.flip")
BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class LayerMacs:
    """One convolution or matrix product."""

    name: str
    op: str  # conv2d, matmul …
    macs: int
    integer: bool
    constant_weight: bool  # what the int8 recipe can quantize; a product of two activations is not


def macs(mod: tvm.IRModule) -> list[LayerMacs]:
    """Every convolution and matrix product of `main`, in order. A layer with an open shape counts 0."""
    known = graph.definitions(mod)
    found = []
    for binding in graph.bindings(mod):
        call = binding.value
        if graph.op_name(call) in LAYERS:
            data, weight = (operand(a, known) for a in call.args[:2])
            # Group-wise scales lie along the sum: such a weight is unpacked to floats.
            integer = data.quantized and weight.quantized and not (weight.reshaped and weight.per_channel)
            op = graph.op_name(call).rpartition(".")[2]
            found.append(LayerMacs(binding.var.name, op, count(call), integer, weight.constant))
    return found


def count(call: relax.Call) -> int:
    """Multiply-accumulates of one layer; padding counts as data, as in every published figure."""
    if not all(graph.has_static_shape(e) for e in (call, *call.args[:2])):
        return 0
    data, weight = (graph.shape(a) for a in call.args[:2])
    if graph.op_name(call) == "relax.matmul":
        return math.prod(graph.shape(call)) * data[-1]
    layout = str(call.attrs.kernel_layout)
    if graph.op_name(call) in CONVOLUTIONS:
        return math.prod(graph.shape(call)) * without(weight, layout, "O")
    return math.prod(data) * without(weight, layout, "I")


def without(shape: tuple[int, ...], layout: str, letter: str) -> int:
    """The product of all dimensions but one: for OIHW, what each output channel sums over."""
    return math.prod(d for d, name in zip(shape, layout) if name != letter)


@dataclass(frozen=True)
class Operand:
    constant: bool
    quantized: bool
    reshaped: bool = False
    per_channel: bool = False


def operand(expr: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> Operand:
    """Where an operand of a layer comes from, seen through data movement."""
    reshaped = False
    while True:
        if graph.is_const(expr):
            return Operand(True, False, reshaped)
        call = known.get(expr) if isinstance(expr, relax.Var) else expr
        if isinstance(call, relax.TupleGetItem):
            call = known.get(call.tuple_value)
        name = graph.op_name(call) if call is not None else ""
        if name == "relax.dequantize":
            q, scale = call.args[:2]
            constant = is_constant(q, known)
            per_channel = math.prod(graph.shape(scale)) > 1
            return Operand(constant, graph.dtype(q) in BYTES, reshaped, per_channel)
        if name == "relax.concat":
            fields = [operand(f, known) for f in parts(call.args[0], known)]
            return Operand(all(f.constant for f in fields), all(f.quantized for f in fields), reshaped)
        if name in MOVEMENT or name == "relax.split":
            reshaped |= name == "relax.reshape"
            expr = call.args[0]
            continue
        return Operand(call is not None and is_constant(expr, known), False, reshaped)


def parts(fields: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> list[relax.Expr]:
    fields = known.get(fields, fields)
    return list(fields.fields) if isinstance(fields, relax.Tuple) else [fields]


def is_constant(expr: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> bool:
    """Whether a value is computed from constants only."""
    if graph.is_const(expr):
        return True
    if isinstance(expr, relax.Var):
        return expr in known and is_constant(known[expr], known)
    if isinstance(expr, relax.TupleGetItem):
        return is_constant(expr.tuple_value, known)
    if isinstance(expr, relax.Tuple):
        return all(is_constant(f, known) for f in expr.fields)
    if isinstance(expr, relax.Call):
        return all(is_constant(a, known) for a in expr.args)
    return True  # shapes, numbers
