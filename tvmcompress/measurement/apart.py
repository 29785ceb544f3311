"""The kernels of a program as a library of their own: for their assembly, and to time them one by one on a board.

A board runs a program in one call, and only this machine can look into it. Kernels that stand alone can be called one
by one from here, and are timed by the board's own clock.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.isa import BF16_BITS, isa_of
from tvmcompress.lower import registers
from tvmcompress.lower.pipeline import config
from tvmcompress.measurement import instructions
from tvmcompress.spec import numpy_dtype
from tvmcompress.target import Target

STEP = "arena"  # the step of the lowering after which calls are final: what is in place, what is no call at all


@dataclass
class Watch:
    """What `compile(between=…)` takes: keeps the module of each build after that step."""

    modules: list[tvm.IRModule] = field(default_factory=list)

    def __call__(self, step: str, module: tvm.IRModule) -> None:
        if step == STEP:
            self.modules.append(module)


@dataclass(frozen=True)
class Call:
    """A kernel of a run: how often it is called, and shapes and dtypes of its arguments, the last its result."""

    name: str
    calls: int
    arguments: tuple[tuple[tuple[int, ...], str], ...]

    def arrays(self, seed: int = 0) -> list[np.ndarray]:
        """Arguments of no meaning, floats around a half: nothing overflows, and nothing is denormal."""
        random = np.random.default_rng(seed)
        return [operand(random, shape, dtype) for shape, dtype in self.arguments]

    @property
    def bytes(self) -> int:
        return sum(int(np.prod(shape)) * numpy_dtype(dtype).itemsize for shape, dtype in self.arguments)


def operand(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == BF16_BITS:  # bfloat16, or 16-bit integers that take them as well as any
        return random.integers(0x3F00, 0x3F80, shape).astype(dtype)
    kind = numpy_dtype(dtype)
    if kind.kind in "iu":
        return random.integers(0, 100, shape).astype(kind)
    if kind.kind == "b":
        return random.integers(0, 2, shape).astype(kind)
    return random.uniform(0.25, 1, shape).astype(np.float32).astype(kind)


class Kernels:
    """Those that a run of a lowered program calls, in the order of their first calls."""

    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        self.target = target
        self.calls = calls(module)
        functions = {call.name: module[call.name].with_attr("global_symbol", call.name) for call in self.calls}
        machine = target.to_tvm()
        isa = isa_of(machine, target.l1d, target.l2)
        with machine, tvm.transform.PassContext(opt_level=3, config=config(isa)):
            self._built = tvm.compile(tvm.IRModule(functions), target=machine, tir_pipeline=registers.PIPELINE)

    def mix(self) -> dict[str, dict[str, dict[str, int]]]:
        """Instructions of each kernel; see `instructions`."""
        assembly = self._built.mod.inspect_source("asm")
        return instructions.mix(assembly, self.target.arch, [call.name for call in self.calls])

    def library(self, folder: Path) -> Path:
        """The kernels linked for their target. Raises MissingDependencyError where there is no linker."""
        with tempfile.TemporaryDirectory(prefix="tvmcompress-", dir=folder) as work:
            path = folder / f"{Path(work).name}.so"  # a name of its own: see Package.library
            self._built.export_library(str(path), fcompile=linking.linker(self.target), workspace_dir=work)
        return path


def calls(module: tvm.IRModule) -> list[Call]:
    """The tensor programs that `main` calls, of static shapes."""
    found: dict[str, Call] = {}
    for binding in graph.bindings(module):
        call = binding.value
        if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.GlobalVar):
            continue
        if not isinstance(module[call.op], PrimFunc) or not all(map(is_tensor, call.args)):
            continue
        name = call.op.name_hint
        count = found[name].calls + 1 if name in found else 1
        found[name] = Call(name, count, tuple((graph.shape(a), graph.dtype(a)) for a in call.args))
    return list(found.values())


def is_tensor(value: relax.Expr) -> bool:
    return isinstance(value.ty, relax.TensorType) and graph.has_static_shape(value)
