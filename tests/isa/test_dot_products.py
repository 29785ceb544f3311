"""Each dot-product instruction that this CPU has, bit by bit against NumPy, and found in the assembly."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import assembly, basic_blocks, build, dequantized, need, quantized, random_bytes, weights
from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target

# target, name of the intrinsic, mnemonic in the assembly
X86 = [
    ("x86-64-v2", "tvmcompress.pmaddwd_4", "pmaddwd"),
    ("x86-64-v3", "tvmcompress.pmaddwd_8", "vpmaddwd"),
    ("skylake-avx512", "tvmcompress.pmaddwd_16", "vpmaddwd"),
    ("alderlake", "tvmcompress.vpdpbusd_8", "vpdpbusd"),
    ("icelake-server", "tvmcompress.vpdpbusd_16", "vpdpbusd"),
]
ARM = [("rpi5", "tvmcompress.sdot_4", "sdot"), ("cortex-a76", "tvmcompress.sdot_4", "sdot")]
MATRICES = [("neoverse-v1", "tvmcompress.smmla_1", "smmla"), ("cortex-a510", "tvmcompress.smmla_1", "smmla")]
ONE_AT_A_TIME = r"^\t(imul[lq]?|mul|mulw|madd|mla|smaddl|smull|smla[bt][bt])\t"
ONE_FLOAT_AT_A_TIME = r"^\t(v?(mul|fmadd\d+)ss|fmadd|v(mla|fma)\.f32\ts\d+,|fmadd\.s)"
COPIES = r"^\t(mov\tv\d+\.16b|ldr\tq\d+, \[sp|str\tq\d+, \[sp|ldp\tq.*\[sp|stp\tq.*\[sp)"

REGISTER = {
    "tvmcompress.vpdpbusd_16": "zmm",
    "tvmcompress.pmaddwd_16": "zmm",
    "tvmcompress.vpdpbusd_8": "ymm",
    "tvmcompress.pmaddwd_8": "ymm",
}


def isa(name: str):
    target = Target.load(name)
    return isa_of(target.to_tvm(), target.l1d, target.l2)


@pytest.mark.parametrize(("name", "intrinsic", "mnemonic"), X86 + ARM)
def test_a_target_gets_its_instruction(name: str, intrinsic: str, mnemonic: str) -> None:
    dot = isa(name).dot
    assert dot is not None and dot.intrinsic == intrinsic
    assert dot.mnemonic in mnemonic


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "generic-aarch64", "rpi3-32", "riscv64"])
def test_targets_without_a_dot_product(name: str) -> None:
    assert isa(name).dot is None
    assert isa(name).integer_data == "int16"


def products(pairs: list[tuple[np.ndarray, np.ndarray]]):
    """int32 sums of several products, one program."""

    def body(rw, *inputs):
        sums = []
        for q, (_, weight) in zip(inputs, pairs):
            y = relax.op.matmul(dequantized(rw, q, 1.0, 0), weights(rw, weight, 1, 1.0))
            sums.append(relax.op.astype(rw.emit(y), "int32"))
        return sums

    return graph.program([(f"x{i}", x.shape, str(x.dtype)) for i, (x, _) in enumerate(pairs)], body)


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Random bytes over the full range, then the extremes at a length where narrower sums would overflow."""
    pairs = []
    for kind in ("uint8", "int8"):
        pairs.append((random_bytes((5, 77), kind, 1), random_bytes((77, 37), "int8", 2)))
        ends = np.array([np.iinfo(kind).min, np.iinfo(kind).max, 1], kind)
        columns = np.array([-128, 127, -127, 0, 1] * 4, np.int8)
        pairs.append((np.repeat(ends[:, None], 1030, 1), np.repeat(columns[None], 1030, 0)))
    return pairs


@pytest.mark.parametrize(("name", "intrinsic", "mnemonic"), [*X86, ("native", "", "")])
def test_bit_by_bit(name: str, intrinsic: str, mnemonic: str) -> None:
    need(name)
    lowered = build(products(cases()), name)
    assert not lowered.fallbacks
    assert mnemonic in assembly(lowered)
    results = machine(lowered, linking.linker(Target.load(name)))([x for x, _ in cases()])
    for got, (x, w) in zip(results, cases()):
        np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64))


