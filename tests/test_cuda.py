"""Compiling for GPUs, which needs none. What runs there cannot be checked here."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tvm import relax, tirx

from tests.small_net import small_net
from tvmcompress import cuda_code, linking
from tvmcompress.errors import MissingDependencyError, PackageError, TvmcompressError
from tvmcompress.ir import graph, ops
from tvmcompress.lower import cuda, cuda_compiler
from tvmcompress.target import Target

CUDA = [target.name for target in Target.list() if target.kind == "cuda"]


def compiler_for(target: Target) -> cuda_compiler.CudaCompiler:
    try:
        return cuda_compiler.find(target.cuda_arch)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def quantized_net():
    """int8 activations and weights around a convolution, 4-bit weights around a matrix product, a sort behind."""
    random = np.random.default_rng(3)
    weight = random.integers(-127, 128, (8, 4, 3, 3), np.int8)
    packed = ops.pack_int4(random.integers(-8, 8, (16, 32), np.int8))

    def body(r, x):
        q = ops.quantize(x, 0.1, 128, "uint8")
        w = ops.dequantize(graph.const(weight), np.full(8, 0.01, np.float32), np.zeros(8, np.int8), axis=0)
        y = r.emit(relax.op.nn.conv2d(r.emit(ops.dequantize(r.emit(q), 0.1, 128)), r.emit(w), padding=1))
        y = r.emit(relax.op.add(y, graph.const(np.ones((1, 8, 1, 1), np.float32))))
        y = r.emit(relax.op.nn.softmax(r.emit(relax.op.mean(y, [2, 3]))))
        unpacked = r.emit(ops.unpack_int4(graph.const(packed)))
        groups = r.emit(ops.dequantize(unpacked, np.full(16, 0.02, np.float32), np.zeros(16, np.int8), axis=0))
        y = r.emit(relax.op.matmul(y, r.emit(relax.op.reshape(groups, (8, 64)))))
        return [r.emit(relax.op.sort(y))]

    return graph.program([("x", (1, 4, 8, 8), "float32")], body)


@pytest.mark.parametrize("name", CUDA)
def test_every_cuda_target_compiles_and_links(name: str, tmp_path: Path):
    target = Target.load(name)
    compiler_for(target)
    built = cuda.build_cuda(small_net()[0], target)
    built.export_library(str(tmp_path / "net.so"), fcompile=linking.linker(target))
    assert b"tvmcompress cubin" in (tmp_path / "net.so").read_bytes()  # machine code, not source


@pytest.mark.parametrize("program", [quantized_net, lambda: small_net()[0]])
def test_every_tensor_program_is_bound_to_threads(program):
    module = cuda.scheduled(ops.expand(program()), Target.load("cuda-sm80"))
    functions = {var.name_hint: f for var, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}
    assert functions
    for name, function in functions.items():
        assert "threadIdx" in function.script(), name


def test_quantized_weights_stay_quantized_in_the_library():
    module = cuda.scheduled(ops.expand(quantized_net()), Target.load("cuda-sm80"))
    constants = [c for b in graph.bindings(module) for c in graph.constants_of(b.value)]
    large = {str(c.ty.dtype) for c in constants if np.prod(graph.shape(c)) >= 256}
    assert large == {"int8", "uint8"}


def test_weights_leave_the_library_as_they_were_compressed():
    target = Target.load("cuda-sm86")
    compiler_for(target)
    lowered = cuda.lower_cuda(quantized_net(), target)
    assert lowered.prepares and lowered.inputs == 1 and lowered.layers == []
    assert {(str(t.dtype), tuple(t.shape)) for t in lowered.stored} >= {("int8", (8, 4, 3, 3)), ("uint8", (16, 16))}


def test_a_quantized_program_compiles_to_the_same_bytes(tmp_path: Path):
    target = Target.load("cuda-sm86")
    compiler_for(target)
    digests = set()
    for name in ("one.so", "two.so"):
        built = cuda.build_cuda(quantized_net(), target)
        built.export_library(str(tmp_path / name), fcompile=linking.linker(target))
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_source_that_does_not_compile_is_one_line():
    compile_source = compiler_for(Target.load("cuda-sm80"))
    with pytest.raises(TvmcompressError, match=r"failed for sm_80: .*error") as caught:
        compile_source("__global__ void broken() { nonsense; }")
    assert "\n" not in str(caught.value)


def test_no_compiler_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(cuda_compiler, "_nvrtc_libraries", list)
    monkeypatch.setattr(cuda_compiler.shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install nvidia-cuda-nvrtc-cu12"):
        cuda.build_cuda(small_net()[0], Target.load("cuda-sm80"))


def test_stored_code_is_read_back():
    code = bytes(range(256))
    assert cuda_code.unwrap(cuda_code.wrap(code)) == code
    with pytest.raises(PackageError, match="not compiled by tvmcompress"):
        cuda_code.unwrap('extern "C" __global__ void f() {}')
