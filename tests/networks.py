"""Well-known networks as ONNX models with seeded weights, built without any download.

Batch norms carry statistics that keep activations in a sane range, as training would have.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """Collects nodes and weights; every method returns the name of its result."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def weight(self, array: np.ndarray, kind: str = "w") -> str:
        name = self.name(kind)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes) -> str:
        out = self.name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def conv(self, x: str, ic: int, oc: int, k: int = 1, stride: int = 1, groups: int = 1, act: str = "Relu", bn: bool = True) -> str:
        fan = ic // groups * k * k
        w = self.rng.standard_normal((oc, ic // groups, k, k)).astype(np.float32) * np.float32(np.sqrt(2 / fan))
        pad = k // 2
        y = self.node("Conv", [x, self.weight(w)], kernel_shape=[k, k], strides=[stride, stride], pads=[pad] * 4, group=groups)
        if bn:
            u = lambda low, high: self.rng.uniform(low, high, oc).astype(np.float32)  # noqa: E731
            parameters = [u(0.7, 1.3), u(-0.3, 0.3), u(-0.2, 0.2), u(0.7, 1.5)]
            y = self.node("BatchNormalization", [y, *[self.weight(p, "bn") for p in parameters]])
        if act == "Relu6":
            zero, six = self.weight(np.float32(0), "c"), self.weight(np.float32(6), "c")
            return self.node("Clip", [y, zero, six])
        return self.node(act, [y]) if act else y

    def linear(self, x: str, ic: int, oc: int) -> str:
        w = self.rng.standard_normal((oc, ic)).astype(np.float32) / np.float32(np.sqrt(ic))
        b = self.rng.standard_normal(oc).astype(np.float32) * np.float32(0.1)
        return self.node("Gemm", [x, self.weight(w), self.weight(b)], transB=1)

    def head(self, x: str, channels: int, classes: int) -> str:
        y = self.node("GlobalAveragePool", [x])
        return self.linear(self.node("Flatten", [y]), channels, classes)

    def model(self, shape: tuple[int, ...], output: str, out_shape: tuple[int, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def resnet(blocks: tuple[int, ...], bottleneck: bool, size: int = 224, classes: int = 1000, width: int = 64) -> onnx.ModelProto:
    net = Net()
    x = net.conv("input", 3, width, 7, 2)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for stage, count in enumerate(blocks):
        mid = width << stage
        out = mid * 4 if bottleneck else mid
        for block in range(count):
            stride = 2 if stage and not block else 1
            short = x if stride == 1 and channels == out else net.conv(x, channels, out, 1, stride, act="")
            if bottleneck:
                y = net.conv(x, channels, mid)
                y = net.conv(y, mid, mid, 3, stride)
                y = net.conv(y, mid, out, act="")
            else:
                y = net.conv(x, channels, mid, 3, stride)
                y = net.conv(y, mid, out, 3, act="")
            x = net.node("Relu", [net.node("Add", [y, short])])
            channels = out
    y = net.head(x, channels, classes)
    return net.model((1, 3, size, size), y, (1, classes))


def resnet18(size: int = 224) -> onnx.ModelProto:
    return resnet((2, 2, 2, 2), False, size)


def resnet50(size: int = 224) -> onnx.ModelProto:
    return resnet((3, 4, 6, 3), True, size)


MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    net = Net()
    x, channels = net.conv("input", 3, 32, 3, 2, act="Relu6"), 32
    for expand, out, count, first in MOBILENET_V2:
        for block in range(count):
            stride, mid = first if not block else 1, channels * expand
            y = net.conv(x, channels, mid, act="Relu6") if expand > 1 else x
            y = net.conv(y, mid, mid, 3, stride, groups=mid, act="Relu6")
            y = net.conv(y, mid, out, act="")
            x = net.node("Add", [x, y]) if stride == 1 and channels == out else y
            channels = out
    x = net.conv(x, channels, 1280, act="Relu6")
    y = net.head(x, 1280, classes)
    return net.model((1, 3, size, size), y, (1, classes))


def small(size: int = 16, classes: int = 10) -> onnx.ModelProto:
    """A few thousand weights with every usual ingredient: strides, depthwise, residual, pooling, a linear head."""
    net = Net()
    x = net.conv("input", 3, 16, 3, 2)
    y = net.conv(x, 16, 16, 3, groups=16, act="Relu6")
    y = net.conv(y, 16, 16, act="")
    x = net.node("Add", [x, y])
    x = net.conv(x, 16, 24, 3, 2)
    y = net.head(x, 24, classes)
    return net.model((1, 3, size, size), y, (1, classes))