def convolution(channels: int = 64, strides: int = 1):
    weight = random_bytes((64, channels, 3, 3), "int8")

    def body(rw, q):
        y = rw.emit(relax.op.nn.conv2d(dequantized(rw, q), weights(rw, weight), strides, 1))
        return [quantized(rw, rw.emit(relax.op.nn.relu(y)), 0.5, 0)]

    return graph.program([("x", (1, channels, 14, 28), "uint8")], body)


def hot(text: str, mnemonic: str) -> str:
    """The basic block with most of the instruction: the inner loop."""
    return max(basic_blocks(text), key=lambda block: block.count(mnemonic))


@pytest.mark.parametrize(("name", "intrinsic", "mnemonic"), X86 + ARM + MATRICES)
@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_the_inner_loop_is_dot_products(kind: str, name: str, intrinsic: str, mnemonic: str) -> None:
    pair = random_bytes((32, 256), "uint8"), random_bytes((256, 96), "int8")
    lowered = build(convolution() if kind == "convolution" else products([pair]), name)
    loop = hot(assembly(lowered), mnemonic)
    dots = loop.count(mnemonic)
    assert dots >= 8
    assert len(re.findall(ONE_AT_A_TIME, loop, re.MULTILINE)) * 8 <= dots  # an address now and then
    if (name, intrinsic, mnemonic) in ARM:
        assert not re.search(COPIES, loop, re.MULTILINE)
    if intrinsic in REGISTER:
        assert f"%{REGISTER[intrinsic]}" in loop


def depthwise(kernel: int, stride: int, weight: np.ndarray, size: int = 14):
    channels = weight.shape[0]

    def body(rw, q):
        y = relax.op.nn.conv2d(
            dequantized(rw, q, 1.0, 0), weights(rw, weight, 0, 1.0), stride, kernel // 2, 1, channels
        )
        return [relax.op.astype(rw.emit(y), "int32")]

    return graph.program([("x", (1, channels, size, size), "uint8")], body)


