"""What an instruction set offers: vector width, registers, dot-product instructions. One family a file."""

from tvmcompress.isa.isa import BF16_BITS, Dot, Isa, Pick, isa_of

__all__ = ["BF16_BITS", "Dot", "Isa", "Pick", "isa_of"]
