"""Quantized operators against ONNX Runtime: within one quantum, and in the internal form."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontend.onnx_tools import load_proto, model_of, ort_run, run
from tvmcompress.ir import graph as ir

MS = "com.microsoft"
U8, I8 = TensorProto.UINT8, TensorProto.INT8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def f32(*values):
    return np.array(values if len(values) > 1 else values[0], "float32")


def check(op, inputs, constants, domain="", quantum=1, outputs=("y",), **attrs):
    """One node on `inputs` (name: array) and `constants`; outputs as ONNX Runtime gives them, within `quantum`."""
    order = attrs.pop("order")
    proto = model_of(op, inputs, constants, order, outputs, domain, **attrs)
    wanted = ort_run(proto, inputs)
    got = run(load_proto(proto), inputs)
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        if w.dtype.kind == "f":
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)
        else:
            assert np.abs(g.astype(int) - w.astype(int)).max() <= quantum
    return proto


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("group", [1, 4])
def test_qlinear_conv(rng, per_channel, group):
    x = rng.integers(0, 256, (1, 8, 9, 9)).astype("uint8")
    w = rng.integers(-127, 128, (12, 8 // group, 3, 3)).astype("int8")
    scale = rng.uniform(0.001, 0.01, 12).astype("float32") if per_channel else f32(0.005)
    constants = {
        "xs": f32(0.03), "xz": np.uint8(120), "w": w, "ws": scale, "wz": np.zeros(scale.shape, "int8"),
        "ys": f32(0.05), "yz": np.uint8(110), "b": rng.integers(-2000, 2000, 12).astype("int32"),
    }  # fmt: skip
    order = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    check("QLinearConv", {"x": x}, constants, order=order, pads=[1, 0, 1, 2], strides=[2, 1], group=group)


def test_qlinear_matmul_by_column(rng):
    constants = {
        "as": f32(0.02), "az": np.uint8(100), "b": rng.integers(-127, 128, (16, 10)).astype("int8"),
        "bs": rng.uniform(0.001, 0.02, 10).astype("float32"), "bz": np.zeros(10, "int8"),
        "ys": f32(0.05), "yz": np.uint8(128),
    }  # fmt: skip
    order = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    check("QLinearMatMul", {"a": rng.integers(0, 256, (5, 16)).astype("uint8")}, constants, order=order)


def test_conv_integer_is_exact(rng):
    x = rng.integers(0, 256, (1, 4, 7, 7)).astype("uint8")
    constants = {"w": rng.integers(0, 256, (6, 4, 3, 3)).astype("uint8"), "xz": np.uint8(7), "wz": np.uint8(90)}
    check("ConvInteger", {"x": x}, constants, quantum=0, order=["x", "w", "xz", "wz"], pads=[1, 1, 1, 1])


def test_matmul_integer_is_exact(rng):
    constants = {"b": rng.integers(-128, 128, (20, 6)).astype("int8"), "az": np.uint8(9), "bz": np.int8(-3)}
    a = rng.integers(0, 256, (4, 20)).astype("uint8")
    check("MatMulInteger", {"a": a}, constants, quantum=0, order=["a", "b", "az", "bz"])


@pytest.mark.parametrize("low, high", [(-3, 5), (1, 4), (-4, -1)])
def test_dynamic_quantize_linear(rng, low, high):
    x = rng.uniform(low, high, (3, 17)).astype("float32")
    check("DynamicQuantizeLinear", {"x": x}, {}, order=["x"], outputs=("y", "scale", "zero"))


@pytest.mark.parametrize("transB", [0, 1])
def test_qgemm(rng, transB):
    b = rng.integers(-127, 128, (10, 16) if transB else (16, 10)).astype("int8")
    constants = {
        "as": f32(0.02), "az": np.uint8(100), "b": b, "bs": rng.uniform(0.001, 0.02, 10).astype("float32"),
        "bz": np.zeros(10, "int8"), "c": rng.integers(-3000, 3000, 10).astype("int32"),
        "ys": f32(0.06), "yz": np.uint8(120),
    }  # fmt: skip
    order = ["a", "as", "az", "b", "bs", "bz", "c", "ys", "yz"]
    a = rng.integers(0, 256, (5, 16)).astype("uint8")
    check("QGemm", {"a": a}, constants, MS, order=order, transB=transB)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_qlinear_binary(rng, op, kind):
    info = np.iinfo(kind)
    a, b = (rng.integers(info.min, info.max + 1, shape).astype(kind) for shape in ((2, 3, 5), (3, 5)))
    zero = np.array(5, kind)
    constants = {"as": f32(0.02), "az": zero, "bs": f32(0.03), "bz": zero, "ys": f32(0.04), "yz": zero}
    order = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    check(op, {"a": a, "b": b}, constants, MS, order=order)


@pytest.mark.parametrize("op, attrs", [
    ("QLinearSigmoid", {}),
    ("QLinearLeakyRelu", {"alpha": 0.1}),
    ("QLinearGlobalAveragePool", {}),
    ("QLinearSoftmax", {"axis": 1, "opset": 13}),
    ("QLinearAveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
])  # fmt: skip
def test_qlinear_unary(rng, op, attrs):
    x = rng.integers(0, 256, (1, 4, 6, 6)).astype("uint8")
    zero = np.uint8(0) if op in ("QLinearSigmoid", "QLinearSoftmax") else np.uint8(100)
    scale = f32(1 / 256) if op in ("QLinearSigmoid", "QLinearSoftmax") else f32(0.04)
    constants = {"xs": f32(0.03), "xz": np.uint8(120), "ys": scale, "yz": zero}
    check(op, {"x": x}, constants, MS, order=["x", "xs", "xz", "ys", "yz"], **attrs)


def test_qlinear_concat(rng):
    a, b = (rng.integers(0, 256, (2, n, 4)).astype("uint8") for n in (3, 2))
    constants = {
        "ys": f32(0.05), "yz": np.uint8(100), "as": f32(0.03), "az": np.uint8(3), "bs": f32(0.06), "bz": np.uint8(200)
    }  # fmt: skip
    check(
        "QLinearConcat", {"a": a, "b": b}, constants, MS, order=["ys", "yz", "a", "as", "az", "b", "bs", "bz"], axis=1
    )


def test_matmul_integer_to_float(rng):
    constants = {
        "b": rng.integers(-127, 128, (16, 6)).astype("int8"), "as": f32(0.02),
        "bs": rng.uniform(0.01, 0.02, 6).astype("float32"),
        "az": np.uint8(99), "bz": np.zeros(6, "int8"), "bias": rng.normal(size=6).astype("float32"),
    }  # fmt: skip
    a = rng.integers(0, 256, (3, 16)).astype("uint8")
    check("MatMulIntegerToFloat", {"a": a}, constants, MS, order=["a", "b", "as", "bs", "az", "bz", "bias"])


def test_dynamic_quantize_matmul(rng):
    constants = {"b": rng.integers(-127, 128, (16, 6)).astype("int8"), "bs": f32(0.02), "bz": np.int8(0)}
    check(
        "DynamicQuantizeMatMul",
        {"a": rng.normal(size=(3, 16)).astype("float32")},
        constants,
        MS,
        order=["a", "b", "bs", "bz"],
    )


@pytest.mark.parametrize("op, inputs, attrs", [
    ("Gelu", ["x"], {}),
    ("FastGelu", ["x", "bias"], {}),
    ("BiasGelu", ["x", "bias"], {}),
    ("FusedMatMul", ["x", "x2"], {"transB": 1, "alpha": 0.5}),
    ("SkipLayerNormalization", ["x", "x2", "bias", "bias"], {"epsilon": 1e-5}),
])  # fmt: skip
def test_fusions(rng, op, inputs, attrs):
    arrays = {"x": (3, 8), "x2": (3, 8)}
    given = {n: rng.normal(size=arrays[n]).astype("float32") for n in inputs if n in arrays}
    check(op, given, {"bias": rng.normal(size=8).astype("float32")}, MS, order=inputs, **attrs)


def test_weights_stay_integers_and_are_not_folded(rng):
    """A QDQ convolution keeps int8 weights; nothing downstream of their dequantize is computed at load."""
    w = rng.integers(-127, 128, (4, 3, 3, 3)).astype("int8")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], name="dq", axis=0),
        helper.make_node("Conv", ["x", "wf"], ["y"], name="conv"),
    ]
    constants = {"w": w, "s": rng.uniform(0.01, 0.02, 4).astype("float32"), "z": np.zeros(4, "int8")}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    model = load_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
    layers = {b.var.name: b.value for b in ir.bindings(model.module)}
    assert ir.op_name(layers["conv"]) == "relax.nn.conv2d" and ir.op_name(layers["dq"]) == "relax.dequantize"
    np.testing.assert_array_equal(ir.value(layers["dq"].args[0]), w)


@pytest.mark.parametrize("block_axis", [0, 1])
@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8])
def test_blocked_weights(rng, kind, block_axis):
    """Group-wise 4-bit weights: the value is that of ONNX's reference, the storage two to a byte."""
    shape, block = (8, 12), 4
    groups = (2, 12) if block_axis == 0 else (8, 3)
    low, high = {TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15), TensorProto.INT8: (-128, 127)}[kind]
    w = rng.integers(low, high + 1, shape)
    zero = rng.integers(low, high + 1, groups)
    scale = rng.uniform(0.1, 0.2, groups).astype("float32")
    tensors = [
        helper.make_tensor("w", kind, shape, w.reshape(-1).tolist()), numpy_helper.from_array(scale, "s"),
        helper.make_tensor("z", kind, groups, zero.reshape(-1).tolist()),
    ]  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=block_axis, block_size=block),
        helper.make_node("MatMul", ["x", "wf"], ["y"]),
    ]
    info = [helper.make_tensor_value_info("x", 1, [2, 8])], [helper.make_tensor_value_info("y", 1, None)]
    model = load_proto(
        helper.make_model(helper.make_graph(nodes, "g", *info, tensors), opset_imports=[helper.make_opsetid("", 21)])
    )
    x = rng.normal(size=(2, 8)).astype("float32")
    wide = (w - np.repeat(zero, block, block_axis)) * np.repeat(scale, block, block_axis)
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ wide, rtol=1e-4, atol=1e-4)
    assert ("unpack_int4" in str(model.module)) == (kind != TensorProto.INT8)
