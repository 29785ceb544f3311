"""Where the weights of a program's layers are zero, as they are stored."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import constants, graph, ops
from tvmcompress.ir.macs import LAYERS
from tvmcompress.ir.sparsity import Sparsity, matrix_of, sparsity


def sparsities(mod: tvm.IRModule) -> dict[str, tuple[int, Sparsity]]:
    """From the name of each layer whose weight is stored in the program to the weight's elements and its sparsity.

    A quantized weight is zero where it is the zero point.
    """
    known = graph.definitions(mod)
    found = {}
    for binding in graph.bindings(mod):
        call = binding.value
        if graph.op_name(call) not in LAYERS:
            continue
        for place in (1, 0) if graph.op_name(call) == "relax.matmul" else (1,):
            alive = stored(call.args[place], known)
            if alive is not None and alive.size:
                found[binding.var.name] = alive.size, of_layer(call, place, alive)
                break
    return found


def densities(mod: tvm.IRModule, known_already: Container[str] = ()) -> dict[str, tuple[float, int, relax.Call, int]]:
    """From the name of each layer whose weight is stored in the program, but for those known already, to the share of
    the weight that is not zero, its elements, the call, and the operand that the weight is. Of layers that share a
    weight, as the steps of a recurrent one, the first.
    """
    known, seen = graph.definitions(mod), set[relax.Expr]()
    found: dict[str, tuple[float, int, relax.Call, int]] = {}
    for binding in graph.bindings(mod):
        call = binding.value
        if graph.op_name(call) not in LAYERS or binding.var.name in known_already:
            continue
        for place in (1, 0) if graph.op_name(call) == "relax.matmul" else (1,):
            alive = None if call.args[place] in seen else stored(call.args[place], known)
            if alive is not None and alive.size:
                seen.add(call.args[place])
                found[binding.var.name] = float(np.count_nonzero(alive)) / alive.size, alive.size, call, place
                break
    return found


def of_layer(call: relax.Call, place: int, alive: np.ndarray) -> Sparsity:
    channel, inner = axes(call, place, alive.ndim)
    if alive.ndim < 2:
        return sparsity(alive.reshape(1, -1))
    return sparsity(matrix_of(alive, channel, inner), alive.shape[inner])


def axes(call: relax.Call, place: int, rank: int) -> tuple[int, int]:
    """The axes of a weight that run over outputs and over inputs; `place`: which operand it is."""
    if graph.op_name(call) == "relax.matmul":
        return (rank - 1, rank - 2) if place else (rank - 2, rank - 1)
    layout = str(call.attrs.kernel_layout)
    return layout.index("O"), layout.index("I")


def stored(expr: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> np.ndarray | None:
    """True where a weight is not zero, in the shape in which its layer reads it; None when it is computed."""
    if graph.is_const(expr):
        return graph.value(expr) != 0
    call = known.get(expr, expr)
    name = graph.op_name(call)
    if name == "relax.dequantize":
        return quantized(call, known)
    if name not in ("relax.permute_dims", "relax.reshape", "relax.astype"):
        value = constants.known(expr, known.get)
        return None if value is None else value != 0
    inside = stored(call.args[0], known)
    if inside is None or name == "relax.astype":
        return inside
    if name == "relax.reshape":
        return inside.reshape(graph.shape(expr))
    order = call.attrs.axes
    return inside.transpose(None if order is None else [int(axis) for axis in order])


def quantized(call: relax.Call, known: Mapping[relax.Var, relax.Expr]) -> np.ndarray | None:
    """The same behind a dequantize."""
    integers = unpacked(call.args[0], known)
    if integers is None or not graph.is_const(call.args[2]):
        return None
    zero = graph.value(call.args[2]).astype(np.int64)
    if zero.size > 1:
        axis = int(call.attrs.axis) % integers.ndim
        zero = zero.reshape((1,) * axis + (-1,) + (1,) * (integers.ndim - 1 - axis))
    return integers != zero


def unpacked(expr: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> np.ndarray | None:
    """The integers behind an operand of dequantize; None when they are computed."""
    if graph.is_const(expr):
        return graph.value(expr)
    call = known.get(expr, expr)
    if graph.op_name(call) != ops.UNPACK_INT4 or not graph.is_const(call.args[0]):
        return None
    packed = graph.value(call.args[0])
    low, high = (packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4
    return np.stack([low, high], -1).reshape(packed.shape[0], -1)
