"""x86-64: SSE, AVX2 and AVX-512 with their dot products.

VNNI's vpdpbusd multiplies u8 activations by s8 weights into int32 without intermediate saturation. Where it is missing,
vpmaddwd on int16 is used (activations are stored as int16, weights are widened on load): vpmaddubsw would saturate.
"""

from __future__ import annotations

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmcompress.isa.isa import BF16_BITS, Dot, Isa


def _register(name: str, desc, impl) -> None:
    TensorIntrin.register(name, desc, impl, override=True)


def vnni(lanes: int) -> Dot:
    """vpdpbusd on 8 or 16 lanes. LLVM 22 takes the byte operands as vectors of i8."""
    bits, octets = lanes * 32, lanes * 4
    instruction = f"llvm.x86.avx512.vpdpbusd.{bits}"
    bytes_type, sums_type = f"int8x{octets}", f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", strides=[4, 1], offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", strides=[4, 1], offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            four = T.reinterpret(A.vload([0], "uint8x4"), dtype="int32")
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(instruction),
                C.vload([0], dtype=sums_type),
                T.reinterpret(T.broadcast(four, lanes), dtype=bytes_type),
                B.vload([0, 0], dtype=bytes_type),
                dtype=sums_type,
            )

    name = f"tvmcompress.vpdpbusd_{lanes}"
    _register(name, desc, impl)
    return Dot(name, lanes, 4, "uint8", "int8", "vpdpbusd")


PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def pmaddwd(lanes: int) -> Dot:
    """pmaddwd on 4, 8 or 16 lanes: exact, since int16 x int16 pairs are summed in int32."""
    instruction, pairs = PMADDWD[lanes], lanes * 2
    half_type, byte_type, sums_type = f"int16x{pairs}", f"int8x{pairs}", f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((2,), "int16", offset_factor=1),
        B: T.Buffer((lanes, 2), "int8", strides=[2, 1], offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((2,), "int16", offset_factor=1),
        B: T.Buffer((lanes, 2), "int8", strides=[2, 1], offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            two = T.reinterpret(A.vload([0], "int16x2"), dtype="int32")
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], dtype=sums_type) + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(instruction),
                T.reinterpret(T.broadcast(two, lanes), dtype=half_type),
                T.cast(B.vload([0, 0], dtype=byte_type), half_type),
                dtype=sums_type,
            )

    name = f"tvmcompress.pmaddwd_{lanes}"
    _register(name, desc, impl)
    return Dot(name, lanes, 2, "int16", "int8", "pmaddwd")


def dpbf16ps(lanes: int) -> Dot:
    """vdpbf16ps on 4, 8 or 16 lanes: pairs of bfloat16 products summed in float32, subnormals taken as zero.

    Operands are the bits of bfloat16 in uint16: TVM makes float32 of every bfloat16 expression before LLVM sees it, and
    its LLVM code generator has no bfloat16. So a function that LLVM puts in place gives the bits their type.
    """
    pairs, name = lanes * 2, f"tvmcompress_dpbf16ps_{lanes}"
    sums_type = f"float32x{lanes}"
    sums, halves = f"<{lanes} x float>", f"<{pairs} x bfloat>"
    instruction = f"@llvm.x86.avx512bf16.dpbf16ps.{lanes * 32}"
    code = f"""
define linkonce_odr {sums} @{name}({sums} %c, <{lanes} x i32> %a, <{pairs} x i16> %b) alwaysinline {{
  %x = bitcast <{lanes} x i32> %a to {halves}
  %y = bitcast <{pairs} x i16> %b to {halves}
  %r = call {sums} {instruction}({sums} %c, {halves} %x, {halves} %y)
  ret {sums} %r
}}
declare {sums} {instruction}({sums}, {halves}, {halves})
"""

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((lanes, 2), "uint16", strides=[2, 1], offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(T.reinterpret(A[vk], dtype="bfloat16"), "float32") * T.cast(
                            T.reinterpret(B[vi, vk], dtype="bfloat16"), "float32"
                        )

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((lanes, 2), "uint16", strides=[2, 1], offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            two = T.reinterpret(A.vload([0], "uint16x2"), dtype="int32")
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_pure_extern(
                sums_type,
                name,
                C.vload([0], dtype=sums_type),
                T.broadcast(two, lanes),
                B.vload([0, 0], dtype=f"uint16x{pairs}"),
            )

    intrinsic = f"tvmcompress.dpbf16ps_{lanes}"
    _register(intrinsic, desc, impl)
    return Dot(intrinsic, lanes, 2, BF16_BITS, BF16_BITS, "vdpbf16ps", code)


# For int8 the table begins with the entry of -128: the highest bit chooses the other way round.
PERMUTE = "@llvm.x86.avx512.vpermi2var.qi.512"
LOOK_UP = (
    "".join(
        f"""
define linkonce_odr <64 x i8> @tvmcompress_look_up_{kind}(
    <64 x i8> %x, <64 x i8> %a, <64 x i8> %b, <64 x i8> %c, <64 x i8> %d) alwaysinline {{
  %low = call <64 x i8> {PERMUTE}(<64 x i8> %a, <64 x i8> %x, <64 x i8> %b)
  %high = call <64 x i8> {PERMUTE}(<64 x i8> %c, <64 x i8> %x, <64 x i8> %d)
  %negative = icmp slt <64 x i8> %x, zeroinitializer
  %r = select <64 x i1> %negative, <64 x i8> %{first}, <64 x i8> %{second}
  ret <64 x i8> %r
}}
"""
        for kind, first, second in (("uint8", "high", "low"), ("int8", "low", "high"))
    )
    + f"declare <64 x i8> {PERMUTE}(<64 x i8>, <64 x i8>, <64 x i8>)\n"
)


def facts(has, _triple: str, cores: int, options: dict) -> Isa:
    if has("avx512f", "avx512bw"):
        dot = vnni(16) if has("avx512vnni") else pmaddwd(16)
        bf16 = dpbf16ps(16) if has("avx512bf16") else None
        table = LOOK_UP if has("avx512vbmi") else ""
        name = "avx512-vnni" if has("avx512vnni") else "avx512"
        return Isa(name, 16, 32, cores, dot, True, has("fma"), bf16, table, **options)
    if has("avx2"):
        dot = vnni(8) if has("avxvnni") else pmaddwd(8)
        return Isa("avx-vnni" if has("avxvnni") else "avx2", 8, 16, cores, dot, fused=has("fma"), **options)
    return Isa("sse", 4, 16, cores, pmaddwd(4), **options)
