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

from functools import cache

from tvm.script import tirx as T

from tvmcompress.isa.intrinsics import instruction, integers, matrices, real, scalars, vectors
from tvmcompress.isa.isa import BF16_BITS, Dot, Isa
from tvmcompress.isa.picks import by_bytes

FEATURES = ("dotprod", "i8mm", "bf16", "fp16fml")  # LLVM's names


def sdot() -> Dot:
    """sdot on 4 lanes: C[4] += A[4] (s8) . B[4, 4] (s8)."""

    def call(c, a, b):
        return instruction("llvm.aarch64.neon.sdot", "int32x4", c, T.reinterpret(a, dtype="int8x16"), b)

    body = """
define linkonce_odr <4 x i32> @tvmcompress_sdot_4_words(<4 x i32> %c, <4 x i32> %a, <16 x i8> %b) alwaysinline {
  %x = bitcast <4 x i32> %a to <16 x i8>
  %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %c, <16 x i8> %x, <16 x i8> %b)
  ret <4 x i32> %r
}
declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
"""
    return integers("tvmcompress.sdot_4", 4, 4, "int8", "sdot", call, body)


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

    name = vectors(
        "tvmcompress.bfdot_4", 4, 2, (BF16_BITS, BF16_BITS, "float32"), real,
        lambda c, a, b: T.call_pure_extern("float32x4", "tvmcompress_bfdot", c, a, b),
    )  # fmt: skip
    return Dot(
        name, 4, 2, BF16_BITS, BF16_BITS, "bfdot", code, function="tvmcompress_bfdot", body=code, taken=BF16_BITS
    )


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

    name = scalars(
        "tvmcompress.fmlal_4", 4, ("float16", "float16", "float32"),
        lambda c, a, b: T.call_pure_extern("float32x4", "tvmcompress_fmlal", c, a, b),
    )  # fmt: skip
    return Dot(name, 4, 1, "float16", "float16", "fmlal", code)


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
    kinds = ("int8", "int8", "int32")
    name = matrices(f"tvmcompress.smmla_{step}", 8, kinds, step, lambda x: x.astype("int32"), "tvmcompress_smmla")
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
    kinds = (BF16_BITS, BF16_BITS, "float32")
    name = matrices(f"tvmcompress.bfmmla_{step}", 4, kinds, step, real, "tvmcompress_bfmmla")
    return Dot(name, 2, 4, BF16_BITS, BF16_BITS, "bfmmla", code, 2, bfmmla)


TBL = 1.0  # beside a multiply-add, in times of one: both take the same ports
TBL_REGISTERS = 13  # LLVM puts many of them before the sums that they are added to
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
    picks = tuple(by_bytes("llvm.aarch64.neon.tbl1.v16i8", 4, bits, TBL, TBL_REGISTERS) for bits in (32, 16, 8))
    name = "-".join(["neon", *(feature for feature in FEATURES if has(feature))])
    return Isa(
        name,
        4,
        REGISTERS,
        cores,
        dot,
        fused=True,
        bf16=bf16,
        more=tuple(more),
        widens=not has("fp16fml"),
        picks=picks,
        **options,
    )
