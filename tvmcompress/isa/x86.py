"""x86-64: SSE, AVX2 and AVX-512 with their dot products.

VNNI's vpdpbusd multiplies u8 activations by s8 weights into int32 without intermediate saturation. Where it is missing,
vpmaddwd on int16 is used (activations are stored as int16, weights are widened on load): vpmaddubsw would saturate.
"""

from __future__ import annotations

from tvm.script import tirx as T

from tvmcompress.isa.intrinsics import instruction, integers, real, vectors
from tvmcompress.isa.isa import BF16_BITS, Dot, Isa, Pick
from tvmcompress.isa.picks import by_bytes, by_elements


def vnni(lanes: int) -> Dot:
    """vpdpbusd on 8 or 16 lanes. LLVM 22 takes the byte operands as vectors of i8."""

    def call(c, a, b):
        octets = T.reinterpret(a, dtype=f"int8x{lanes * 4}")
        return instruction(f"llvm.x86.avx512.vpdpbusd.{lanes * 32}", f"int32x{lanes}", c, octets, b)

    sums, octets = f"<{lanes} x i32>", f"<{4 * lanes} x i8>"
    name = f"@llvm.x86.avx512.vpdpbusd.{lanes * 32}"
    body = f"""
define linkonce_odr {sums} @tvmcompress_vpdpbusd_{lanes}_words({sums} %c, {sums} %a, {octets} %b) alwaysinline {{
  %x = bitcast {sums} %a to {octets}
  %r = call {sums} {name}({sums} %c, {octets} %x, {octets} %b)
  ret {sums} %r
}}
declare {sums} {name}({sums}, {octets}, {octets})
"""
    return integers(f"tvmcompress.vpdpbusd_{lanes}", lanes, 4, "uint8", "vpdpbusd", call, body)


PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def pmaddwd(lanes: int) -> Dot:
    """pmaddwd on 4, 8 or 16 lanes: exact, since int16 x int16 pairs are summed in int32."""
    halves = f"int16x{lanes * 2}"

    def call(c, a, b):
        return c + instruction(PMADDWD[lanes], f"int32x{lanes}", T.reinterpret(a, dtype=halves), T.cast(b, halves))

    sums, pairs = f"<{lanes} x i32>", f"<{2 * lanes} x i16>"
    body = f"""
define linkonce_odr {sums} @tvmcompress_pmaddwd_{lanes}_words({sums} %c, {sums} %a, {pairs} %b) alwaysinline {{
  %x = bitcast {sums} %a to {pairs}
  %p = call {sums} @{PMADDWD[lanes]}({pairs} %x, {pairs} %b)
  %r = add {sums} %c, %p
  ret {sums} %r
}}
declare {sums} @{PMADDWD[lanes]}({pairs}, {pairs})
"""
    return integers(f"tvmcompress.pmaddwd_{lanes}", lanes, 2, "int16", "pmaddwd", call, body, "int16")


def dpbf16ps(lanes: int) -> Dot:
    """vdpbf16ps on 4, 8 or 16 lanes: pairs of bfloat16 products summed in float32, subnormals taken as zero.

    Operands are the bits of bfloat16 in uint16: TVM makes float32 of every bfloat16 expression before LLVM sees it, and
    its LLVM code generator has no bfloat16. So a function that LLVM puts in place gives the bits their type.
    """
    pairs, name = lanes * 2, f"tvmcompress_dpbf16ps_{lanes}"
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

    intrinsic = vectors(
        f"tvmcompress.dpbf16ps_{lanes}", lanes, 2, (BF16_BITS, BF16_BITS, "float32"), real,
        lambda c, a, b: T.call_pure_extern(f"float32x{lanes}", name, c, a, b),
    )  # fmt: skip
    return Dot(intrinsic, lanes, 2, BF16_BITS, BF16_BITS, "vdpbf16ps", code, function=name, body=code, taken=BF16_BITS)


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

# A permutation beside a multiply-add, in times of one, by the ports that both may take. Intel has one for permutations
# of whole registers; multiply-adds have two, and of 512 bits one of these is the same: 24 pairs take 24 cycles, 24
# multiply-adds 12. AMD's Zen has two of four for each, with one in common: they take 32 cycles, not 24, and a little
# more for what the scheduler misses. Where a product is pmaddwd and an addition, or bytes stay among 16, others are
# free meanwhile.
INTEL, AMD, WITHIN = 1.0, 0.45, 0.5
# Registers of such a loop beside sums and weights; of 16, LLVM wants some more to unroll it.
FEW, MORE = 3, 5


def permutations(has) -> tuple[Pick, ...]:
    """vpermps, vpermw, vpermb, and vpshufb where these are missing. sse4a tells AMD's processors from others.

    vpermw without VBMI, which is Skylake's and of its time, takes two steps: vpshufb is better.
    """
    effort = AMD if has("sse4a") else INTEL
    if has("avx512f", "avx512bw"):
        floats = by_elements("llvm.x86.avx512.permvar.sf.512", 16, 32, effort, FEW)
        if has("avx512vbmi"):
            wider = ((16, "hi"), (8, "qi"))
            return floats, *(
                by_elements(f"llvm.x86.avx512.permvar.{k}.512", 16, bits, effort, FEW) for bits, k in wider
            )
        efforts = ((16, min(effort, WITHIN)), (8, effort))
        return floats, *(by_bytes("llvm.x86.avx512.pshuf.b.512", 16, bits, each, FEW) for bits, each in efforts)
    if has("avx2"):
        floats = by_elements("llvm.x86.avx2.permps", 8, 32, INTEL, MORE)
        return floats, *(by_bytes("llvm.x86.avx2.pshuf.b", 8, bits, WITHIN, MORE) for bits in (16, 8))
    kinds = (32, 16, 8) if has("ssse3") else ()
    return tuple(by_bytes("llvm.x86.ssse3.pshuf.b.128", 4, bits, WITHIN, MORE) for bits in kinds)


def facts(has, _triple: str, cores: int, options: dict) -> Isa:
    options = options | {"picks": permutations(has)}
    if has("avx512f", "avx512bw"):
        dot = vnni(16) if has("avx512vnni") else pmaddwd(16)
        bf16 = dpbf16ps(16) if has("avx512bf16") else None
        table = LOOK_UP if has("avx512vbmi") else ""
        name = "avx512-vnni" if has("avx512vnni") else "avx512"
        return Isa(name, 16, 32, cores, dot, True, has("fma"), bf16, table, permutes_floats=True, **options)
    if has("avx2"):
        dot = vnni(8) if has("avxvnni") else pmaddwd(8)
        return Isa("avx-vnni" if has("avxvnni") else "avx2", 8, 16, cores, dot, fused=has("fma"), **options)
    return Isa("sse", 4, 16, cores, pmaddwd(4), **options)
