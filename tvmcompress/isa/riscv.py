"""RISC-V: scalar, or the vector extension as far as LLVM maps fixed-width vectors onto it."""

from __future__ import annotations

from tvmcompress.isa.isa import Isa


def facts(has, _triple: str, cores: int, options: dict) -> Isa:
    if has("v"):
        return Isa("rvv", 4, 32, cores, None, **options)
    return Isa("scalar", 4, 8, cores, None, **options)
