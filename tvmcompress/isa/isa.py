"""Isa: the facts about an instruction set that kernels ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm

BF16_BITS = "uint16"  # bfloat16 as kernels with a dot product read it


@dataclass(frozen=True)
class Dot:
    """A dot-product instruction: C[lanes] (int32 or float32) += A[depth] . B[lanes, depth], A broadcast to all lanes.

    `intrinsic` is the name under which it is registered for tensorize; `data` the dtype of A (activations);
    `weight` the dtype of B. `mnemonic` is what the assembly must contain.

    With `rows` of A it is a product of matrices: C[rows, lanes] += A[rows, depth] . B[lanes, depth], C in one register.
    """

    intrinsic: str
    lanes: int
    depth: int
    data: str
    weight: str
    mnemonic: str
    code: str = ""  # LLVM's, of a function that the intrinsic calls
    rows: int = 1
    spaced: Callable[[int], Dot] | None = None  # the same for rows that lie so many apart
    lanewise: str = ""  # the same where each lane has an A of its own, in words of 32 bits
    # The same as a function in LLVM's language, `body`: of the sums, of words of A, and of all of B, which it reads as
    # `taken`. Empty where there is none.
    function: str = ""
    body: str = ""
    taken: str = ""

    @property
    def decision(self) -> str:
        """How a log of tuning names it."""
        return self.intrinsic


@dataclass(frozen=True)
class Pick:
    """An instruction that picks elements of `bits`: y[i] = x[at[i]] for every i of a register of `lanes` words.

    It reads the first `reach` bytes of x, where these are repeated as often as they fit. `function` is it in LLVM's
    language, `body`: of x in words of 32 bits, and of places, a byte each. `effort` is what it adds to a multiply-add
    that follows it, in times of one; `registers` is how many a loop of both needs beside its sums and weights.
    """

    function: str
    lanes: int
    bits: int
    reach: int
    body: str
    effort: float
    registers: int


@dataclass(frozen=True)
class Isa:
    """Vector facts of a target. `lanes`: 32-bit lanes of one vector register; `registers`: how many there are.

    `dot` is the instruction for int8 products, None where widening multiplications are all there is; then kernels
    read activations as int16 (`wide`), which every vector unit multiplies.
    """

    name: str
    lanes: int
    registers: int
    cores: int
    dot: Dot | None = None
    masked: bool = False  # masked loads and stores cost nothing extra
    fused: bool = False  # multiplies and adds vectors of floats in one instruction
    bf16: Dot | None = None  # the instruction for bfloat16 products, whose operands are BF16_BITS
    look_up: str = ""  # LLVM's code of `tvmcompress_look_up_uint8` and `_int8`: 64 bytes, and the four parts of a table
    permutes_floats: bool = False  # picks 16 floats out of 16, as `kernels.few_rows` does
    more: tuple[Dot, ...] = ()  # further instructions: for several rows at a time, for float16
    widens: bool = False  # float16 activations are best made float32 once, not where they are read
    picks: tuple[Pick, ...] = ()  # what picks elements, one for each width at most
    l1d: int = 32 * 1024
    l2: int = 512 * 1024

    @property
    def dots(self) -> tuple[Dot, ...]:
        """Every dot-product instruction."""
        return tuple(dot for dot in (self.dot, self.bf16, *self.more) if dot)

    @property
    def integer_data(self) -> str:
        """The dtype in which integer kernels want their activations."""
        return self.dot.data if self.dot else "int16"


def isa_of(target: tvm.target.Target, l1d: int | None = None, l2: int | None = None) -> Isa:
    """The facts for a CPU target; features are those LLVM derives from its cpu and attributes."""
    from tvmcompress.isa import arm, riscv, x86

    triple = str(target.attrs.get("mtriple", "") or tvm.target.codegen.llvm_get_system_triple())
    cores = int(target.attrs.get("num-cores", 1) or 1)
    arch = triple.split("-")[0]
    if arch in ("x86_64", "i686", "amd64"):
        family: Callable = x86.facts
    elif arch.startswith(("aarch64", "arm")):
        family = arm.facts
    elif arch.startswith("riscv"):
        family = riscv.facts
    else:
        family = generic
    has = lambda *names: all(tvm.target.codegen.target_has_features(name, target) for name in names)  # noqa: E731
    options = {k: v for k, v in {"l1d": l1d, "l2": l2}.items() if v}
    return family(has, triple, cores, options)


def generic(_has, _triple, cores: int, options: dict) -> Isa:
    """128-bit vectors and 16 registers: what nearly every vector unit has at least."""
    return Isa("generic", 4, 16, cores, **options)
