"""RISC-V: scalar, or the vector extension as far as LLVM maps fixed-width vectors onto it."""

from __future__ import annotations

from tvmcompress.isa.isa import Isa


def facts(has, _triple: str, cores: int, options: dict) -> Isa:
    if has("zve64d", "zvl128b"):  # all of v but its name
        return Isa("rvv", 4, 32, cores, None, fused=True, **options)
    return Isa("scalar", 4, 8, cores, None, **options)
