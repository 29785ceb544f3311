"""What the tests of lowering and instruction sets share: programs, builds for a named target, assembly, IR pairs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmcompress import cpu
from tvmcompress.compilation import runs_here
from tvmcompress.ir import graph, ops
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import Lowered, lower
from tvmcompress.target import Target


def build(mod: tvm.IRModule, name: str, **options: Any) -> Lowered:
    target = Target.load(name)
    machine = target.to_tvm()
    return lower(mod, machine, isa_of(machine, target.l1d, target.l2), **options)


def need(name: str) -> None:
    """Skip the test unless this machine runs code for the target."""
    target = Target.load(name)
    if not runs_here(target):
        pytest.skip(f"this CPU ({cpu.architecture()}) does not run {name}: {cpu.missing(target.features_needed())}")


def assembly(lowered: Lowered) -> str:
    unbuilt = lowered.origin
    return "".join(unbuilt.shared.in_llvm(func).inspect_source("asm") for func in unbuilt.programs.values())


def basic_blocks(text: str) -> list[str]:
    """Assembly cut at its labels, those of debug information (.Ltmp) aside."""
    return re.split(r"^(?!\.Ltmp)[.\w$]+:", text, flags=re.MULTILINE)


def plain(mod: tvm.IRModule) -> tvm.IRModule:
    """The program in the form that every step leaves: dead bindings gone, tuples inlined."""
    return graph.rewrite(mod, lambda *_: None)


def check_unchanged(step: Callable[[tvm.IRModule], tvm.IRModule], mod: tvm.IRModule) -> None:
    check_pair(step, mod, mod)


def check_pair(step: Callable[[tvm.IRModule], tvm.IRModule], before: tvm.IRModule, expected: tvm.IRModule) -> None:
    """step(before) is `expected`; `before` is still what it was; the result is well formed."""
    text = before.script(show_meta=True)
    after = step(before)
    relax.analysis.well_formed(after)  # raises when it is not
    tvm.ir.assert_structural_equal(after, plain(expected))
    assert before.script(show_meta=True) == text


def op_names(mod: tvm.IRModule) -> list[str]:
    """The operators of a program in order; `call_tir:name` for tensor programs, constants not counted."""
    names = []
    for binding in graph.bindings(mod):
        value, name = binding.value, graph.op_name(binding.value)
        if name == "relax.call_tir":
            name = "call_tir:" + value.args[0].name_hint.rstrip("0123456789")
        if name:
            names.append(name.removeprefix("relax."))
    return names


def dequantized(rw, q, scale: float = 0.1, zero: int = 3):
    return rw.emit(ops.dequantize(q, scale, zero))


def quantized(rw, x, scale: float = 0.1, zero: int = 3, dtype: str = "uint8"):
    return rw.emit(ops.quantize(x, scale, zero, dtype))


def weights(rw, values: np.ndarray, axis: int = 0, scales: np.ndarray | float = 0.01):
    """Symmetric weights with one scale a channel, dequantized."""
    scales = np.broadcast_to(np.asarray(scales, np.float32), (values.shape[axis],)).copy()
    return rw.emit(
        ops.dequantize(graph.const(values), scales, np.zeros(len(scales), values.dtype), axis=axis % values.ndim)
    )


def random_bytes(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Full range, and both ends for certain."""
    info = np.iinfo(dtype)
    values = np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)
    values.flat[0], values.flat[-1] = info.min, info.max
    return values
