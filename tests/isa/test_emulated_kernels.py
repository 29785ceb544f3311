"""Kernels for processors on which TVM has no runtime, in QEMU: integers to the last bit, floats within 1e-5."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule

from tests import reference
from tests.lower.tools import random_bytes
from tvmcompress.isa import Isa, isa_of
from tvmcompress.kernels import conv2d, matmul, tile
from tvmcompress.kernels.choices import analytic
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.target import Target

CALLER = Path(__file__).parent / "call_kernel.c"
VECTORS = "rv64,v=true,vext_spec=v1.0,vlen="
# target, compiler, emulator, processors: of RISC-V's vectors two lengths
BOARDS = [
    ("generic-armv7", "arm-linux-gnueabihf-gcc", "qemu-arm-static", ["cortex-a9"]),
    ("rpi3-32", "arm-linux-gnueabihf-gcc", "qemu-arm-static", ["max"]),
    ("riscv64", "riscv64-linux-gnu-gcc", "qemu-riscv64-static", ["rv64"]),
    ("riscv64-v", "riscv64-linux-gnu-gcc", "qemu-riscv64-static", [f"{VECTORS}128", f"{VECTORS}256"]),
]
CONV = Conv2d(1, 7, 9, 13, 19, (3, 2), (2, 1), (1, 0, 1, 1), (1, 1))
SHAPE = (7, 33, 19)  # rows, K, channels


def values(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    if kind == "float32":
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return random_bytes(shape, kind, seed)


def convolution(isa: Isa, kind: str) -> tuple[tvm.IRModule, list[np.ndarray], np.ndarray]:
    """The scheduled kernel, its arguments and the result."""
    x, w = values((CONV.n, CONV.h, CONV.w, CONV.c), kind, 0), values((CONV.oc, CONV.c, *CONV.kernel), kind, 1)
    p = conv2d.plan(CONV, isa, kind, kind)
    data = te.placeholder(x.shape, kind)
    taps = te.placeholder(conv2d.packed_shape(CONV, p), kind)
    y = conv2d.compute(data, taps, CONV, p)
    scheduled = Schedule(te.create_prim_func([data, taps, y]))
    tile.schedule(scheduled, isa, analytic)
    return scheduled.mod, [x, conv2d.pack(w, CONV, p)], reference.conv2d(x, w, CONV)


def product(isa: Isa, kind: str) -> tuple[tvm.IRModule, list[np.ndarray], np.ndarray]:
    rows, k, n = SHAPE
    x, w = values((rows, k), kind, 2), values((k, n), kind, 3)
    p = matmul.plan(rows, k, n, 1, isa, kind, kind)
    data, taps = te.placeholder(x.shape, kind), te.placeholder(matmul.packed_shape(k, n, p), kind)
    y = matmul.compute(data, taps, n, p)
    scheduled = Schedule(te.create_prim_func([data, taps, y]))
    tile.schedule(scheduled, isa, analytic)
    wide = np.int64 if kind == "int8" else np.float64
    return scheduled.mod, [x, matmul.pack(w, p)], x.astype(wide) @ w.astype(wide)


def written(arrays: list[np.ndarray]) -> bytes:
    parts = [struct.pack("<i", len(arrays))]
    for a in arrays:
        code = {"i": 0, "u": 1, "f": 2}[a.dtype.kind]
        parts.append(struct.pack(f"<3i{a.ndim}q", code, a.dtype.itemsize * 8, a.ndim, *a.shape) + a.tobytes())
    return b"".join(parts)


@pytest.mark.parametrize(("name", "compiler", "emulator", "processors"), BOARDS, ids=[board[0] for board in BOARDS])
@pytest.mark.parametrize("kind", ["int8", "float32"])
@pytest.mark.parametrize("layer", [convolution, product])
def test_numbers(
    layer, kind: str, name: str, compiler: str, emulator: str, processors: list[str], tmp_path: Path
) -> None:
    for tool in (compiler, emulator):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    target = Target.load(name).to_tvm()
    mod, arguments, wanted = layer(replace(isa_of(target), cores=1), kind)

    def link(output: str, objects: list[str], **_) -> None:
        subprocess.run([compiler, "-static", CALLER, *objects, "-o", output], check=True)

    program, given, got = (tmp_path / n for n in ("kernel.so", "given", "got"))
    tvm.compile(mod, target=target).export_library(str(program), fcompile=link)
    result = np.zeros(wanted.shape, np.int32 if kind == "int8" else np.float32)
    given.write_bytes(written([*arguments, result]))
    for processor in processors:
        subprocess.run([emulator, "-cpu", processor, program, given, got], check=True, timeout=60)
        result = np.fromfile(got, result.dtype).reshape(wanted.shape)
        if kind == "int8":
            np.testing.assert_array_equal(result, wanted)
        else:
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
