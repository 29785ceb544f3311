"""FoldConstants: what can be computed now is computed now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Op

from tvmcompress.ir import evaluate, graph
from tvmcompress.ir.ops import HASHED, LOOK_UP, UNPACK_INT4
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration

# Evaluating these would turn compressed weights into float32 again.
COMPRESSED = ("relax.dequantize", UNPACK_INT4, LOOK_UP, HASHED)
ELEMENT = {"float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """permute_dims(W) -> W', add(c, d) -> c', … for every expression of constants alone

    Never through the dequantization or widening of a compressed weight, and not where the result takes more than
    `growth` bytes more than what it is computed from (a constant broadcast to a large shape, say). The results are
    those of TVM's own kernels.
    """

    growth: int = option(1 << 16, "bytes that a result may be larger than its operands", low=0)

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        foldable = self.foldable(mod)
        if not foldable:
            return Outcome(mod)
        frontier = read_from_outside(mod, foldable)
        values = dict(zip(frontier, evaluate.evaluate(constant_program(mod, foldable, frontier), [])))

        def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
            return graph.const(values[var]) if var in values else None

        return Outcome(graph.rewrite(mod, visit))

    def foldable(self, mod: tvm.IRModule) -> set[relax.Var]:
        """Variables that are computed from constants alone and that may be folded."""
        found: set[relax.Var] = set()
        for var, expr in graph.definitions(mod).items():
            field = isinstance(expr, relax.TupleGetItem) and expr.tuple_value in found
            if field or (isinstance(expr, relax.Call) and self.is_foldable(expr, found)):
                found.add(var)
        return found

    def is_foldable(self, call: relax.Call, found: set[relax.Var]) -> bool:
        if not isinstance(call.op, Op) or not call.op.name.startswith("relax.") or call.op.name in COMPRESSED:
            return False
        if call.op.name.startswith(("relax.call_", "relax.random", "relax.assert", "relax.print", "relax.vm.")):
            return False
        tensors = operands(call)
        if tensors is None or not all(graph.is_const(a) or a in found for a in tensors):
            return False
        widened = call.op.name == "relax.astype" and str(call.args[0].ty.dtype) in ELEMENT
        if widened or not graph.has_static_shape(call):
            return False
        # TVM cannot store a constant without elements.
        return 0 < size(call.ty) <= sum(size(a.ty) for a in tensors) + self.growth


def operands(call: relax.Call) -> list[graph.Expr] | None:
    """The tensors a call reads; None when it reads something else that is not a plain value."""
    found: list[graph.Expr] = []
    for argument in call.args:
        fields = argument.fields if isinstance(argument, relax.Tuple) else [argument]
        for field in fields:
            if graph.is_const(field) or isinstance(field, relax.Var):
                if isinstance(field.ty, relax.ShapeType):
                    return None
                found.append(field)
    return found


def size(ty: Any) -> int:
    """Bytes of a tensor, or of all fields of a tuple."""
    if isinstance(ty, relax.TupleType):
        return sum(size(f) for f in ty.fields)
    width = ELEMENT.get(str(ty.dtype)) or np.dtype(str(ty.dtype)).itemsize
    return int(np.prod([int(d) for d in ty.shape], dtype=np.int64)) * width


def read_from_outside(mod: tvm.IRModule, foldable: set[relax.Var]) -> list[relax.Var]:
    """The foldable tensors that something not foldable reads, in order."""
    results = {r for r in graph.results(mod) if isinstance(r, relax.Var)}
    read = {
        v
        for user, expr in graph.definitions(mod).items()
        if user not in foldable
        for v in relax.analysis.free_vars(expr)
    }
    return [
        v
        for v in graph.definitions(mod)
        if v in foldable and (v in results or v in read) and isinstance(v.ty, relax.TensorType)
    ]


def constant_program(mod: tvm.IRModule, foldable: set[relax.Var], frontier: list[relax.Var]) -> tvm.IRModule:
    """A program without inputs that computes `frontier`."""

    def body(rewriter: graph.Rewriter) -> list[graph.Expr]:
        for var, expr in graph.definitions(mod).items():
            if var in foldable:
                rewriter.replacement[var] = rewriter.emit(rewriter.new(expr), var.name)
        return [rewriter.replacement[var] for var in frontier]

    return graph.program([], body)
