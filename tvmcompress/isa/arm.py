"""ARM: NEON, and the products that later versions of Armv8 added to it.

| feature | instruction | what it does, in one vector register of sums |
|---|---|---|
| dotprod | sdot | 4 channels, 4 bytes of each |
| i8mm | smmla | 2 rows by 2 channels, 8 bytes of each |
| bf16 | bfdot, bfmmla | 4 channels, 2 bfloat16 of each; 2 rows by 2 channels, 4 of each |
| fp16fml | fmlal | 4 channels, one float16 of each, summed in float32 |

Without dotprod, int8 products are widening multiply-adds of int16 (smlal), which LLVM finds by itself.

float16 is summed in float32 always. With fullfp16's own multiply-adds (fmla on 8 lanes) normally distributed operands
miss the exact result by 2e-4 of its range where only each product is rounded to float16, by 5e-4 in sums of 8, by 2e-2
in those of a 3x3 convolution of 512 channels; in float32 by 2e-6. So with fullfp16 but no fp16fml operands are made
float32 (fcvtl) and multiplied as such; LLVM uses fullfp16 for element-wise work on tensors that are float16 anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmcompress.isa.isa import BF16_BITS, Dot, Isa

FEATURES = ("dotprod", "i8mm", "bf16", "fp16fml")  # LLVM's names


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


def bfdot() -> Dot:
    """bfdot on 4 lanes: C[4] += A[2] . B[4, 2] of bfloat16, given as bits.

    Unless FPCR.EBF says otherwise, both the sum of the two products and that with C round to odd, whatever the rounding
    mode, and subnormals are zero (Arm Architecture Reference Manual, BFDotAdd).
    """
    code = """
define linkonce_odr <4 x float> @tvmcompress_bfdot(<4 x float> %c, <4 x i32> %a, <8 x i16> %b) alwaysinline {
  %x = bitcast <4 x i32> %a to <8 x bfloat>
  %y = bitcast <8 x i16> %b to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y)
  ret <4 x float> %r
}
declare <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float>, <8 x bfloat>, <8 x bfloat>)
"""

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((4, 2), "uint16", strides=[2, 1], offset_factor=1),
        C: T.Buffer((4,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:4], A[0:2], B[0:4, 0:2])
            T.writes(C[0:4])
            for i in T.serial(0, 4):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + real(A[vk]) * real(B[vi, vk])

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((4, 2), "uint16", strides=[2, 1], offset_factor=1),
        C: T.Buffer((4,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:4], A[0:2], B[0:4, 0:2])
            T.writes(C[0:4])
            two = T.reinterpret(A.vload([0], "uint16x2"), dtype="int32")
            C[T.ramp(T.int32(0), 1, 4)] = T.call_pure_extern(
                "float32x4",
                "tvmcompress_bfdot",
                C.vload([0], dtype="float32x4"),
                T.broadcast(two, 4),
                B.vload([0, 0], dtype="uint16x8"),
            )

    TensorIntrin.register("tvmcompress.bfdot_4", desc, impl, override=True)
    return Dot("tvmcompress.bfdot_4", 4, 2, BF16_BITS, BF16_BITS, "bfdot", code)


def fmlal() -> Dot:
    """fmlal on 4 lanes: C[4] += A * B[4], float16 into float32; products are exact, each sum is rounded once."""
    code = """
define linkonce_odr <4 x float> @tvmcompress_fmlal(<4 x float> %c, half %a, <4 x half> %b) alwaysinline {
  %one = insertelement <8 x half> poison, half %a, i32 0
  %x = shufflevector <8 x half> %one, <8 x half> poison, <8 x i32> zeroinitializer
  %y = shufflevector <4 x half> %b, <4 x half> poison,
    <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 poison, i32 poison, i32 poison, i32 poison>
  %r = call <4 x float> @llvm.aarch64.neon.fmlal.v4f32.v8f16(<4 x float> %c, <8 x half> %y, <8 x half> %x)
  ret <4 x float> %r
}
declare <4 x float> @llvm.aarch64.neon.fmlal.v4f32.v8f16(<4 x float>, <8 x half>, <8 x half>)
"""

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((1,), "float16", offset_factor=1),
        B: T.Buffer((4,), "float16", offset_factor=1),
        C: T.Buffer((4,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:4], A[0], B[0:4])
            T.writes(C[0:4])
            for i in T.serial(0, 4):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + T.cast(A[0], "float32") * T.cast(B[vi], "float32")

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((1,), "float16", offset_factor=1),
        B: T.Buffer((4,), "float16", offset_factor=1),
        C: T.Buffer((4,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:4], A[0], B[0:4])
            T.writes(C[0:4])
            C[T.ramp(T.int32(0), 1, 4)] = T.call_pure_extern(
                "float32x4",
                "tvmcompress_fmlal",
                C.vload([0], dtype="float32x4"),
                A[0],
                B.vload([0], dtype="float16x4"),
            )

    TensorIntrin.register("tvmcompress.fmlal_4", desc, impl, override=True)
    return Dot("tvmcompress.fmlal_4", 4, 1, "float16", "float16", "fmlal", code)


@cache
def smmla(step: int = 1) -> Dot:
    """smmla: C[2, 2] += A[2, 8] (s8) . B[2, 8] (s8); the rows of A lie `step` rows apart."""
    code = """
