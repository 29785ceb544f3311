"""Tables: what a processor's features are called by LLVM and by the device itself.

`DEVICE_NAMES[arch][llvm_name]` are the device's names. Only what a code generator may emit by itself is listed: an
operating system's features (xsave, pan), those that need a deliberate call (aes, sha) and atomics of 128 bits (lse2)
refuse no package.
"""

from __future__ import annotations

_X86 = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "cx16": "cx16",
    "movbe": "movbe",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "adx": "adx",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "f16c": "f16c",
    "gfni": "gfni",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
}
_AARCH64 = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "crc": "crc32",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "fullfp16": "fphp asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "complxnum": "fcma",
    "rcpc": "lrcpc",
    "rcpc-immo": "ilrcpc",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
_ARM = {
    "neon": "neon",
    "dsp": "edsp",
    "vfp3d16": "vfpv3",
    "vfp4d16": "vfpv4",
    "d32": "vfpd32",
    "hwdiv": "idivt",
    "hwdiv-arm": "idiva",
    "crc": "crc32",
    "fullfp16": "fphp asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "bf16": "asimdbf16",
    "i8mm": "i8mm",
}
_RISCV = "i m a f d c v zba zbb zbc zbs zfh zfhmin zfa zicond zvfh zvfhmin zvbb zvbc zvfbfmin zvfbfwma"

DEVICE_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    arch: {llvm: tuple(names.split()) for llvm, names in table.items()}
    for arch, table in {
        "x86_64": _X86,
        "aarch64": _AARCH64,
        "armv7l": _ARM,
        "riscv64": dict(zip(_RISCV.split(), _RISCV.split())),
    }.items()
}

# The bits of AT_HWCAP and of AT_HWCAP2, from bit 0 (Linux, arch/{arm64,arm}/include/uapi/asm/hwcap.h); "-" is not used.
HWCAP = {
    "aarch64": (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
        "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg",
        "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm "
        "bf16 dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 smef32f32",
    ),
    "armv7l": (
        "swp half thumb - fastmult - vfp edsp - - - - neon vfpv3 vfpv3d16 tls vfpv4 idiva idivt vfpd32 lpae evtstrm "
        "fphp asimdhp asimddp asimdfhm asimdbf16 i8mm",
        "aes pmull sha1 sha2 crc32 sb ssbs",
    ),
}
