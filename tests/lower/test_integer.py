"""What becomes integers, and how: pairs of programs, channels last as `integer` gets them."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import check_unchanged, dequantized, op_names, quantized, random_bytes, weights
from tvmcompress.ir import graph, ops
from tvmcompress.lower.integer import integer

W = random_bytes((6, 4, 3, 3), "int8")
D = random_bytes((4, 5), "int8")
BIAS = np.linspace(-1, 1, 6, dtype=np.float32)
IMAGE = (1, 6, 8, 4)


def program(body, shape=IMAGE, dtype="uint8"):
    return graph.program([("x", shape, dtype)], body)


def conv(x, w, padding=0, groups=1):
    return relax.op.nn.conv2d(x, w, 1, padding, 1, groups, "NHWC", "OIHW", "NHWC")


def names(body, shape=IMAGE, dtype="uint8", prefer="uint8") -> list[str]:
    return op_names(integer(program(body, shape, dtype), prefer))


def constants(mod) -> list[np.ndarray]:
    return [graph.value(c) for b in graph.bindings(mod) for c in graph.constants_of(b.value)]


def test_convolution_bias_relu_requantize() -> None:
    """Zero point 3 and bias become one integer a channel; ReLU becomes the lower bound of the requantization."""

    def body(rw, q):
        y = rw.emit(conv(dequantized(rw, q, 0.5, 3), weights(rw, W, 0, 0.25), padding=1))
        y = rw.emit(relax.op.add(y, graph.const(BIAS)))
        return [quantized(rw, rw.emit(relax.op.nn.relu(y)), 0.125, 7)]

    mod = integer(program(body))
    relax.analysis.well_formed(mod)
    assert op_names(mod) == ["nn.pad", "nn.conv2d", "add", "call_tir:requantize"]
    pad, product, add, requantize = (b.value for b in graph.bindings(mod) if graph.op_name(b.value))
    assert float(pad.attrs.pad_value) == 3
    assert str(product.attrs.out_dtype) == "int32"
    np.testing.assert_array_equal(graph.value(product.args[1]), W)
    by_hand = np.rint(BIAS / 0.125) - 3 * W.astype(int).sum((1, 2, 3))
    np.testing.assert_array_equal(graph.value(add.args[1]), by_hand)
    np.testing.assert_array_equal(graph.value(requantize.args[1].fields[1]), np.ones(6))  # 0.5 * 0.25 / 0.125
    (text,) = (f.script() for v, f in mod.functions_items() if "requantize" in v.name_hint)
    assert ", 7), 255)" in text


def test_an_imported_bias_reaches_the_sums() -> None:
    """int32 of the sums' own scale, dequantized, reshaped and permuted on the way: exactly its integers are added."""
    bias = np.array([100000, -7, 0, 1, 5, -3000000], np.int32)
    scales = (np.float32(0.013) * np.linspace(0.001, 0.02, 6, dtype=np.float32)).astype(np.float32)

    def body(rw, q):
        y = rw.emit(conv(dequantized(rw, q, 0.013, 0), weights(rw, W, 0, np.linspace(0.001, 0.02, 6))))
        b = rw.emit(ops.dequantize(graph.const(bias), scales, np.zeros(6), axis=0))
        b = rw.emit(relax.op.reshape(b, (1, 6, 1, 1)))
        b = rw.emit(relax.op.permute_dims(b, (0, 2, 3, 1)))
        return [quantized(rw, rw.emit(relax.op.add(y, b)))]

    mod = integer(program(body))
    assert op_names(mod) == ["nn.conv2d", "add", "call_tir:requantize"]
    assert any(np.array_equal(c, bias) for c in constants(mod))


def test_matrix_product() -> None:
    def body(rw, q):
        y = rw.emit(relax.op.matmul(dequantized(rw, q), weights(rw, D, 1)))
        return [quantized(rw, rw.emit(relax.op.add(y, graph.const(np.ones(5, np.float32)))))]

    assert names(body, (2, 4)) == ["matmul", "add", "call_tir:requantize"]
    assert names(body, (2, 3, 4)) == ["matmul", "add", "call_tir:requantize"]


def test_a_result_that_stays_float_is_dequantized_once() -> None:
    def body(rw, q):
        return [relax.op.matmul(dequantized(rw, q, 0.1, 0), weights(rw, D, 1))]

    assert names(body, (2, 4)) == ["matmul", "dequantize"]


def test_int8_activations_are_shifted_to_what_the_target_reads() -> None:
    """int8 in between never appears: quantize makes uint8 with its zero point 128 higher."""

    def body(rw, q):
        y = rw.emit(conv(dequantized(rw, q), weights(rw, W)))
        y = quantized(rw, y, 0.5, -9, "int8")
        z = rw.emit(conv(dequantized(rw, y, 0.5, -9), weights(rw, random_bytes((3, 6, 1, 1), "int8"))))
        return [quantized(rw, z)]

    mod = integer(program(body))
    assert op_names(mod) == ["nn.conv2d", "add", "call_tir:requantize", "nn.conv2d", "add", "call_tir:requantize"]
    assert graph.dtype(graph.results(mod)[0]) == "uint8"
    # For a target that reads int8 (sdot) the roles change: now the input and the result are shifted.
    assert names(body, prefer="int8") == [
        "call_tir:shift", "nn.conv2d", "add", "call_tir:requantize", "nn.conv2d", "add",
        "call_tir:requantize", "call_tir:shift",
    ]  # fmt: skip
    assert names(body, prefer="int16")[:2] == ["nn.conv2d", "add"]