define linkonce_odr <4 x i32> @tvmcompress_smmla(<4 x i32> %c, <8 x i8> %a, <8 x i8> %b, <16 x i8> %y) alwaysinline {
  %x = shufflevector <8 x i8> %a, <8 x i8> %b, <16 x i32>
    <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7,
     i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %r = call <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8(<4 x i32> %c, <16 x i8> %x, <16 x i8> %y)
  ret <4 x i32> %r
}
declare <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
"""
    name = matrix("smmla", 8, "int8", "int32", lambda x: x.astype("int32"), step)
    return Dot(name, 2, 8, "int8", "int8", "smmla", code, 2, smmla)


@cache
def bfmmla(step: int = 1) -> Dot:
    """bfmmla: C[2, 2] += A[2, 4] . B[2, 4] of bfloat16, given as bits; rounds as two of `bfdot`."""
    code = """
define linkonce_odr <4 x float> @tvmcompress_bfmmla(
    <4 x float> %c, <4 x i16> %a, <4 x i16> %b, <8 x i16> %w) alwaysinline {
  %rows = shufflevector <4 x i16> %a, <4 x i16> %b, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %x = bitcast <8 x i16> %rows to <8 x bfloat>
  %y = bitcast <8 x i16> %w to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y)
  ret <4 x float> %r
}
declare <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float>, <8 x bfloat>, <8 x bfloat>)
"""
    name = matrix("bfmmla", 4, BF16_BITS, "float32", real, step)
    return Dot(name, 2, 4, BF16_BITS, BF16_BITS, "bfmmla", code, 2, bfmmla)


def real(bits):
    """float32 of bfloat16's bits."""
    return T.cast(T.reinterpret(bits, dtype="bfloat16"), "float32")


def matrix(mnemonic: str, depth: int, kind: str, sums: str, wide: Callable, step: int) -> str:
    """Registers C[2, 2] += A[2, depth] . B[2, depth], rows of A `step` apart, C contiguous; returns its name."""
    span, half, whole, four = step + 1, f"{kind}x{depth}", f"{kind}x{depth * 2}", f"{sums}x4"
    function = f"tvmcompress_{mnemonic}"

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((span, depth), kind, offset_factor=1),
        B: T.Buffer((2, depth), kind, strides=[depth, 1], offset_factor=1),
        C: T.Buffer((2, 2), sums, strides=[2, 1], offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:2, 0:2], A[0:span, 0:depth], B[0:2, 0:depth])
            T.writes(C[0:2, 0:2])
            for r in T.serial(0, 2):
                for i in T.serial(0, 2):
                    for k in T.serial(0, depth):
                        with T.sblock("update"):
                            vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                            C[vr, vi] = C[vr, vi] + wide(A[vr * step, vk]) * wide(B[vi, vk])

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle) -> None:
        apart = T.int32()
        A = T.match_buffer(a, (span, depth), kind, strides=[apart, 1], offset_factor=1)
        B = T.match_buffer(b, (2, depth), kind, strides=[depth, 1], offset_factor=1)
        C = T.match_buffer(c, (2, 2), sums, strides=[2, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:2, 0:2], A[0:span, 0:depth], B[0:2, 0:depth])
            T.writes(C[0:2, 0:2])
            C[0, T.ramp(T.int32(0), 1, 4)] = T.call_pure_extern(
                four,
                function,
                C.vload([0, 0], dtype=four),
                A.vload([0, 0], dtype=half),
                A.vload([step, 0], dtype=half),
                B.vload([0, 0], dtype=whole),
            )

    name = f"tvmcompress.{mnemonic}_{step}"
    TensorIntrin.register(name, desc, impl, override=True)
    return name


# Of 32: with all of them in use LLVM copies the sums of dot products from one to another inside the loop.
REGISTERS = 30


def facts(has, triple: str, cores: int, options: dict) -> Isa:
    if not triple.startswith("aarch64"):
        return Isa("neon-32", 4, 16, cores, None, fused=has("vfp4"), **options)
    dot = sdot() if has("dotprod") else None
    bf16 = bfdot() if has("bf16") else None
    more = [smmla()] if dot and has("i8mm") else []
    more += [bfmmla()] if bf16 else []
    more += [fmlal()] if has("fp16fml") else []
    name = "-".join(["neon", *(feature for feature in FEATURES if has(feature))])
    return Isa(
        name, 4, REGISTERS, cores, dot, fused=True, bf16=bf16, more=tuple(more), widens=not has("fp16fml"), **options
    )
