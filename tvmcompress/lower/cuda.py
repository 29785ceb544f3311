"""The road to a GPU: TVM's own schedules for every operator, in floats.

Quantized weights are stored as they are and dequantized once, when the package is loaded; activations are quantized and
dequantized where the program says so, for the same numbers as elsewhere. Integer kernels are not written for GPUs yet,
so no layer counts as integer in the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.backend.cuda import pipeline
from tvm.s_tir import dlight

from tvmcompress import cuda_code
from tvmcompress.errors import TvmcompressError
from tvmcompress.ir import ops
from tvmcompress.lower import cuda_compiler
from tvmcompress.lower.pipeline import Lowered
from tvmcompress.lower.weights import split
from tvmcompress.target import Target


def lower_cuda(mod: tvm.IRModule, target: Target) -> Lowered:
    """Compile a program for a GPU with its weights outside, as `pipeline.lower` does for a CPU."""
    parts = split(ops.expand(mod))
    executable = _build(parts.module, target)
    return Lowered(executable, parts.stored, parts.inputs, parts.prepares, fallbacks={}, layers=[], kernels=[])


def build_cuda(mod: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Compile a program (`ir.graph`) for a GPU: what `export_library` takes; `cuda_code.install_loader` before loading.

    Needs no GPU. Raises MissingDependencyError where there is no compiler of CUDA, before any work.
    """
    return _build(ops.expand(mod), target)


def _build(mod: tvm.IRModule, target: Target) -> relax.VMExecutable:
    compile_source = cuda_compiler.find(target.cuda_arch)
    with _compiled_when_stored(compile_source) as failures:
        try:
            return tvm.compile(scheduled(mod, target), target=target.to_tvm(), relax_pipeline=_machine_steps(target))
        except Exception:  # of any kind: TVM makes others of ours, with a page of its own frames
            if failures:
                raise failures[0] from None
            raise


def scheduled(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Every operator a tensor program whose loops are bound to threads."""
    steps = (
        # Sorting and sampling have GPU programs of their own, which legalization would not choose.
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        # No FoldConstant here: it would turn quantized weights into floats again.
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        # The first rule that takes a program schedules it; Fallback takes them all, so none is left without threads.
        dlight.ApplyDefaultSchedule(
            dlight.gpu.Matmul(),
            dlight.gpu.GEMV(),
            dlight.gpu.Reduction(),
            dlight.gpu.GeneralReduction(),
            dlight.gpu.Fallback(),
        ),
    )
    with target.to_tvm():
        for step in steps:
            mod = step(mod)
    return mod


def _machine_steps(target: Target) -> tvm.transform.Pass:
    gpu = target.to_tvm()
    return tvm.transform.Sequential(pipeline.dataflow_lower_passes(gpu) + pipeline.finalize_passes(gpu))


@contextmanager
def _compiled_when_stored(compile_source: cuda_compiler.CudaCompiler) -> Iterator[list[TvmcompressError]]:
    """TVM's hook for the time of the block; yields the errors of the compiler."""
    failures: list[TvmcompressError] = []

    def store(source: str, *_: object) -> str:
        try:
            return cuda_code.wrap(compile_source(source))
        except TvmcompressError as error:
            failures.append(error)
            raise

    hook = "tvm_callback_cuda_postproc"
    before = tvm_ffi.get_global_func(hook, allow_missing=True)
    tvm_ffi.register_global_func(hook, store, override=True)
    try:
        yield failures
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(hook)
        else:
            tvm_ffi.register_global_func(hook, before, override=True)
