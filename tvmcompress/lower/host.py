"""This machine's own kernels, for work at compile time: calibration, golden outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm

from tvmcompress import cpu, linking
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import lower, machine
from tvmcompress.target import Target


def executor(mod: tvm.IRModule) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Compile `main` for this machine; the result takes and returns arrays in order."""
    host = Target.load("native")
    target = host.to_tvm()
    return machine(lower(mod, target, isa_of(target, host.l1d, host.l2)), linking.linker(host))


def runs_here(target: Target) -> bool:
    return target.kind == "cpu" and target.arch == cpu.architecture() and not cpu.missing(target.features_needed())
