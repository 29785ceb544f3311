"""What an instruction set offers: vector width, registers, dot-product instructions. One family a file."""

from tvmcompress.isa.isa import Dot, Isa, isa_of

__all__ = ["Dot", "Isa", "isa_of"]
