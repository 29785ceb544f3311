"""How much work a program is: multiply-accumulates, layer by layer, and which of them are on integers.

A convolution or matrix product counts as integer when both its operands come from `dequantize` of 8-bit tensors, with
nothing but data movement between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import tvm
from tvm import relax

from tvmcompress.ir import graph

CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
TRANSPOSED = ("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose", "relax.nn.conv3d_transpose")
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, "relax.matmul")
MOVEMENT = (
    "relax.permute_dims",
    "relax.reshape",
    "relax.squeeze",
    "relax.expand_dims",
    "relax.flatten",
    "relax.strided_slice",
    "relax.broadcast_to",
    "relax.take",
    "relax.tile",
    "relax.flip",
    "relax.split",
    "relax.nn.max_pool2d",
    "relax.nn.pad",
)
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
    known, fixed = graph.definitions(mod), constants(mod)
    found = []
    for binding in graph.bindings(mod):
        call = binding.value
        if graph.op_name(call) in LAYERS:
            data, weight = (operand(a, known, fixed) for a in call.args[:2])
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


def operand(expr: relax.Expr, known: Mapping[relax.Var, relax.Expr], fixed: Set[relax.Var]) -> Operand:
    """Where an operand of a layer comes from, seen through data movement."""
    reshaped = False
    while True:
        if graph.is_const(expr):
            return Operand(True, False, reshaped)
        call = known.get(expr, expr)
        if isinstance(call, relax.TupleGetItem):
            call = known.get(call.tuple_value, call)
        name = graph.op_name(call)
        if name == "relax.dequantize":
            q, scale = call.args[:2]
            constant = graph.is_const(q) or q in fixed
            per_channel = math.prod(graph.shape(scale)) > 1
            return Operand(constant, graph.dtype(q) in BYTES, reshaped, per_channel)
        if name == "relax.concat":
            fields = [operand(f, known, fixed) for f in parts(call.args[0], known)]
            return Operand(all(f.constant for f in fields), all(f.quantized for f in fields), reshaped)
        if name in MOVEMENT:
            reshaped |= name == "relax.reshape"
            expr = call.args[0]
            continue
        return Operand(expr in fixed, False, reshaped)


def parts(fields: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> list[relax.Expr]:
    fields = known.get(fields, fields)
    return list(fields.fields) if isinstance(fields, relax.Tuple) else [fields]


def constants(mod: tvm.IRModule) -> set[relax.Var]:
    """The variables that are computed from constants only."""
    found: set[relax.Var] = set()
    for binding in graph.bindings(mod):
        if all(var in found for var in relax.analysis.free_vars(binding.value)):
            found.add(binding.var)
    return found
