"""What the processor could do at best: multiply-accumulates in registers only, and copying memory.

Code is generated for the instructions that kernels of a target use (see `isa`), so this needs TVM's compiler, but no
linker: it runs from memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T

from tvmcompress.isa import BF16_BITS, Dot, Isa, isa_of
from tvmcompress.runtime import aligned, tensor
from tvmcompress.target import Target

TRIES, TRY_S = 8, 0.002  # of one reading, which is the best of them: others may have been interrupted
OPERAND = 64  # bytes that any vector register has at most
COPIED = 32 * 2**20  # bytes each thread copies, past most caches

# `count` turns of a loop in which every accumulator takes one step; nothing but the loop's counter besides.
LOOP = """
{declaration}
define i32 @tvmcompress_peak(ptr %memory, i64 %count) {{
entry:
  %x = load {operand}, ptr %memory, align 4
  %second = getelementptr i8, ptr %memory, i64 {size}
  %y = load {operand}, ptr %second, align 4
{starts}
  br label %loop
loop:
  %turn = phi i64 [0, %entry], [%next, %loop]
{sums}
  {again}
{steps}
  %next = add i64 %turn, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %end
end:
{ends}
  ret i32 0
}}
"""
ENTRY = """
@T.prim_func(s_tir=True)
def entry(memory: T.Buffer(({size},), "int32"), count: T.int64):
    T.func_attr({{"global_symbol": "entry"}})
    T.attr(0, "pragma_import_llvm", CODE)
    T.evaluate(T.call_extern("int32", "tvmcompress_peak", memory.data, count))
"""


@dataclass(frozen=True)
class Step:
    """One step of accumulator `%a#` to `%n#` in LLVM's language: its type, those of %x and %y, and macs."""

    instruction: str
    macs: int
    sums: str
    operand: str
    code: str
    declaration: str = ""
    again: str = ""  # done once a turn


# LLVM's functions of a register of sums and two of operands, whose elements are given, by what the assembly says.
PRODUCTS = {
    "vpdpbusd": ("@llvm.x86.avx512.vpdpbusd.{bits}", "i8"),
    "vdpbf16ps": ("@llvm.x86.avx512bf16.dpbf16ps.{bits}", "bfloat"),
    "sdot": ("@llvm.aarch64.neon.sdot.v4i32.v16i8", "i8"),
    "smmla": ("@llvm.aarch64.neon.smmla.v4i32.v16i8", "i8"),
    "bfdot": ("@llvm.aarch64.neon.bfdot.v4f32.v8bf16", "bfloat"),
    "bfmmla": ("@llvm.aarch64.neon.bfmmla", "bfloat"),
    "fmlal": ("@llvm.aarch64.neon.fmlal.v4f32.v8f16", "half"),
}
WEIGHTS = {"int8": "int8", "bfloat16": BF16_BITS, "float16": "float16"}


def step(arithmetic: str, isa: Isa) -> Step:
    """For "float32", "float16", "bfloat16" or "int8": that of the kernels' instruction that multiplies most."""
    dots = [dot for dot in isa.dots if dot.weight == WEIGHTS.get(arithmetic) and dot.mnemonic in (*PRODUCTS, "pmaddwd")]
    if dots:
        return dot_step(max(dots, key=macs))
    if arithmetic == "int8":
        return widening_step(isa.lanes)
    kind, lanes = f"<{isa.lanes} x float>", isa.lanes
    # The sum is an operand of the product, which therefore cannot leave the loop.
    if isa.fused:
        name = f"@llvm.fma.v{lanes}f32"
        code = f"%n# = call {kind} {name}({kind} %a#, {kind} %x, {kind} %y)"
        return Step("fused multiply-add", lanes, kind, kind, code, f"declare {kind} {name}({kind}, {kind}, {kind})")
    code = f"%m# = fmul {kind} %a#, %x\n  %n# = fadd {kind} %m#, %y"
    return Step("multiply and add", lanes, kind, kind, code)


def macs(dot: Dot) -> int:
    return dot.rows * dot.lanes * dot.depth


def dot_step(dot: Dot) -> Step:
    """Accumulators plus dot products."""
    lanes = dot.rows * dot.lanes  # of the register of sums
    if dot.mnemonic == "pmaddwd":
        sums, operand = f"<{lanes} x i32>", f"<{lanes * 2} x i16>"
        name = {4: "@llvm.x86.sse2.pmadd.wd", 8: "@llvm.x86.avx2.pmadd.wd"}.get(lanes, "@llvm.x86.avx512.pmaddw.d.512")
        code = f"%c# = bitcast {sums} %a# to {operand}\n  %m# = call {sums} {name}({operand} %c#, {operand} %x)"
        code += f"\n  %n# = add {sums} %m#, %a#"
        return Step(dot.mnemonic, macs(dot), sums, operand, code, f"declare {sums} {name}({operand}, {operand})")
    name, element = PRODUCTS[dot.mnemonic]
    name, integer = name.format(bits=lanes * 32), element == "i8"
    sums, operand = f"<{lanes} x {'i32' if integer else 'float'}>", f"<{lanes * (4 if integer else 2)} x {element}>"
    code = f"%n# = call {sums} {name}({sums} %a#, {operand} %x, {operand} %y)"
    return Step(dot.mnemonic, macs(dot), sums, operand, code, f"declare {sums} {name}({sums}, {operand}, {operand})")