@pytest.mark.parametrize(("name", "intrinsic", "mnemonic"), X86 + ARM + MATRICES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_depthwise_takes_several_taps_at_a_time(
    kernel: int, stride: int, name: str, intrinsic: str, mnemonic: str
) -> None:
    lowered = build(depthwise(kernel, stride, random_bytes((48, 1, kernel, kernel), "int8")), name)
    assert not lowered.fallbacks
    if mnemonic == "smmla":
        mnemonic = "sdot"  # has no rows to put together
    loop = hot(assembly(lowered), mnemonic)
    assert loop.count(mnemonic) >= kernel
    assert len(re.findall(ONE_AT_A_TIME, loop, re.MULTILINE)) * 4 <= loop.count(mnemonic)


@pytest.mark.parametrize("name", [row[0] for row in X86] + ["native"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (7, 1)])
def test_depthwise_bit_by_bit(kernel: int, stride: int, name: str) -> None:
    """The ends of both ranges, which narrower sums would not hold."""
    need(name)
    weight = random_bytes((19, 1, kernel, kernel), "int8")
    weight[0], weight[1] = -128, 127
    x = random_bytes((1, 19, 13, 13), "uint8")
    x[0, :3] = 255
    lowered = build(depthwise(kernel, stride, weight, 13), name)
    assert not lowered.fallbacks
    (got,) = machine(lowered, linking.linker(Target.load(name)))([x])
    pad = kernel // 2
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    np.testing.assert_array_equal(got, np.einsum("nchwij,cij->nchw", windows, weight[:, 0].astype(np.int64)))


@pytest.mark.parametrize("name", ["x86-64-v3", "icelake-server"])
@pytest.mark.parametrize("channels", [12, 24, 40, 100])
def test_what_follows_a_product_stays_vectors(channels: int, name: str) -> None:
    """Channels that fill no whole number of registers: narrower vectors, not one element after the other."""
    weight = random_bytes((channels, 16, 1, 1), "int8")

    def body(rw, q):
        y = rw.emit(relax.op.nn.conv2d(dequantized(rw, q), weights(rw, weight)))
        return [quantized(rw, rw.emit(relax.op.nn.relu(y)), 0.5, 0)]

    lowered = build(graph.program([("x", (1, 16, 14, 14), "uint8")], body), name)
    assert not lowered.fallbacks
    assert not re.search(r"^\tv?cvtt?(si2ss|ss2si)", assembly(lowered), re.MULTILINE)


def test_element_wise_rows_of_half_a_vector() -> None:
    """A vector that reached into the next row would be put together element by element."""

    def body(rw, x):
        return [relax.op.nn.silu(rw.emit(relax.op.multiply(x, graph.const(np.float32(2)))))]

    lowered = build(graph.program([("x", (1, 7, 9, 24), "float32")], body), "icelake-server")
    assert not lowered.fallbacks
    assert not re.search(r"^\tv?(insertps|extractps|gatherdps)", assembly(lowered), re.MULTILINE)


def test_a_single_row_takes_the_dot_product() -> None:
    """smmla would multiply a row of zeros beside it."""
    text = assembly(build(products([(random_bytes((1, 256), "int8"), random_bytes((256, 96), "int8"))]), "neoverse-v1"))
    assert "sdot" in text
    assert "smmla" not in text


def test_few_channels_take_the_dot_product() -> None:
    """Of three channels smmla needs as many steps, and eight bytes of each pixel in place of four."""
    text = assembly(build(convolution(3), "neoverse-v1"))
    assert "sdot" in text
    assert "smmla" not in text


def test_strided_pixels_take_products_of_matrices() -> None:
    lowered = build(convolution(64, 2), "neoverse-v1")
    assert not lowered.fallbacks
    assert hot(assembly(lowered), "smmla").count("smmla") >= 8


BF16 = ["znver4", "sapphirerapids"]


def bfloat16_layers():
    """A convolution and a product of odd sizes in bfloat16, NaN and infinity among the values."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 7, 9, 11)).astype(np.float32)
    q = rng.standard_normal((5, 33)).astype(np.float32)
    q[0, 0], q[1, 1], q[2, 2] = np.nan, np.inf, -0.0
    taps = rng.standard_normal((37, 7, 3, 3)).astype(ml_dtypes.bfloat16)
    w = rng.standard_normal((33, 19)).astype(ml_dtypes.bfloat16)

    def body(rw, a, b):
        a, b = (rw.emit(relax.op.astype(v, "bfloat16")) for v in (a, b))
        y = relax.op.nn.conv2d(a, graph.const(taps), padding=1, out_dtype="float32")
        return [y, relax.op.matmul(b, graph.const(w), out_dtype="float32")]

    return graph.program([("x", x.shape, "float32"), ("q", q.shape, "float32")], body), (x, q), (taps, w)


@pytest.mark.parametrize(("name", "mnemonic"), [*((n, "vdpbf16ps") for n in BF16), ("neoverse-v1", "bfmmla")])
def test_bfloat16_products_are_dot_products(name: str, mnemonic: str) -> None:
    lowered = build(bfloat16_layers()[0], name)
    assert not lowered.fallbacks
    assert hot(assembly(lowered), mnemonic).count(mnemonic) >= 8


def narrow_product(rows: int, dtype: str):
    weight = np.random.default_rng(0).standard_normal((256, 96)).astype(dtype)

    def body(rw, x):
        return [relax.op.matmul(rw.emit(relax.op.astype(x, dtype)), graph.const(weight), out_dtype="float32")]

    return graph.program([("x", (rows, 256), "float32")], body)


@pytest.mark.parametrize(
    ("name", "rows", "dtype", "mnemonic"),
    [
        ("neoverse-v1", 1, "bfloat16", "bfdot"),
        ("neoverse-v1", 32, "bfloat16", "bfmmla"),
        ("neoverse-v1", 32, "float16", "fmlal"),
        ("rpi5", 32, "float16", "fmla"),
    ],
)
def test_sixteen_bits_on_arm(name: str, rows: int, dtype: str, mnemonic: str) -> None:
    """Without fmlal activations are made float32 once: of the loop's conversions each is of a vector of weights."""
    lowered = build(narrow_product(rows, dtype), name)
    assert not lowered.fallbacks
    loop = hot(assembly(lowered), mnemonic)
    assert loop.count(mnemonic) >= (8 if rows > 1 else 2)
    assert loop.count("fcvt") * rows <= loop.count(mnemonic) * 8
    assert not re.search(r"fml[as]\tv\d+\.8h", loop)  # sums of float16


@pytest.mark.parametrize(("name", "native"), [("rpi5", True), ("rpi4", False)])
def test_float16_tensors_are_added_as_such_where_that_can_be(name: str, native: bool) -> None:
    mod = graph.program([(n, (1, 4096), "float16") for n in "xy"], lambda rw, x, y: [relax.op.add(x, y)])
    assert bool(re.search(r"fadd\tv\d+\.8h", assembly(build(mod, name)))) == native


@pytest.mark.parametrize("name", ["native", "x86-64-v3", *BF16])
def test_bfloat16_numbers(name: str) -> None:
    """Operands rounded half to even, products summed in float32."""
    need(name)
    mod, (x, q), (taps, w) = bfloat16_layers()
    convolved, product = machine(build(mod, name), linking.linker(Target.load(name)))([x, q])
    x, q, taps, w = (v.astype(ml_dtypes.bfloat16).astype(np.float64) for v in (x, q, taps, w))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    np.testing.assert_allclose(convolved, np.einsum("nchwij,ocij->nohw", windows, taps), rtol=1e-5, atol=1e-4)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(product, q @ w, rtol=1e-5, atol=1e-4)


FLOATS = [("x86-64-v3", "vfmadd"), ("rpi4", "fmla"), ("rpi3-32", "vfma.f32"), ("riscv64-v", "vfmacc.vf")]


@pytest.mark.parametrize(("name", "mnemonic"), FLOATS)
@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_float_layers_are_vectors(kind: str, name: str, mnemonic: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "convolution":
        weight = rng.standard_normal((32, 16, 3, 3), np.float32)
        shape, layer = (1, 16, 14, 28), lambda x: relax.op.nn.conv2d(x, graph.const(weight), padding=1)
    else:
        matrix = rng.standard_normal((64, 96), np.float32)
        shape, layer = (32, 64), lambda x: relax.op.matmul(x, graph.const(matrix))
    lowered = build(graph.program([("x", shape, "float32")], lambda rw, x: [layer(x)]), name)
    assert not lowered.fallbacks
    loop = hot(assembly(lowered), mnemonic)
    assert loop.count(mnemonic) >= 7
    assert not re.search(ONE_FLOAT_AT_A_TIME, loop, re.MULTILINE)


@pytest.mark.parametrize(("name", "mnemonic"), [("rpi4", "mlal"), ("rpi3-32", "mlal"), ("riscv64-v", "vwmacc.vx")])
@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_without_a_dot_product_integers_widen_in_vectors(kind: str, name: str, mnemonic: str) -> None:
    """smlal and vmlal: int16 products into int32 sums."""
    pair = random_bytes((32, 256), "uint8"), random_bytes((256, 96), "int8")
    lowered = build(convolution() if kind == "convolution" else products([pair]), name)
    assert not lowered.fallbacks
    loop = hot(assembly(lowered), mnemonic)
    assert loop.count(mnemonic) >= 8
    assert len(re.findall(ONE_AT_A_TIME, loop, re.MULTILINE)) * 8 <= loop.count(mnemonic)


def test_winograd_with_vectors_of_any_length() -> None:
    """TVM would mask these vectors and lose a variable on the way: it is not told of RISC-V's `v`."""
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3), np.float32)
    mod = graph.program(
        [("x", (1, 32, 26, 28), "float32")], lambda rw, x: [relax.op.nn.conv2d(x, graph.const(weight), padding=1)]
    )
    lowered = build(mod, "riscv64-v")
    assert lowered.layers[0]["algorithm"] == "winograd"
    assert not lowered.fallbacks
    assert "vfmacc.vf" in assembly(lowered)