def test_weights_zero_points() -> None:
    def body(weight, zero):
        def inner(rw, q):
            w = rw.emit(ops.dequantize(graph.const(weight), 0.1, zero))
            return [quantized(rw, rw.emit(conv(dequantized(rw, q, 0.1, 0), w)))]

        return inner

    w = random_bytes((6, 4, 3, 3), "uint8")
    (around_128,) = (c for c in constants(integer(program(body(w, 128)))) if c.ndim == 4)
    assert around_128.dtype == np.int8
    np.testing.assert_array_equal(around_128, w.astype(int) - 128)
    (wide,) = (c for c in constants(integer(program(body(w, 7)))) if c.ndim == 4)
    assert wide.dtype == np.int16  # -7 … 248 fits no byte
    np.testing.assert_array_equal(wide, w.astype(int) - 7)


def test_residual_addition_is_one_elementwise_step() -> None:
    def body(rw, q):
        a = dequantized(rw, q, 0.1, 3)
        y = quantized(rw, rw.emit(conv(a, weights(rw, random_bytes((4, 4, 1, 1), "int8")))), 0.2, 5)
        return [quantized(rw, rw.emit(relax.op.add(a, dequantized(rw, y, 0.2, 5))), 0.3, 0)]

    assert names(body) == ["nn.conv2d", "add", "call_tir:requantize", "call_tir:quantized_add"]


def moved(build, shape=IMAGE):
    """names() of a data movement between dequantize and quantize with the same parameters."""

    def body(rw, q):
        return [quantized(rw, rw.emit(build(dequantized(rw, q))))]

    return names(body, shape)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("nn.max_pool2d", lambda x: relax.op.nn.max_pool2d(x, (2, 2), layout="NHWC")),
        ("reshape", lambda x: relax.op.reshape(x, (1, -1))),
        ("permute_dims", lambda x: relax.op.permute_dims(x, (0, 3, 1, 2))),
        ("strided_slice", lambda x: relax.op.strided_slice(x, [1], [0], [3])),
        ("image.resize2d", lambda x: relax.op.image.resize2d(x, (12, 16), layout="NHWC", method="nearest_neighbor")),
        ("nn.pad", lambda x: relax.op.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0])),
        ("flip", lambda x: relax.op.flip(x, 1)),
        ("tile", lambda x: relax.op.tile(x, (1, 2, 1, 1))),
        ("expand_dims", lambda x: relax.op.expand_dims(x, 0)),
    ],
)
def test_movement_of_bytes(name: str, build) -> None:
    assert moved(build) == [name]


def test_padding_holds_the_zero_point() -> None:
    mod = integer(
        program(lambda rw, q: [quantized(rw, rw.emit(relax.op.nn.pad(dequantized(rw, q), [0, 0, 1, 1, 0, 0, 0, 0])))])
    )
    (pad,) = (b.value for b in graph.bindings(mod) if graph.op_name(b.value))
    assert float(pad.attrs.pad_value) == 3
    assert graph.dtype(pad) == "uint8"


def test_padding_with_what_no_integer_stands_for_stays_float() -> None:
    assert moved(lambda x: relax.op.nn.pad(x, [0, 0, 1, 1, 0, 0, 0, 0], "constant", 0.05)) == [
        "dequantize", "nn.pad", "quantize",
    ]  # fmt: skip


def test_linear_resize_interpolates_in_float() -> None:
    assert "image.resize2d" in moved(lambda x: relax.op.image.resize2d(x, (12, 16), layout="NHWC", method="linear"))


def test_concat_requantizes_the_parts_whose_scales_differ() -> None:
    def body(scale, zero):
        def inner(rw, q):
            a = dequantized(rw, q, 0.1, 3)
            y = rw.emit(conv(a, weights(rw, random_bytes((4, 4, 1, 1), "int8"))))
            b = dequantized(rw, quantized(rw, y, scale, zero), scale, zero)
            return [quantized(rw, rw.emit(relax.op.concat([a, b], 3)), 0.1, 3)]

        return inner

    assert names(body(0.1, 3)) == ["nn.conv2d", "add", "call_tir:requantize", "concat"]
    assert names(body(0.2, 0)) == ["nn.conv2d", "add", "call_tir:requantize", "call_tir:rescale", "concat"]


def test_averages_are_sums() -> None:
    assert moved(lambda x: relax.op.mean(x, [1, 2], True)) == ["astype", "sum", "add", "call_tir:requantize"]
    pool = lambda x: relax.op.nn.avg_pool2d(x, (2, 2), (2, 2), layout="NHWC")  # noqa: E731
    assert moved(pool) == ["call_tir:sum_pool", "add", "call_tir:requantize"]
    # Windows that hang over the edge divide by what is inside: that stays float.
    outside = lambda x: relax.op.nn.avg_pool2d(x, (3, 3), (1, 1), 1, layout="NHWC")  # noqa: E731
    assert "nn.avg_pool2d" in moved(outside)


