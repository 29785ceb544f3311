"""What is done to every sum of a layer right behind it, as kernels take it in.

clip(conv2d(x, w) + b, low, high)    ->    sparse_rows(x, …, b)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Var, op_name
from tvmcompress.kernels.sparse import UNLIMITED, Limits


@dataclass(frozen=True)
class Finish:
    """A value for each output or none, and limits. `taken`: the operators that these stand for."""

    bias: np.ndarray | None = None
    limits: Limits = UNLIMITED
    taken: tuple[Var, ...] = ()


class Finishes:
    """Of the layers of a program. What else reads a layer's sums sees them as they are."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.definitions, self.readers = graph.definitions(mod), graph.consumers(mod)
        self.results = {var for result in graph.results(mod) for var in relax.analysis.free_vars(result)}

    def __call__(self, var: Var) -> Finish:
        found = Finish()
        while (reader := self.only_reader(found.taken[-1] if found.taken else var)) is not None:
            more = self.taken_in(found, self.definitions[reader], graph.shape(var)[-1])
            if more is None:
                break
            found = replace(more, taken=(*found.taken, reader))
        return found

    def only_reader(self, var: Var) -> Var | None:
        readers = self.readers.get(var, [])
        if len(readers) != 1 or var in self.results or readers[0] not in self.definitions:
            return None
        same = graph.has_static_shape(readers[0]) and graph.shape(readers[0]) == graph.shape(var)
        return readers[0] if same and graph.dtype(readers[0]) == graph.dtype(var) == "float32" else None

    def taken_in(self, found: Finish, expr: Expr, outputs: int) -> Finish | None:
        """With one operator more, where a kernel can do it after what it has to do already."""
        if found.limits != UNLIMITED:
            return None
        if op_name(expr) == "relax.nn.relu":
            return replace(found, limits=Limits(low=0.0))
        if op_name(expr) == "relax.clip":
            low, high = (float(graph.number(a)) for a in expr.args[1:])
            return replace(found, limits=Limits(low, high))
        if op_name(expr) == "relax.add" and found.bias is None:
            constants = [graph.value(a) for a in expr.args if graph.is_const(a)]
            if len(constants) == 1 and (
                constants[0].size == 1 or constants[0].size == outputs == constants[0].shape[-1]
            ):
                return replace(found, bias=np.broadcast_to(constants[0].reshape(-1), (outputs,)))
        return None
