"""Instructions that pick elements out of a register, as functions in LLVM's language."""

from __future__ import annotations

from tvmcompress.isa.isa import Pick

# From the place of an element to those of its bytes, the lowest first: times the first number, plus the second.
SPREAD = {16: (0x0202, 0x0100), 32: (0x04040404, 0x03020100)}


def by_elements(instruction: str, lanes: int, bits: int, effort: float, registers: int) -> Pick:
    """By one that picks any element of the whole register."""
    name = f"tvmcompress_pick_{bits}_of_all_{lanes}"
    return Pick(name, lanes, bits, 4 * lanes, written(name, instruction, lanes, bits, bits), effort, registers)


def by_bytes(instruction: str, lanes: int, bits: int, effort: float, registers: int) -> Pick:
    """By one that picks bytes, for each 16 of them out of the 16 that are in their place."""
    name = f"tvmcompress_pick_{bits}_by_bytes_{lanes}"
    return Pick(name, lanes, bits, 16, written(name, instruction, lanes, bits, 8), effort, registers)


def written(name: str, instruction: str, lanes: int, bits: int, taken: int) -> str:
    """For elements of `bits`, by an instruction whose elements and places are of `taken` bits."""
    words, count = f"<{lanes} x {'float' if bits == 32 else 'i32'}>", 32 // bits * lanes
    data, order = (
        f"<{32 // taken * lanes} x {kind}>" for kind in ("float" if taken == 32 else f"i{taken}", f"i{taken}")
    )
    places, wide = f"<{count} x i8>", f"<{count} x i{bits}>"
    lines = [
        f"%data = bitcast {words} %x to {data}",
        f"%wide = {'zext' if bits > 8 else 'bitcast'} {places} %at to {wide}",
    ]
    if taken < bits:
        times, plus = (f"<{', '.join([f'i{bits} {number}'] * count)}>" for number in SPREAD[bits])
        lines += [f"%times = mul {wide} %wide, {times}", f"%spread = add {wide} %times, {plus}"]
    lines += [
        f"%order = bitcast {wide} {'%spread' if taken < bits else '%wide'} to {order}",
        f"%r = call {data} @{instruction}({data} %data, {order} %order)",
        f"%picked = bitcast {data} %r to {words}",
        f"ret {words} %picked",
    ]
    head = f"define linkonce_odr {words} @{name}({words} %x, {places} %at) alwaysinline {{"
    return "\n".join(["", head, *lines, "}", f"declare {data} @{instruction}({data}, {order})", ""])
