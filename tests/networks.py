"""Well-known networks as ONNX models with seeded weights, built without any download.

Batch norms carry statistics that keep activations in a sane range, as training would have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
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

    def conv(
        self, x: str, ic: int, oc: int, k: int = 1, stride: int = 1, groups: int = 1, act: str = "Relu", bn: bool = True
    ) -> str:
        fan = ic // groups * k * k
        w = self.rng.standard_normal((oc, ic // groups, k, k)).astype(np.float32) * np.float32(np.sqrt(2 / fan))
        pad = k // 2
        y = self.node(
            "Conv", [x, self.weight(w)], kernel_shape=[k, k], strides=[stride, stride], pads=[pad] * 4, group=groups
        )
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

    def model(
        self, shape: tuple[int, ...], output: str, out_shape: tuple[int, ...], dtype: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", dtype, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def resnet(
    blocks: tuple[int, ...], bottleneck: bool, size: int = 224, classes: int = 1000, width: int = 64
) -> onnx.ModelProto:
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


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


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


def squeeze(size: int = 64, classes: int = 10) -> onnx.ModelProto:
    """MobileNetV3-like: squeeze-excite, hard-swish, 5x5 depthwise."""
    net = Net()
    x = net.conv("input", 3, 16, 3, 2, act="HardSwish")
    channels = 16
    for mid, out, k, stride, act in ((64, 24, 3, 2, "Relu"), (72, 24, 5, 1, "HardSwish"), (96, 40, 5, 2, "HardSwish")):
        y = net.conv(x, channels, mid, act=act)
        y = net.conv(y, mid, mid, k, stride, groups=mid, act=act)
        gate = net.node("GlobalAveragePool", [y])
        gate = net.conv(gate, mid, mid // 4, bn=False)
        gate = net.conv(gate, mid // 4, mid, act="HardSigmoid", bn=False)
        y = net.conv(net.node("Mul", [y, gate]), mid, out, act="")
        x = net.node("Add", [x, y]) if stride == 1 and channels == out else y
        channels = out
    y = net.head(x, channels, classes)
    return net.model((1, 3, size, size), y, (1, classes))


def shuffle(size: int = 64, classes: int = 10) -> onnx.ModelProto:
    """ShuffleNetV2-like: split, concat and channel shuffle; a sigmoid-weighted unit at the end."""
    net = Net()
    x = net.conv("input", 3, 24, 3, 2)
    c, half, s = 24, 12, size // 2
    for _ in range(3):
        left, right = net.name("left"), net.name("right")
        net.nodes.append(
            helper.make_node("Split", [x, net.weight(np.array([half, half]))], [left, right], name=left, axis=1)
        )
        y = net.conv(right, half, half)
        y = net.conv(y, half, half, 3, groups=half, act="")
        y = net.conv(y, half, half)
        y = net.node("Concat", [left, y], axis=1)
        y = net.node("Reshape", [y, net.weight(np.array([1, 2, half, s, s]))])
        y = net.node("Transpose", [y], perm=[0, 2, 1, 3, 4])
        x = net.node("Reshape", [y, net.weight(np.array([1, c, s, s]))])
    x = net.node("Mul", [x, net.node("Sigmoid", [x])])
    y = net.head(net.node("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2]), c, classes)
    return net.model((1, 3, size, size), y, (1, classes))


def unet(size: int = 64, width: int = 16) -> onnx.ModelProto:
    """Down, up by transposed convolution, skip connections by concat, leaky ReLU."""
    net = Net()
    a = net.conv(net.conv("input", 3, width, 3), width, width, 3, act="LeakyRelu")
    b = net.node("MaxPool", [a], kernel_shape=[2, 2], strides=[2, 2])
    b = net.conv(net.conv(b, width, 2 * width, 3), 2 * width, 2 * width, 3)
    c = net.node("MaxPool", [b], kernel_shape=[2, 2], strides=[2, 2])
    c = net.conv(c, 2 * width, 4 * width, 3)
    for skip, channels in ((b, 2 * width), (a, width)):
        w = net.rng.standard_normal((2 * channels, channels, 2, 2)).astype(np.float32) * np.float32(
            np.sqrt(1 / channels)
        )
        up = net.node("ConvTranspose", [c, net.weight(w)], kernel_shape=[2, 2], strides=[2, 2])
        c = net.conv(net.node("Concat", [up, skip], axis=1), 2 * channels, channels, 3)
    y = net.conv(c, width, 2, act="Sigmoid", bn=False)
    return net.model((1, 3, size, size), y, (1, 2, size, size))


def detector(size: int = 64) -> onnx.ModelProto:
    """A feature pyramid: nearest upsampling, additions across scales, SiLU, one head on each of two scales."""
    net = Net()

    def silu(x: str) -> str:
        return net.node("Mul", [x, net.node("Sigmoid", [x])])

    a = silu(net.conv("input", 3, 16, 3, 2, act=""))
    b = silu(net.conv(a, 16, 32, 3, 2, act=""))
    c = silu(net.conv(b, 32, 64, 3, 2, act=""))
    lateral = net.conv(b, 32, 32, act="", bn=False)
    top = net.conv(c, 64, 32, act="", bn=False)
    scales = net.weight(np.array([1, 1, 2, 2], np.float32))
    up = net.node(
        "Resize", [top, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    merged = net.conv(net.node("Add", [lateral, up]), 32, 32, 3)
    heads = []
    for x, s in ((merged, size // 4), (top, size // 8)):
        y = net.conv(x, 32, 12, 3, act="", bn=False)
        heads.append(net.node("Reshape", [y, net.weight(np.array([1, 12, s * s]))]))
    y = net.node("Sigmoid", [net.node("Concat", heads, axis=2)])
    return net.model((1, 3, size, size), y, (1, 12, (size // 4) ** 2 + (size // 8) ** 2))


def transformer(
    size: int = 32, patch: int = 8, dim: int = 48, heads: int = 3, depth: int = 2, classes: int = 10
) -> onnx.ModelProto:
    """A vision transformer: patches by a convolution, attention, GELU, layer norm."""
    net = Net()
    tokens = (size // patch) ** 2
    w = net.rng.standard_normal((dim, 3, patch, patch)).astype(np.float32) / np.float32(patch * np.sqrt(3))
    x = net.node("Conv", ["input", net.weight(w)], kernel_shape=[patch, patch], strides=[patch, patch])
    x = net.node("Reshape", [x, net.weight(np.array([1, dim, tokens]))])
    x = net.node("Transpose", [x], perm=[0, 2, 1])
    x = net.node("Add", [x, net.weight(net.rng.standard_normal((1, tokens, dim)).astype(np.float32) * np.float32(0.2))])

    def norm(x: str) -> str:
        gain = 1 + 0.1 * net.rng.standard_normal(dim).astype(np.float32)
        return net.node("LayerNormalization", [x, net.weight(gain), net.weight(np.zeros(dim, np.float32))], axis=-1)

    def project(x: str, n: int, m: int) -> str:
        w = net.rng.standard_normal((n, m)).astype(np.float32) / np.float32(np.sqrt(n))
        b = net.weight(net.rng.standard_normal(m).astype(np.float32) * np.float32(0.05))
        return net.node("Add", [net.node("MatMul", [x, net.weight(w)]), b])

    def split_heads(x: str, perm: list[int]) -> str:
        y = net.node("Reshape", [x, net.weight(np.array([1, tokens, heads, dim // heads]))])
        return net.node("Transpose", [y], perm=perm)

    for _ in range(depth):
        h = norm(x)
        q, k, v = (split_heads(project(h, dim, dim), p) for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = net.node("Mul", [net.node("MatMul", [q, k]), net.weight(np.float32((dim // heads) ** -0.5))])
        mixed = net.node("MatMul", [net.node("Softmax", [scores], axis=-1), v])
        mixed = net.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = net.node("Reshape", [mixed, net.weight(np.array([1, tokens, dim]))])
        x = net.node("Add", [x, project(mixed, dim, dim)])
        h = project(norm(x), dim, 4 * dim)
        inner = net.node("Erf", [net.node("Mul", [h, net.weight(np.float32(2**-0.5))])])
        h = net.node(
            "Mul",
            [net.node("Mul", [h, net.node("Add", [inner, net.weight(np.float32(1))])]), net.weight(np.float32(0.5))],
        )
        x = net.node("Add", [x, project(h, 4 * dim, dim)])
    y = net.node("ReduceMean", [norm(x)], axes=[1], keepdims=0)
    y = net.linear(y, dim, classes)
    return net.model((1, 3, size, size), y, (1, classes))


EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def efficientnet(size: int = 224, classes: int = 1000) -> onnx.ModelProto:
    """EfficientNet-B0: inverted bottlenecks with squeeze-excite and SiLU."""
    net = Net()

    def silu(x: str) -> str:
        return net.node("Mul", [x, net.node("Sigmoid", [x])])

    x, channels = silu(net.conv("input", 3, 32, 3, 2, act="")), 32
    for expand, out, count, first, k in EFFICIENTNET_B0:
        for block in range(count):
            stride, mid = first if not block else 1, channels * expand
            y = silu(net.conv(x, channels, mid, act="")) if expand > 1 else x
            y = silu(net.conv(y, mid, mid, k, stride, groups=mid, act=""))
            gate = net.node("GlobalAveragePool", [y])
            gate = silu(net.conv(gate, mid, max(channels // 4, 8), act="", bn=False))
            gate = net.node("Sigmoid", [net.conv(gate, max(channels // 4, 8), mid, act="", bn=False)])
            y = net.conv(net.node("Mul", [y, gate]), mid, out, act="")
            x = net.node("Add", [x, y]) if stride == 1 and channels == out else y
            channels = out
    x = silu(net.conv(x, channels, 1280, act=""))
    y = net.head(x, 1280, classes)
    return net.model((1, 3, size, size), y, (1, classes))


def keyword_spotter(classes: int = 12) -> onnx.ModelProto:
    """DS-CNN: 49 frames of 10 coefficients, four depthwise-separable blocks of 64 channels."""
    net = Net()
    w = net.rng.standard_normal((64, 1, 10, 4)).astype(np.float32) * np.float32(np.sqrt(2 / 40))
    x = net.node("Conv", ["input", net.weight(w)], kernel_shape=[10, 4], strides=[2, 2], pads=[4, 1, 5, 1])
    x = net.node("Relu", [x])
    for _ in range(4):
        x = net.conv(net.conv(x, 64, 64, 3, groups=64), 64, 64)
    return net.model((1, 1, 49, 10), net.head(x, 64, classes), (1, classes))


def recurrent(steps: int = 50, features: int = 64, hidden: int = 128, classes: int = 10) -> onnx.ModelProto:
    """Two LSTM layers over a sequence, a linear head on the last state."""
    net = Net()
    x, size = net.node("Transpose", ["input"], perm=[1, 0, 2]), features
    for _ in range(2):
        weights = [
            net.weight((net.rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))
            for shape in ((1, 4 * hidden, size), (1, 4 * hidden, hidden))
        ]
        y = net.node("LSTM", [x, *weights, net.weight(np.zeros((1, 8 * hidden), np.float32))], hidden_size=hidden)
        x, size = net.node("Squeeze", [y, net.weight(np.array([1]))]), hidden
    last = net.node("Gather", [x, net.weight(np.array([-1]))], axis=0)
    last = net.node("Reshape", [last, net.weight(np.array([1, hidden]))])
    return net.model((1, steps, features), net.linear(last, hidden, classes), (1, classes))


def vision_transformer() -> onnx.ModelProto:
    """ViT-tiny."""
    return transformer(224, 16, 192, 3, 12, 1000)


def encoder(
    tokens: int = 128, dim: int = 384, heads: int = 12, depth: int = 6, vocabulary: int = 8000
) -> onnx.ModelProto:
    """A text encoder of MiniLM's size: words in, their mean out. (30522 words only add a table.)"""
    net = Net()

    def table(count: int) -> str:
        return net.weight(net.rng.standard_normal((count, dim)).astype(np.float32) * np.float32(0.5))

    def norm(x: str) -> str:
        gain = 1 + 0.1 * net.rng.standard_normal(dim).astype(np.float32)
        return net.node("LayerNormalization", [x, net.weight(gain), net.weight(np.zeros(dim, np.float32))], axis=-1)

    def project(x: str, n: int, m: int) -> str:
        w = net.weight(net.rng.standard_normal((n, m)).astype(np.float32) / np.float32(np.sqrt(n)))
        b = net.weight(net.rng.standard_normal(m).astype(np.float32) * np.float32(0.05))
        return net.node("Add", [net.node("MatMul", [x, w]), b])

    def split_heads(x: str, perm: list[int]) -> str:
        y = net.node("Reshape", [x, net.weight(np.array([0, 0, heads, dim // heads]))])
        return net.node("Transpose", [y], perm=perm)

    x = norm(net.node("Add", [net.node("Gather", [table(vocabulary), "input"]), table(tokens)]))
    for _ in range(depth):
        q, k, v = (split_heads(project(x, dim, dim), p) for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = net.node("Div", [net.node("MatMul", [q, k]), net.weight(np.float32((dim // heads) ** 0.5))])
        mixed = net.node("MatMul", [net.node("Softmax", [scores], axis=-1), v])
        mixed = net.node(
            "Reshape", [net.node("Transpose", [mixed], perm=[0, 2, 1, 3]), net.weight(np.array([0, 0, dim]))]
        )
        x = norm(net.node("Add", [x, project(mixed, dim, dim)]))
        h = project(x, dim, 4 * dim)
        inner = net.node("Erf", [net.node("Div", [h, net.weight(np.float32(2**0.5))])])
        gate = net.node("Add", [inner, net.weight(np.float32(1))])
        h = net.node("Mul", [net.node("Mul", [h, gate]), net.weight(np.float32(0.5))])
        x = norm(net.node("Add", [project(h, 4 * dim, dim), x]))
    y = net.node("ReduceMean", [x], axes=[1], keepdims=0)
    return net.model((1, tokens), y, (1, dim), TensorProto.INT64)


def light(name: str) -> onnx.ModelProto:
    """A network that the onnx package carries without its weights, with seeded ones: its only input is the image."""
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    rng = np.random.default_rng(0)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = constants[node.input[0]]
        if len(shape) == 1:  # biases, and the scales and variances of batch norms, which must be positive
            norm = "bn" in node.output[0]
            value = rng.uniform(0.5, 1.5, shape) if norm else rng.uniform(-0.1, 0.1, shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    given = [v for v in model.graph.input if v.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(given)
    model.ir_version = 8
    return onnx.version_converter.convert_version(model, 13)


SMALL = {
    "small": small,
    "squeeze": squeeze,
    "shuffle": shuffle,
    "unet": unet,
    "detector": detector,
    "transformer": transformer,
}
