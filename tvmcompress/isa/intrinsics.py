"""Dot-product instructions as tensor intrinsics: what `Schedule.tensorize` puts in place of a block.

Each is registered under a name, with a description of what it computes and the code that does. Weights are contiguous;
intrinsics declare it, so that another layout is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx import Expr, const

from tvmcompress.isa.isa import Dot

Call = Callable[[Expr, Expr, Expr], Expr]


def real(bits: Expr) -> Expr:
    """float32 of bfloat16's bits."""
    return T.cast(T.reinterpret(bits, dtype="bfloat16"), "float32")


def vectors(name: str, lanes: int, depth: int, kinds: tuple[str, str, str], wide: Callable, call: Call) -> str:
    """C[lanes] += A[depth] . B[lanes, depth]; `kinds` are the dtypes of A, B and C. Returns the name.

    call(c, a, b) gives the new sums: `a` holds the 32 bits of A in every lane, as int32, `b` all of B. wide(x) is an
    element of A or B as it is multiplied.
    """
    data, weight, sums = kinds

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((depth,), data, offset_factor=1),
        B: T.Buffer((lanes, depth), weight, strides=[depth, 1], offset_factor=1),
        C: T.Buffer((lanes,), sums, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:depth], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, depth):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + wide(A[vk]) * wide(B[vi, vk])

    word, block, whole = f"{data}x{depth}", f"{weight}x{lanes * depth}", f"{sums}x{lanes}"

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((depth,), data, offset_factor=1),
        B: T.Buffer((lanes, depth), weight, strides=[depth, 1], offset_factor=1),
        C: T.Buffer((lanes,), sums, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:depth], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = call(
                C.vload([0], dtype=whole),
                T.broadcast(T.reinterpret(A.vload([0], word), dtype="int32"), lanes),
                B.vload([0, 0], dtype=block),
            )

    TensorIntrin.register(name, desc, impl, override=True)
    return name


