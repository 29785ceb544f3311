"""What this project works round in TVM 0.27. When one of these fails, TVM was repaired and the way round can go."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tvm
from tvm import relax, te
from tvm.s_tir import Schedule

from tvmcompress.ir import graph, ops

# The package's own __init__ takes half a minute (it makes all CUDA intrinsics), so only its x86 file is imported.
SHIPPED_VNNI = """
import os, sys, types
import tvm, tvm.s_tir
package = types.ModuleType("tvm.s_tir.tensor_intrin")
package.__path__ = [os.path.join(os.path.dirname(tvm.s_tir.__file__), "tensor_intrin")]
sys.modules[package.__name__] = package
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir.tensor_intrin.x86 import VNNI_DOT_16x4_INTRIN
a, b = te.placeholder((4, 64), "uint8"), te.placeholder((4, 16, 16, 4), "int8")
k, d = te.reduce_axis((0, 16), "k"), te.reduce_axis((0, 4), "d")
c = te.compute((4, 4, 16), lambda i, o, v: te.sum(
    a[i, k * 4 + d].astype("int32") * b[o, k, v, d].astype("int32"), axis=[k, d]), name="c")
sch = Schedule(te.create_prim_func([a, b, c]))
block = sch.get_sblock("c")
i, o, v, k, d = sch.get_loops(block)
sch.reorder(i, o, k, v, d)
sch.decompose_reduction(block, k)
sch.tensorize(v, VNNI_DOT_16x4_INTRIN)
print("tensorized", flush=True)
tvm.compile(sch.mod, target=tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"}))
print("built", flush=True)
"""


def test_the_shipped_vnni_intrinsic_does_not_build() -> None:
    """LLVM 22 takes vpdpbusd's bytes as <64 x i8>. isa/x86.py has its own intrinsic."""
    done = subprocess.run(
        [sys.executable, "-c", SHIPPED_VNNI], capture_output=True, text=True, timeout=120, check=False
    )
    assert "tensorized" in done.stdout, done.stderr[-2000:]
    assert "built" not in done.stdout


def test_fold_constant_undoes_quantized_weights() -> None:
    """It multiplies int8 weights by their scales: four times the bytes. lower/integer.py runs before any folding."""
    weight = np.ones((64, 64), np.int8)

    def body(rw, x):
        w = rw.emit(ops.dequantize(graph.const(weight), np.full(64, 0.1), np.zeros(64), axis=1))
        return [relax.op.matmul(x, w)]

    mod = graph.program([("x", (2, 64), "float32")], body)
    folded = relax.transform.FoldConstant()(relax.transform.LegalizeOps()(mod))
    kinds = {
        graph.dtype(c)
        for b in graph.bindings(folded)
        for e in [b.value, *getattr(b.value, "args", [])]
        for c in graph.constants_of(e)
        if graph.shape(c) == (64, 64)
    }
    assert kinds == {"float32"}


def test_legalization_has_no_blocked_convolution() -> None:
    """Relax cannot lower conv2d in NCHW16c: the kernels are this project's own tensor programs."""
    x = relax.Var("x", relax.TensorType([1, 1, 8, 8, 16], "float32"))
    w = graph.const(np.ones((1, 1, 3, 3, 16, 16), np.float32))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.conv2d(x, w, data_layout="NCHW16c", kernel_layout="OIHW16i16o"))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    after = relax.transform.LegalizeOps()(builder.finalize())
    assert any(graph.op_name(b.value) == "relax.nn.conv2d" for b in graph.bindings(after))


def test_a_target_given_as_a_string_is_refused() -> None:
    """Targets are dictionaries: target.py reads the old form itself."""
    with pytest.raises(ValueError):
        tvm.target.Target("llvm -mcpu=core-avx2")


def test_the_vectors_of_riscv_are_taken_apart() -> None:
    """Of a loop vectorized by 4 nothing is left where TVM sees `v`: target.py names the parts of `v` in its place."""
    x, w, k = te.placeholder((16,), "float32"), te.placeholder((8, 16), "float32"), te.reduce_axis((0, 8), "k")
    y = te.compute((16,), lambda i: te.sum(x[k] * w[k, i], axis=[k]), name="y")
    sch = Schedule(te.create_prim_func([x, w, y]))
    block = sch.get_sblock("y")
    spatial, reduction = sch.get_loops(block)
    rest, lanes = sch.split(spatial, [None, 4])
    sch.reorder(rest, reduction, lanes)
    sch.vectorize(lanes)
    sch.decompose_reduction(block, reduction)

    def code(*vectors: str) -> str:
        features = [f"+{feature}" for feature in ("m", "f", "d", "c", *vectors)]
        machine = {"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "generic-rv64", "mabi": "lp64d"}
        target = tvm.target.Target({**machine, "mattr": features})
        return tvm.compile(sch.mod, target=target).mod.inspect_source("ll")

    assert "<4 x float>" not in code("v")
    assert "<4 x float>" in code("zve64d", "zvl128b")


def test_a_block_of_loops_in_overlapping_bands_is_of_other_rows() -> None:
    """Rows 14*i + j with j < 16 become 16*i + j, cut off at the end. Hence kernels/woven.py makes words element by
    element, where one shuffle would do."""
    x = te.placeholder((30, 8), "float32")
    y = te.compute((30, 8), lambda h, v: x[h, v] * 2, name="y")
    k = te.reduce_axis((0, 3), "k")
    z = te.compute((28, 8), lambda h, v: te.sum(y[h + k, v], axis=k), name="z")
    sch = Schedule(te.create_prim_func([x, z]))
    h, *_ = sch.get_loops(sch.get_sblock("z"))
    band, _ = sch.split(h, [None, 14])
    sch.compute_at(sch.get_sblock("y"), band)
    block = sch.blockize(sch.get_loops(sch.get_sblock("y"))[-1])
    (row, *_), extents = sch.get(block).iter_vars, [int(sch.get(loop).extent) for loop in sch.get_loops(block)]
    assert extents[:2] == [2, 16] and int(row.dom.extent) == 30
    assert " * T.int64(16) + " in sch.mod.script() or " * 16 + " in sch.mod.script()