@pytest.mark.parametrize(
    "function",
    [
        lambda rw, x: relax.op.sigmoid(x),
        lambda rw, x: relax.op.tanh(x),
        lambda rw, x: relax.op.nn.silu(x),
        lambda rw, x: relax.op.nn.gelu(x),
        lambda rw, x: relax.op.nn.leakyrelu(x, 0.1),
        lambda rw, x: relax.op.multiply(x, rw.emit(relax.op.sigmoid(x))),
        lambda rw, x: relax.op.multiply(
            x,
            rw.emit(
                relax.op.clip(rw.emit(relax.op.add(rw.emit(relax.op.multiply(x, f32(1 / 6))), f32(0.5))), 0.0, 1.0)
            ),
        ),
    ],
)
def test_a_function_of_one_tensor_is_a_table(function) -> None:
    def body(rw, q):
        return [quantized(rw, rw.emit(function(rw, dequantized(rw, q))))]

    assert names(body) == ["call_tir:look_up"]


def f32(value: float):
    return graph.const(np.float32(value))


def test_cheap_functions_are_computed() -> None:
    def body(rw, q):
        return [quantized(rw, rw.emit(relax.op.add(dequantized(rw, q), f32(0.3))), 0.2, 0)]

    assert "call_tir:look_up" not in names(body)


def test_dynamic_quantization() -> None:
    """Scale and zero point computed from the tensor: sums are integers, the rest multiplies by two scales."""

    def body(rw, x):
        low, high = rw.emit(relax.op.min(x)), rw.emit(relax.op.max(x))
        scale = rw.emit(relax.op.divide(rw.emit(relax.op.subtract(high, low)), f32(255)))
        zero = rw.emit(relax.op.astype(rw.emit(relax.op.negative(rw.emit(relax.op.divide(low, scale)))), "uint8"))
        q = rw.emit(relax.op.quantize(x, scale, zero, -1, "uint8"))
        data = rw.emit(relax.op.dequantize(q, scale, zero, -1, "float32"))
        return [relax.op.matmul(data, weights(rw, D, 1))]

    mod = integer(program(body, (3, 4), "float32"))
    assert op_names(mod).count("dequantize") == 0
    (product,) = (b.value for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.matmul")
    assert graph.dtype(product) == "int32"


@pytest.mark.parametrize(
    "body",
    [
        lambda rw, q: [conv(dequantized(rw, q), graph.const(W.astype(np.float32)))],
        lambda rw, q: [relax.op.nn.relu(dequantized(rw, q))],
        lambda rw, q: [rw.emit(relax.op.dequantize(q, graph.const(np.ones(4, np.float32)), graph.const(np.ones(4, np.uint8)), 3))],  # noqa: E501
    ],
    ids=["float weights", "no quantize behind", "a scale for each channel"],
)  # fmt: skip
def test_what_stays_float(body) -> None:
    check_unchanged(integer, program(body))


def test_scales_on_the_wrong_axis_stay_float() -> None:
    """One scale for each input channel cannot be taken out of the sum."""

    def body(rw, q):
        return [conv(dequantized(rw, q), weights(rw, W, 1))]

    assert names(body) == ["dequantize", "dequantize", "nn.conv2d"]


def test_group_wise_weights_stay_float() -> None:
    def body(rw, q):
        packed = graph.const(random_bytes((6, 18), "uint8"))
        w = rw.emit(ops.dequantize(rw.emit(ops.unpack_int4(packed)), np.ones(6), np.zeros(6), axis=0))
        return [conv(dequantized(rw, q), rw.emit(relax.op.reshape(w, (6, 4, 3, 3))))]

    assert names(body)[-1] == "nn.conv2d"
    assert "tvmcompress.unpack_int4" in names(body)


def test_a_bias_of_more_dimensions_than_the_sums_is_not_folded() -> None:
    def body(rw, q):
        y = rw.emit(relax.op.matmul(dequantized(rw, q, 0.1, 0), weights(rw, D, 1)))
        return [relax.op.add(y, graph.const(np.ones((1, 1, 1), np.float32)))]

    assert graph.shape(graph.results(integer(program(body, (2, 4))))[0]) == (1, 2, 5)


def test_products_of_float16_models_keep_their_dtype() -> None:
    """A dequantize may make float16; what is put in its place must too."""

    def body(rw, q):
        x = rw.emit(relax.op.dequantize(q, f32(0.1), graph.const(np.uint8(3)), -1, "float16"))
        s = graph.const(np.ones(5, np.float32))
        w = rw.emit(relax.op.dequantize(graph.const(D), s, graph.const(np.zeros(5, np.int8)), 1, "float16"))
        return [relax.op.matmul(x, w)]

    mod = integer(program(body, (2, 4)))
    relax.analysis.well_formed(mod)
    assert graph.dtype(graph.results(mod)[0]) == "float16"
