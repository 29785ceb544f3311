"""Counts worked out by hand, on small programs and on files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tvm import relax

from tvmcompress.inspection import inspect
from tvmcompress.ir import graph, ops
from tvmcompress.ir.macs import macs
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec

DATA = Path(__file__).parent / "frontend" / "data"


def model_of(module, *inputs):
    return Model(module, tuple(TensorSpec(*i) for i in inputs), (), Source("net.onnx", "onnx", 1000, "0" * 64))


def float_program():
    """Four layers: a grouped convolution, a transposed one, a dense layer, and a product of two activations."""
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=(8, 2, 3, 3)).astype(np.float32)
    sparse[:4] = 0

    def body(rewriter, x):
        grouped = rewriter.emit(relax.op.nn.conv2d(x, graph.const(sparse), 2, 1, groups=2), "grouped")
        up_weight = graph.const(rng.normal(size=(8, 3, 2, 2)).astype(np.float32))
        raised = rewriter.emit(relax.op.nn.conv2d_transpose(grouped, up_weight, 2), "raised")
        flat = rewriter.emit(relax.op.reshape(raised, [3, 64]), "flat")
        dense = rewriter.emit(relax.op.matmul(flat, graph.const(np.ones((64, 10), np.float32))), "dense")
        return [rewriter.emit(relax.op.matmul(dense, relax.op.permute_dims(dense)), "square")]

    return graph.program([("x", (1, 4, 8, 8), "float32")], body)


def quantized_program(groupwise=False):
    """A convolution on integers, one with quantized weights only, and a group-wise product of quantized data."""

    def body(rewriter, x):
        q = rewriter.emit(ops.quantize(x, 0.1, 3, "uint8"))
        data = rewriter.emit(relax.op.permute_dims(rewriter.emit(ops.dequantize(q, 0.1, 3)), [0, 3, 1, 2]))
        weight = np.zeros((5, 4, 1, 1), np.int8)
        weight[0] = 7
        scale, zero = np.full(5, 0.1, np.float32), np.zeros(5, np.int8)
        w = rewriter.emit(ops.dequantize(graph.const(weight), scale, zero, 0))
        first = rewriter.emit(relax.op.nn.conv2d(data, w), "first")
        w2 = rewriter.emit(ops.dequantize(graph.const(np.ones((5, 5, 1, 1), np.int8)), scale, zero, 0))
        second = rewriter.emit(relax.op.nn.conv2d(first, w2), "second")
        if not groupwise:
            return [second]
        rows = rewriter.emit(relax.op.reshape(data, [9, 4]))
        packed = graph.const(ops.pack_int4(np.array([[0, 1], [2, 0], [0, 0], [1, 1]] * 2, np.int8)))
        groups = np.full(8, 0.1, np.float32), np.zeros(8, np.int8)
        wide = rewriter.emit(ops.dequantize(rewriter.emit(ops.unpack_int4(packed)), *groups, 0))
        return [rewriter.emit(relax.op.matmul(rows, rewriter.emit(relax.op.reshape(wide, [4, 4]))), "groups")]

    return graph.remove_dead(graph.program([("x", (1, 3, 3, 4), "float32")], body))


def test_macs_by_hand():
    got = {layer.name: layer.macs for layer in macs(float_program())}
    assert got == {
        "grouped": 1 * 8 * 4 * 4 * (2 * 3 * 3),  # out (1, 8, 4, 4)
        "raised": 1 * 8 * 4 * 4 * (3 * 2 * 2),  # each input goes to 3 channels of 2 x 2
        "dense": 3 * 10 * 64,
        "square": 3 * 3 * 10,
    }


def test_what_counts_as_integer():
    assert {layer.name: layer.integer for layer in macs(quantized_program())} == {"first": True, "second": False}
    assert {layer.name: layer.integer for layer in macs(quantized_program(groupwise=True))} == {"groups": False}


def test_float_model():
    found = inspect(model_of(float_program(), ("x", (1, 4, 8, 8), "float32")))
    assert found.parameters == 8 * 2 * 9 + 8 * 3 * 4 + 640
    assert found.weight_bytes == 4 * found.parameters
    assert found.integer_share == 0
    assert found.integer_share_after_int8 == pytest.approx(1 - 90 / found.macs)  # all but the product of activations
    assert {layer.name: layer.sparsity for layer in found.layers} == {
        "grouped": 0.5,
        "raised": 0,
        "dense": 0,
        "square": None,
    }
    assert found.macs_by_op == {"conv2d": 2304, "matmul": 1920 + 90, "conv2d_transpose": 1536}


def test_quantized_model():
    found = inspect(model_of(quantized_program(), ("x", (1, 3, 3, 4), "float32")))
    assert found.parameters == 20 + 25
    assert found.integer_share == pytest.approx(180 / (180 + 225))
    assert found.integer_share_after_int8 == 1
    assert [layer.sparsity for layer in found.layers] == [0.8, 0]


def test_four_bit_weights_count_twice_a_byte():
    found = inspect(model_of(quantized_program(groupwise=True), ("x", (1, 3, 3, 4), "float32")))
    assert found.parameters == 16
    assert found.layers[0].sparsity == 0.5


def test_nothing_runs_in_integers_on_cuda():
    found = inspect(model_of(quantized_program()), "cuda-sm86")
    assert found.target == "cuda-sm86" and found.integer_share == 0 and found.integer_share_after_int8 == 0


def test_tables_and_json():
    found = inspect(model_of(float_program(), ("x", (1, 4, 8, 8), "float32")))
    rows = dict(found.rows())
    assert rows["input"] == "x: float32 1x4x8x8" and rows["MACs"] == "5,850"
    assert found.layer_rows()[0] == ("grouped", "conv2d", "2,304", "float", "50.0%", "channels")
    again = json.loads(json.dumps(found.to_json()))
    assert again["macs"] == 5850 and again["layers"][0]["name"] == "grouped" and again["unsupported"] == []


def test_file():
    pytest.importorskip("tflite")
    found = inspect(DATA / "convnet-int8.tflite", "rpi4")
    assert found.integer_share == 1 and found.target == "rpi4"
    assert found.inputs[0] == TensorSpec("x", (1, 12, 12, 4), "int8")
    # conv 6x6x8 outputs of 36, depthwise 6x6x8 of 9, dense 8x5
    assert found.macs == 6 * 6 * 8 * 36 + 6 * 6 * 8 * 9 + 40


def test_unsupported_operators_are_reported(tmp_path):
    torch = pytest.importorskip("torch")

    class Odd(torch.nn.Module):
        def forward(self, x):
            return {"y": torch.special.bessel_j0(x)}

    path = tmp_path / "odd.pt2"
    torch.export.save(torch.export.export(Odd(), (torch.ones(2, 3),)), path)
    found = inspect(path)
    assert [row[:3] for row in found.unsupported] == [("special_bessel_j0.default", "aten", 1)]
    assert found.inputs == (TensorSpec("x", (2, 3), "float32"),)
    assert found.outputs == (TensorSpec("y", (2, 3), "float32"),)
    assert any(label == "unsupported" and "bessel" in text for label, text in found.rows())
    assert found.macs == 0 and found.integer_share is None


def test_unsupported_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="made.up")
    inputs = [helper.make_tensor_value_info("x", kind, ["n", 3])]
    outputs = [helper.make_tensor_value_info("y", kind, [2, 3])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("made.up", 1)]
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=imports), str(path))
    found = inspect(path, shapes={"x": (2, 3)})
    assert found.unsupported[0][:3] == ("Frobnicate", "made.up", 1)
    assert found.inputs == (TensorSpec("x", (None, 3), "float32"),)
    assert found.outputs == (TensorSpec("y", (2, 3), "float32"),)
