"""Products of few rows with weights that share 16 values: read as 4-bit indices and looked up in one register.

    y[m, n] = sum over k of x[m, k] * codebook[index[k, n]]

With one row every weight is used once, so that what counts is how many bytes it takes: here half of one, where a
float32 takes four. Two permutations of the codebook and two multiply-adds do 32 weights; the 16 bytes that they come
from hold the first 16 columns in their low halves and the next 16 in their high ones.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx import PrimFunc

from tvmcompress.ir import script

MOST_ROWS = 4
STEP = 32  # columns of one load
SUMS = 16  # registers of sums
STEP_CYCLES, ROW_CYCLES, LOAD_CYCLES = 3.0, 1.75, 3.0  # for STEP columns: `python -m scripts.benchmark.look_up`

# One block of columns, written in LLVM's language: all sums stay in registers over the whole of k.
FUNCTION = """
define linkonce_odr void @{name}(ptr %x, ptr %packed, ptr %codebook, ptr %y) alwaysinline {{
entry:
  %table = load <16 x float>, ptr %codebook, align 4
  br label %loop
loop:
  %k = phi i64 [ 0, %entry ], [ %next, %loop ]
{phis}
{rows}
{products}
  %next = add nuw nsw i64 %k, 1
  %more = icmp ult i64 %next, {depth}
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}
declare <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float>, <16 x i32>)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""
PHI = "  %s{i} = phi <16 x float> [ zeroinitializer, %entry ], [ %t{i}, %loop ]\n"
ROW = """  %at{m} = add nuw nsw i64 %k, {start}
  %from{m} = getelementptr inbounds float, ptr %x, i64 %at{m}
  %one{m} = load float, ptr %from{m}, align 4
  %put{m} = insertelement <16 x float> poison, float %one{m}, i64 0
  %x{m} = shufflevector <16 x float> %put{m}, <16 x float> poison, <16 x i32> zeroinitializer
"""
LOAD = """  %p{v} = mul nuw nsw i64 %k, {bytes}
  %q{v} = add nuw nsw i64 %p{v}, {start}
  %from_p{v} = getelementptr inbounds i8, ptr %packed, i64 %q{v}
  %bytes{v} = load <16 x i8>, ptr %from_p{v}, align 1
  %w{low} = zext <16 x i8> %bytes{v} to <16 x i32>
  %w{high} = lshr <16 x i32> %w{low}, {fours}
"""
LOOK_UP = """  %v{i} = call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> %table, <16 x i32> %w{i})
"""
ADD = """  %t{s} = call <16 x float> @llvm.fma.v16f32(<16 x float> %v{i}, <16 x float> %x{m}, <16 x float> %s{s})
"""
STORE = """  %to{s} = getelementptr inbounds float, ptr %y, i64 {start}
  store <16 x float> %t{s}, ptr %to{s}, align 4
"""
FOURS = "<" + ", ".join(["i32 4"] * 16) + ">"

TEMPLATE = """
@T.prim_func(private=True, s_tir=True)
def shared_matmul(
    x: T.Buffer(({rows}, {depth}), "float32"),
    packed: T.Buffer(({blocks}, {depth}, {bytes}), "uint8"),
    codebook: T.Buffer((1, 16), "float32"),
    y: T.Buffer(({rows}, {columns}), "float32"),
):
    T.func_attr({{"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8}})
    T.attr(0, "pragma_import_llvm", CODE)
    T.evaluate(T.call_extern("void", "tvmcompress_iterations", {blocks}))
    for block in T.parallel({blocks}):
        T.evaluate(
            T.call_extern(
                "void",
                "{name}",
                T.address_of(x[0, 0]),
                T.address_of(packed[block, 0, 0]),
                T.address_of(codebook[0, 0]),
                T.address_of(y[0, block * {width}]),
            )
        )
"""


def width(rows: int) -> int:
    """Columns of a block: as many as there are registers for."""
    return SUMS // rows // 2 * STEP


def offered(rows: int, columns: int) -> bool:
    """Whether the kernel is for such a product."""
    return 1 <= rows <= MOST_ROWS and columns >= width(rows)


def cycles(rows: int, depth: int, columns: int) -> float:
    """Of one core, with weights in its caches: for a step of columns, and for each row of it."""
    return depth * columns / STEP * (STEP_CYCLES + ROW_CYCLES * rows)


def dense_cycles(rows: int, depth: int, columns: int) -> float:
    """The same for floats: each is loaded once and multiplied for each row."""
    return depth * columns / STEP * (LOAD_CYCLES + ROW_CYCLES * rows)


def pack(indices: np.ndarray, rows: int) -> np.ndarray:
    """uint8 indices (k, n) below 16, as uint8 (blocks, k, bytes); zeros fill the last block."""
    depth, columns = indices.shape
    padded = np.pad(indices, ((0, 0), (0, -columns % width(rows))))
    parts = padded.reshape(depth, -1, width(rows) // STEP, 2, STEP // 2)
    halves = parts[:, :, :, 0] | (parts[:, :, :, 1] << 4)
    return np.ascontiguousarray(halves.reshape(depth, -1, width(rows) // 2).transpose(1, 0, 2))


def shared_matmul(rows: int, depth: int, blocks: int) -> PrimFunc:
    """x (rows, depth), packed indices (blocks, depth, bytes), codebook (1, 16): y (rows, blocks * width(rows))."""
    columns = blocks * width(rows)
    name = f"tvmcompress_shared_{rows}x{depth}x{columns}"
    source = TEMPLATE.format(
        rows=rows, depth=depth, blocks=blocks, bytes=width(rows) // 2, columns=columns, width=width(rows), name=name
    )
    return script.read(source, code(name, rows, depth, columns))


def code(name: str, rows: int, depth: int, columns: int) -> str:
    """One block of the product, for sums as `width` has them."""
    vectors = width(rows) // 16
    phis = "".join(PHI.format(i=i) for i in range(rows * vectors))
    data = "".join(ROW.format(m=m, start=m * depth) for m in range(rows))
    products = ""
    for v in range(vectors // 2):
        products += LOAD.format(v=v, bytes=width(rows) // 2, start=16 * v, low=2 * v, high=2 * v + 1, fours=FOURS)
    for i in range(vectors):
        products += LOOK_UP.format(i=i)
        products += "".join(ADD.format(s=m * vectors + i, i=i, m=m) for m in range(rows))
    places = [(m, i) for m in range(rows) for i in range(vectors)]
    stores = "".join(STORE.format(s=s, start=m * columns + 16 * i) for s, (m, i) in enumerate(places))
    return FUNCTION.format(name=name, phis=phis, rows=data, products=products, depth=depth, stores=stores)
