"""RISC-V: scalar, or the vector extension as far as LLVM maps fixed-width vectors onto it."""

from __future__ import annotations

from tvm.script import tirx as T

from tvmcompress.isa.intrinsics import scalars
from tvmcompress.isa.isa import Dot, Isa


def vwmacc() -> Dot:
    """vwmacc.vx on 4 lanes: C[4] += A * B[4], int16 and int8, the scalar from its own register.

    By itself LLVM makes a vector of each scalar and widens that, at two instructions and two changes of the vectors'
    type for each.
    """
    code = """
define linkonce_odr <4 x i32> @tvmcompress_vwmacc(<4 x i32> %c, i16 %a, <4 x i8> %b) alwaysinline {
  %wide = sext i16 %a to i32
  %one = insertelement <4 x i32> poison, i32 %wide, i32 0
  %x = shufflevector <4 x i32> %one, <4 x i32> poison, <4 x i32> zeroinitializer
  %y = sext <4 x i8> %b to <4 x i32>
  %p = mul <4 x i32> %x, %y
  %r = add <4 x i32> %c, %p
  ret <4 x i32> %r
}
"""

    name = scalars(
        "tvmcompress.vwmacc_4", 4, ("int16", "int8", "int32"),
        lambda c, a, b: T.call_pure_extern("int32x4", "tvmcompress_vwmacc", c, a, b),
    )  # fmt: skip
    return Dot(name, 4, 1, "int16", "int8", "vwmacc.vx", code)


def facts(has, _triple: str, cores: int, options: dict) -> Isa:
    if has("zve64d", "zvl128b"):  # all of v but its name
        return Isa("rvv", 4, 32, cores, None, fused=True, more=(vwmacc(),), **options)
    return Isa("scalar", 4, 8, cores, None, **options)
