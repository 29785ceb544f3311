"""Element-wise functions of one 8-bit tensor, as tables of 256 entries.

A tree of operators between a quantize and one dequantize, whose other operands are single constants, takes only 256
values: they are worked out here, in float32 like the program would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, op_name
from tvmcompress.lower.quantized_form import LIMITS, byte

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


FUNCTIONS: dict[str, Callable] = {
    "relax.sigmoid": _sigmoid,
    "relax.tanh": np.tanh,
    "relax.exp": np.exp,
    "relax.erf": _erf,
    "relax.sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "relax.abs": np.abs,
    "relax.negative": np.negative,
    "relax.nn.relu": lambda x: np.maximum(x, 0),
    "relax.nn.silu": lambda x: x * _sigmoid(x),
    "relax.nn.gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "relax.nn.gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relax.square": np.square,
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
}
# A table costs a load an element; these alone are cheaper computed.
CHEAP = {
    "relax.nn.relu",
    "relax.add",
    "relax.subtract",
    "relax.maximum",
    "relax.minimum",
    "relax.abs",
    "relax.negative",
}


def table(rw: Rewriter, x: Expr, s: np.float32, z: int, dtype: str) -> tuple[Expr, np.ndarray] | None:
    """(q, table) such that quantizing x by s and z is table[q]; None when x is not a function of one 8-bit tensor."""
    leaves: dict[Expr, Any] = {}  # Quantized, by the expression that dequantizes it
    names: set[str] = set()
    if not _collect(rw, x, leaves, names, 0) or len({leaf.q for leaf in leaves.values()}) != 1:
        return None
    if not names or names <= CHEAP:
        return None
    leaf = next(iter(leaves.values()))
    if any(other.scale != leaf.scale or other.zero != leaf.zero for other in leaves.values()):
        return None
    if graph.shape(leaf.q) != graph.shape(x):
        return None
    low, high = LIMITS[graph.dtype(leaf.q)]
    values = (np.arange(low, high + 1) - int(leaf.zero)).astype(np.float32) * np.float32(leaf.scale)
    with np.errstate(all="ignore"):
        result = np.nan_to_num(_evaluate(rw, x, leaves, values).astype(np.float32), posinf=3e38, neginf=-3e38)
        steps = np.rint(np.broadcast_to(result, values.shape) / s) + z
    return leaf.q, np.clip(steps, *LIMITS[dtype]).astype(dtype)


def _collect(rw: Rewriter, x: Expr, leaves: dict, names: set[str], depth: int) -> bool:
    if graph.is_const(x):
        return graph.value(x).size == 1
    leaf = byte(rw, x)
    if leaf is not None:
        leaves[x] = leaf
        return True
    call = rw.definition(x)
    name = op_name(call) if call is not None else ""
    if depth > 16:
        return False
    if name in ("relax.clip", "relax.nn.leakyrelu"):
        names.add(name)
        return _collect(rw, call.args[0], leaves, names, depth + 1)
    if name not in FUNCTIONS:
        return False
    names.add(name)
    return all(_collect(rw, a, leaves, names, depth + 1) for a in call.args)


def _evaluate(rw: Rewriter, x: Expr, leaves: dict, values: np.ndarray) -> np.ndarray:
    if x in leaves:
        return values
    if graph.is_const(x):
        return graph.value(x).reshape(())
    call = rw.definition(x)
    name = op_name(call)
    if name == "relax.clip":
        return np.clip(
            _evaluate(rw, call.args[0], leaves, values), graph.number(call.args[1]), graph.number(call.args[2])
        )
    if name == "relax.nn.leakyrelu":
        inner = _evaluate(rw, call.args[0], leaves, values)
        return np.where(inner > 0, inner, np.float32(call.attrs.alpha) * inner)
    assert isinstance(call, relax.Call)
    return np.asarray(FUNCTIONS[name](*[_evaluate(rw, a, leaves, values) for a in call.args])).astype(np.float32)
