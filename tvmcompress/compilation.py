"""compile(model, target) -> Package: kernels for one target, linked, with weights and golden outputs beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tvm

from tvmcompress import cpu, golden, linking
from tvmcompress.errors import ModelError, TvmcompressError
from tvmcompress.ir import graph
from tvmcompress.ir.macs import macs
from tvmcompress.isa import isa_of
from tvmcompress.lower import host
from tvmcompress.lower.pipeline import Lowered, loaded, lower
from tvmcompress.model import Model, spec_json
from tvmcompress.package import Package
from tvmcompress.passes import FoldBatchNorm, FoldConstants
from tvmcompress.target import Target

Progress = Callable[[int, int | None, str], None]
STEPS = 5


def compile(
    model: Model, target: Target | str, *, progress: Progress | None = None, between: Callable | None = None
) -> Package:
    """Compile `model` for `target`.

    progress: called with (steps done, steps in all, what is being done). between: called with (step, module) after each
    step of the lowering. Raises MissingDependencyError when the target's linker is not installed, TargetError for an
    unknown target, ModelError for a model that TVM cannot compile.
    """
    target = target if isinstance(target, Target) else Target.load(target)
    tell = progress or (lambda _done, _total, _text: None)
    link = linking.linker(target)  # before the work: it may not be installed
    tell(0, STEPS, "simplifying the graph")
    module = simplified(model.module)
    tell(1, STEPS, "generating kernels")
    lowered = build(module, target, between)
    tell(2, STEPS, "linking")
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        library = Path(folder, "library.so")
        lowered.executable.export_library(str(library), fcompile=link, workspace_dir=folder)
        tell(3, STEPS, "computing golden outputs")
        inputs, outputs = golden_tensors(model, module, lowered, target, library)
        tell(4, STEPS, "writing the package")
        package = Package.build(
            library=library,
            weights=[(f"weight_{i}", partial(graph.as_numpy, t)) for i, t in enumerate(lowered.stored)],
            manifest=manifest(model, module, target, lowered),
            golden_inputs=inputs,
            golden_outputs=outputs,
        )
    tell(STEPS, STEPS, "done")
    return package


def simplified(module: tvm.IRModule) -> tvm.IRModule:
    """What holds for every target: batch norms folded, constants that compression did not make folded."""
    for step in (FoldBatchNorm(), FoldConstants()):
        module = step(module, None).module
    return module


def build(module: tvm.IRModule, target: Target, between: Callable | None = None) -> Lowered:
    """Lower for a target, TVM's errors translated."""
    try:
        if target.kind == "cuda":
            from tvmcompress.lower.cuda import lower_cuda

            return lower_cuda(module, target)
        tvm_target = target.to_tvm()
        return lower(module, tvm_target, isa_of(tvm_target, target.l1d, target.l2), between)
    except TvmcompressError:
        raise
    except Exception as error:  # the border where TVM's own errors, of any class, become ours
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = (lines[-1].strip() if lines else type(error).__name__)[:200]
        raise ModelError(f"this model cannot be compiled for {target.name}: {reason}") from error


def runs_here(target: Target) -> bool:
    return target.kind == "cpu" and target.arch == cpu.architecture() and not cpu.missing(target.features_needed())


def golden_tensors(
    model: Model, module: tvm.IRModule, lowered: Lowered, target: Target, library: Path
) -> tuple[dict, dict]:
    """Example inputs, and what this machine's kernels make of them; the target's own where they run here."""
    inputs = golden.example_inputs(model.inputs)
    arrays = [inputs[spec.name] for spec in model.inputs]
    run = loaded(lowered, library) if runs_here(target) else host.executor(module)
    results = run(arrays)
    return inputs, {spec.name: np.asarray(r) for spec, r in zip(model.outputs, results)}


def manifest(model: Model, module: tvm.IRModule, target: Target, lowered: Lowered) -> dict:
    """What `tvmcompress.manifest` requires of a compiler."""
    total = sum(row.macs for row in macs(module))
    integer = sum(row["macs"] for row in lowered.layers if row["integer"])
    return {
        "name": Path(model.source.name).stem,
        "target": target.describe(),
        "needs": {
            "arch": target.arch,
            "features": sorted(target.features_needed()),
            "gpu": target.cuda_arch or None,
        },
        "inputs": [spec_json(s) for s in model.inputs],
        "outputs": [spec_json(s) for s in model.outputs],
        "source": vars(model.source),
        "applied": list(model.applied),
        "notes": list(model.notes),
        "layers": lowered.layers,
        "macs": {"total": total, "integer": integer},
        "fallbacks": [{"program": name, "reason": why} for name, why in sorted(lowered.fallbacks.items())],
        "entry": {"prepare": lowered.prepares},
        **({"memory": vars(lowered.memory)} if lowered.memory else {}),
    }
