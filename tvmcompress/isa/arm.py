"""ARM: NEON, and the dot product of ARMv8.2 (sdot, s8 x s8).

Without sdot, int8 products are widening multiply-adds of int16 (smlal), which LLVM finds by itself in the plain tile.
"""

from __future__ import annotations

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmcompress.isa.isa import Dot, Isa


def sdot() -> Dot:
    """sdot on 4 lanes: C[4] += A[4] (s8) . B[4, 4] (s8)."""

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((4,), "int8", offset_factor=1),
        B: T.Buffer((4, 4), "int8", strides=[4, 1], offset_factor=1),
        C: T.Buffer((4,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:4], A[0:4], B[0:4, 0:4])
            T.writes(C[0:4])
            for i in T.serial(0, 4):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((4,), "int8", offset_factor=1),
        B: T.Buffer((4, 4), "int8", strides=[4, 1], offset_factor=1),
        C: T.Buffer((4,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:4], A[0:4], B[0:4, 0:4])
            T.writes(C[0:4])
            four = T.reinterpret(A.vload([0], "int8x4"), dtype="int32")
            C[T.ramp(T.int32(0), 1, 4)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.sdot"),
                C.vload([0], dtype="int32x4"),
                T.reinterpret(T.broadcast(four, 4), dtype="int8x16"),
                B.vload([0, 0], dtype="int8x16"),
                dtype="int32x4",
            )

    TensorIntrin.register("tvmcompress.sdot_4", desc, impl, override=True)
    return Dot("tvmcompress.sdot_4", 4, 4, "int8", "int8", "sdot")


def facts(has, triple: str, cores: int, options: dict) -> Isa:
    if triple.startswith("aarch64"):
        dot = sdot() if has("dotprod") else None
        return Isa("neon-dotprod" if dot else "neon", 4, 32, cores, dot, fused=True, **options)
    return Isa("neon-32", 4, 16, cores, None, fused=has("vfp4"), **options)