def lanewise(name: str, lanes: int, depth: int, kinds: tuple[str, str, str], call: Call) -> str:
    """C[lanes] += A[lanes] . B[lanes, depth], as `vectors`, but each lane has an A of its own, in a word of 32 bits."""
    data, weight, sums = kinds

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((lanes,), "uint32", offset_factor=1),
        B: T.Buffer((lanes, depth), weight, strides=[depth, 1], offset_factor=1),
        C: T.Buffer((lanes,), sums, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + dot_of_word(A[vi], [B[vi, k] for k in range(depth)], data)

    block, whole = f"{weight}x{lanes * depth}", f"{sums}x{lanes}"

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((lanes,), "uint32", offset_factor=1),
        B: T.Buffer((lanes, depth), weight, strides=[depth, 1], offset_factor=1),
        C: T.Buffer((lanes,), sums, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = call(
                C.vload([0], dtype=whole),
                T.reinterpret(A.vload([0], f"uint32x{lanes}"), dtype=f"int32x{lanes}"),
                B.vload([0, 0], dtype=block),
            )

    TensorIntrin.register(name, desc, impl, override=True)
    return name


def word(parts: list[Expr]) -> Expr:
    """Integers of 8 or 16 bits beside each other in 32, the first in the lowest bits."""
    bits = 32 // len(parts)
    wide = [part.astype(f"uint{bits}").astype("uint32") << const(bits * i, "uint32") for i, part in enumerate(parts)]
    return reduce(lambda x, y: x | y, wide)


def dot_of_word(whole: Expr, weights: list[Expr], data: str) -> Expr:
    """The products of a `word`'s parts with weights, summed: what `lanewise` puts an instruction for."""
    bits = 32 // len(weights)
    parts = [(whole >> const(bits * i, "uint32")).astype(data).astype("int32") for i in range(len(weights))]
    return reduce(lambda x, y: x + y, [part * w.astype("int32") for part, w in zip(parts, weights)])


def scalars(name: str, lanes: int, kinds: tuple[str, str, str], call: Call) -> str:
    """C[lanes] += A[1] * B[lanes], as `vectors`; of call(c, a, b) `a` is the number itself."""
    data, weight, sums = kinds
    block, whole = f"{weight}x{lanes}", f"{sums}x{lanes}"

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((1,), data, offset_factor=1),
        B: T.Buffer((lanes,), weight, offset_factor=1),
        C: T.Buffer((lanes,), sums, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0], B[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + T.cast(A[0], sums) * T.cast(B[vi], sums)

    @T.prim_func(s_tir=True)
    def impl(
        A: T.Buffer((1,), data, offset_factor=1),
        B: T.Buffer((lanes,), weight, offset_factor=1),
        C: T.Buffer((lanes,), sums, offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = call(C.vload([0], dtype=whole), A[0], B.vload([0], dtype=block))

    TensorIntrin.register(name, desc, impl, override=True)
    return name


def matrices(name: str, depth: int, kinds: tuple[str, str, str], step: int, wide: Callable, function: str) -> str:
    """C[2, 2] += A[2, depth] . B[2, depth], rows of A `step` apart, C contiguous; as `vectors`.

    `function` is LLVM's, of the sums, both rows of A, and B.
    """
    data, weight, sums = kinds
    span, half, whole, four = step + 1, f"{data}x{depth}", f"{weight}x{depth * 2}", f"{sums}x4"

    @T.prim_func(s_tir=True)
    def desc(
        A: T.Buffer((span, depth), data, offset_factor=1),
        B: T.Buffer((2, depth), weight, strides=[depth, 1], offset_factor=1),
        C: T.Buffer((2, 2), sums, strides=[2, 1], offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:2, 0:2], A[0:span, 0:depth], B[0:2, 0:depth])
            T.writes(C[0:2, 0:2])
            for r in T.serial(0, 2):
                for i in T.serial(0, 2):
                    for k in T.serial(0, depth):
                        with T.sblock("update"):
                            vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                            C[vr, vi] = C[vr, vi] + wide(A[vr * step, vk]) * wide(B[vi, vk])

    @T.prim_func(s_tir=True)
    def impl(a: T.handle, b: T.handle, c: T.handle) -> None:
        apart = T.int32()
        A = T.match_buffer(a, (span, depth), data, strides=[apart, 1], offset_factor=1)
        B = T.match_buffer(b, (2, depth), weight, strides=[depth, 1], offset_factor=1)
        C = T.match_buffer(c, (2, 2), sums, strides=[2, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:2, 0:2], A[0:span, 0:depth], B[0:2, 0:depth])
            T.writes(C[0:2, 0:2])
            C[0, T.ramp(T.int32(0), 1, 4)] = T.call_pure_extern(
                four,
                function,
                C.vload([0, 0], dtype=four),
                A.vload([0, 0], dtype=half),
                A.vload([step, 0], dtype=half),
                B.vload([0, 0], dtype=whole),
            )

    TensorIntrin.register(name, desc, impl, override=True)
    return name


def instruction(name: str, dtype: str, *operands: Expr) -> Expr:
    """A call of one of LLVM's own functions, named as in LLVM's language."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def integers(
    name: str, lanes: int, depth: int, data: str, mnemonic: str, call: Call, body: str = "", taken: str = "int8"
) -> Dot:
    """A dot product of bytes, as `vectors`, as `lanewise`, and with a `body` as a function of LLVM's."""
    kinds = (data, "int8", "int32")
    vectors(name, lanes, depth, kinds, lambda x: x.astype("int32"), call)
    own = lanewise(f"{name}_lanewise", lanes, depth, kinds, call)
    function = f"{name.replace('.', '_')}_words" if body else ""
    return Dot(name, lanes, depth, data, "int8", mnemonic, lanewise=own, function=function, body=body, taken=taken)
