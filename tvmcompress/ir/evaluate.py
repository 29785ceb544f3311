"""Running a program with TVM's stock pipeline: slow, no schedules, but it takes every Relax operator.

Serves tests, and the evaluation of small pieces at compile time. What users run goes through `lower`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import ops


def executor(mod: tvm.IRModule) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Compile `main` for this machine with TVM's defaults; the result takes and returns arrays in order."""
    built = tvm.compile(ops.expand(mod), target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(built, tvm.cpu())

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = machine["main"](*[tvm.runtime.tensor(np.asarray(a, order="C")) for a in inputs])
        return [o.numpy() for o in out]

    return run


def evaluate(mod: tvm.IRModule, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return executor(mod)(inputs)
