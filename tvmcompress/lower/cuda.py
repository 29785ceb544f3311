"""The road to a GPU: TVM's own schedules for every operator, in floats.

Quantized tensors stay quantized in memory and are dequantized inside the kernels that read them; integer kernels are
not written for GPUs yet, and the report says so.
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
from tvmcompress.target import Target


def build_cuda(mod: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Compile a program (`ir.graph`) for a GPU: what `export_library` takes; `cuda_code.install_loader` before loading.

    Needs no GPU. Raises MissingDependencyError where there is no compiler of CUDA, before any work.
    """
    compile_source = cuda_compiler.find(target.cuda_arch)
    with _compiled_when_stored(compile_source) as failures:
        try:
            mod = scheduled(ops.expand(mod), target)
            return tvm.compile(mod, target=target.to_tvm(), relax_pipeline=_machine_steps(target))
        except Exception:
            if failures:  # TVM made a RuntimeError of it, with a page of its own frames
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