def widening_step(lanes: int) -> Step:
    """int16 products summed in int32, which LLVM makes one instruction of where there is one."""
    sums, narrow, halves = f"<{lanes} x i32>", f"<{lanes} x i16>", f"<{lanes * 2} x i16>"
    low = ", ".join(f"i32 {i}" for i in range(lanes))
    code = f"""%c# = bitcast {sums} %a# to {halves}
  %l# = shufflevector {halves} %c#, {halves} poison, <{lanes} x i32> <{low}>
  %w# = sext {narrow} %l# to {sums}
  %v# = sext {narrow} %z to {sums}
  %m# = mul {sums} %w#, %v#
  %n# = add {sums} %m#, %a#"""
    # Loaded in the loop: else it is widened before, and multiplied as it is then.
    return Step("widening multiply-add", lanes, sums, narrow, code, again=f"%z = load volatile {narrow}, ptr %memory")


def loop(made: Step, accumulators: int) -> str:
    """LLVM's code of the loop."""

    def each(text: str) -> str:
        places = ((str(i), str(OPERAND * (i + 2))) for i in range(accumulators))
        return "\n".join(f"  {text.replace('#', i).replace('@at', at)}" for i, at in places)

    return LOOP.format(
        declaration=made.declaration,
        operand=made.operand,
        size=OPERAND,
        starts=each(f"%p# = getelementptr i8, ptr %memory, i64 @at\n  %s# = load {made.sums}, ptr %p#, align 4"),
        sums=each(f"%a# = phi {made.sums} [%s#, %entry], [%n#, %loop]"),
        again=made.again,
        steps=each(made.code),
        ends=each(f"store {made.sums} %n#, ptr %p#, align 4"),
    )


def build(arithmetic: str, target: Target) -> tuple[tvm.runtime.Executable, Step, int]:
    """The loop for a target, what one accumulator does in it, and how many there are."""
    tvm_target = target.to_tvm()
    isa = isa_of(tvm_target)
    made = step(arithmetic, isa)
    # As many as hide an instruction's latency; the other registers hold operands and what is between.
    accumulators = max(1, min(16, isa.registers - 4))
    source = ENTRY.format(size=memory_size(accumulators))
    entry = tvm.script.from_source(source, {"T": T, "CODE": loop(made, accumulators)})
    return tvm.compile(tvm.IRModule({"entry": entry}), target=tvm_target), made, accumulators


def memory_size(accumulators: int) -> int:
    """Of the array that holds operands and accumulators, in int32."""
    return OPERAND // 4 * (accumulators + 2)


class Peak:
    """Readings of one kind of arithmetic, on so many threads at once."""

    def __init__(self, arithmetic: str, target: Target, threads: int):
        library, made, accumulators = build(arithmetic, target)
        self.instruction = made.instruction
        self._run = library["entry"]
        self._work = made.macs * accumulators
        self._memory = [tensor(halves(memory_size(accumulators))) for _ in range(threads)]
        self._turns = 1000
        while (seconds := min(self._seconds(self._memory[0]) for _ in range(3))) < TRY_S:
            self._turns = int(self._turns * min(max(1.2 * TRY_S / seconds, 1.5), 10))

    def gmacs(self) -> float:
        """One reading: 10^9 multiply-accumulates a second, of all threads together."""
        return max(self._turns * self._work * rate for rate in rates(self._seconds, self._memory)) / 1e9

    def _seconds(self, memory: object) -> float:
        start = time.perf_counter()
        self._run(memory, self._turns)
        return time.perf_counter() - start


def halves(size: int) -> np.ndarray:
    """About a half, read as float32 or as bfloat16; so sums stay finite."""
    array = aligned((size,), np.dtype(np.int32))
    array[:] = 0x3F003F00
    return array


class Bandwidth:
    """Readings of how fast memory is copied, reads and writes counted, on so many threads at once."""

    def __init__(self, threads: int):
        self._arrays = [(np.ones(COPIED // 8), np.zeros(COPIED // 8)) for _ in range(threads)]

    def gbs(self) -> float:
        """One reading: 10^9 bytes a second."""
        return max(2 * COPIED * rate for rate in rates(self._seconds, self._arrays)) / 1e9

    @staticmethod
    def _seconds(arrays: tuple[np.ndarray, np.ndarray]) -> float:
        start = time.perf_counter()
        np.copyto(arrays[1], arrays[0])
        return time.perf_counter() - start


def rates(seconds: Callable[[Any], float], operands: Sequence[Any]) -> list[float]:
    """Of each try, the sum of 1 / seconds over all operands, each measured in a thread of its own, all at once."""
    start = threading.Barrier(len(operands))

    def one(operand: Any) -> list[float]:
        found = []
        for _ in range(TRIES):
            start.wait()
            found.append(1 / seconds(operand))
        return found

    with ThreadPoolExecutor(len(operands)) as pool:
        return [sum(tries) for tries in zip(*pool.map(one, operands))]
