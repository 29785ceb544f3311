"""Graphs of PT2E quantization, written out by hand with `torch.ops.quantized_decomposed`."""

from __future__ import annotations

import numpy as np
import pytest

from tvmcompress.frontend.torch import load_torch
from tvmcompress.ir import graph
from tvmcompress.ir.evaluate import evaluate

torch = pytest.importorskip("torch")
pytest.importorskip("torch.ao.quantization.fx._decomposed")
quantized = torch.ops.quantized_decomposed

SCALE = 1 / 32  # exact in float32, so that torch's x * (1 / scale) and our x / scale round alike


class Quantized(torch.nn.Module):
    """A convolution and a linear layer as PT2E leaves them: int8 weights per channel, 7-bit or 8-bit activations."""

    def __init__(self, tensor_params=False):
        super().__init__()
        self.tensor_params = tensor_params
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("conv_q", torch.randint(-127, 128, (6, 3, 3, 3), dtype=torch.int8, generator=generator))
        self.register_buffer("conv_scale", torch.rand(6, generator=generator) / 100 + 0.001)
        self.register_buffer("conv_zero", torch.zeros(6, dtype=torch.int64))
        self.register_buffer("fc_q", torch.randint(-127, 128, (5, 6), dtype=torch.int8, generator=generator))
        self.register_buffer("fc_scale", torch.rand(5, generator=generator) / 100 + 0.001)
        self.register_buffer("scale", torch.tensor([SCALE]))
        self.register_buffer("zero", torch.tensor([3]))
        self.register_buffer("bias", torch.rand(6, generator=generator))

    def fake(self, x, low=-128, high=127):
        args = (self.scale, self.zero) if self.tensor_params else (SCALE, 3)
        overload = "tensor" if self.tensor_params else "default"
        q = getattr(quantized.quantize_per_tensor, overload)(x, *args, low, high, torch.int8)
        return getattr(quantized.dequantize_per_tensor, overload)(q, *args, low, high, torch.int8)

    def forward(self, x):
        w = quantized.dequantize_per_channel(self.conv_q, self.conv_scale, self.conv_zero, 0, -127, 127, torch.int8)
        y = torch.nn.functional.conv2d(self.fake(x), w, self.bias).relu()
        y = self.fake(y, 0, 127).mean((2, 3))
        w = quantized.dequantize_per_channel(self.fc_q, self.fc_scale, None, 0, -127, 127, torch.int8)
        return torch.nn.functional.linear(self.fake(y), w)


@pytest.mark.parametrize("tensor_params", [False, True])
def test_static(tensor_params):
    module = Quantized(tensor_params)
    x = torch.randn(2, 3, 6, 6)
    model = load_torch(module, (x,))
    got = evaluate(model.module, [x.numpy()])[0]
    np.testing.assert_allclose(got, module(x).numpy(), atol=1e-4)


def test_weights_stay_int8_beside_their_layers():
    model = load_torch(Quantized(), (torch.randn(1, 3, 6, 6),))
    known = graph.definitions(model.module)
    for op in ("relax.nn.conv2d", "relax.matmul"):
        layer = next(e for e in known.values() if graph.op_name(e) == op)
        weight = known[layer.args[1]]
        assert graph.op_name(weight) == "relax.dequantize"
        assert graph.is_const(weight.args[0]) and graph.dtype(weight.args[0]) == "int8"
        assert graph.dtype(weight.args[2]) == "int8"
        assert int(weight.attrs.axis) % len(graph.shape(weight.args[0])) == (0 if "conv" in op else 1)


def test_narrow_range_is_a_clip():
    model = load_torch(Quantized(), (torch.randn(1, 3, 6, 6),))
    clips = [b.value for b in graph.bindings(model.module) if graph.op_name(b.value) == "relax.clip"]
    assert len(clips) == 1
    assert [int(a.value) for a in clips[0].args[1:]] == [0, 127]


def test_quantize_per_channel():
    class Channels(torch.nn.Module):
        def forward(self, x):
            scales, zeros = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, 0, -5])
            q = quantized.quantize_per_channel(x, scales, zeros, 1, -100, 100, torch.int8)
            return q, quantized.dequantize_per_channel(q, scales, zeros, 1, -100, 100, torch.int8)

    x = torch.randn(2, 3, 4) * 20
    got = evaluate(load_torch(Channels(), (x,)).module, [x.numpy()])
    for g, w in zip(got, Channels()(x)):
        np.testing.assert_allclose(g, w.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["choose_qparams", "choose_qparams_symmetric"])
def test_dynamic(name):
    class Dynamic(torch.nn.Module):
        def forward(self, x):
            scale, zero = getattr(quantized, name).tensor(x, -128, 127, 1e-6, torch.int8)
            q = quantized.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
            return quantized.dequantize_per_tensor.tensor(q, scale, zero, -128, 127, torch.int8)

    x = torch.randn(4, 5)
    got = evaluate(load_torch(Dynamic(), (x,)).module, [x.numpy()])[0]
    np.testing.assert_allclose(got, Dynamic()(x).numpy(), atol=1e-5)
