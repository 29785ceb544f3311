"""Single layers: every distinct 3x3 and 1x1 convolution of some networks that has at least 64 channels, as a share of
the processor's peak for its arithmetic. The times are those of the kernels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import onnx
from onnx import helper

import tvmcompress as tc
from scripts.benchmark.subjects import network, random_samples
from tests import networks
from tvmcompress import cpu

NETWORKS = "resnet18,resnet50,mobilenet_v2"
LEAST_CHANNELS = 64
BARS = {"float32": 0.85, "int8": 0.75}  # of the peak
PROFILE_S = 0.8


@dataclass(frozen=True, order=True)
class Layer:
    """A convolution of `size` x `size` pixels, padded so that the stride alone makes it smaller."""

    kernel: int
    size: int
    channels: int
    out: int
    stride: int

    def __str__(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel} {self.channels}→{self.out} {self.size}²{stride}"

    @property
    def macs(self) -> int:
        return (-(-self.size // self.stride) * self.kernel) ** 2 * self.channels * self.out

    def model(self) -> onnx.ModelProto:
        net = networks.Net()
        y = net.conv("input", self.channels, self.out, self.kernel, self.stride)
        size = -(-self.size // self.stride)
        return net.model((1, self.channels, self.size, self.size), y, (1, self.out, size, size))


def layers_of(proto: onnx.ModelProto, least: int = LEAST_CHANNELS) -> set[Layer]:
    """Of one image, with at least so many channels; shapes are inferred."""
    shapes, weights = shapes_of(proto)
    found = set()
    for node in proto.graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != "Conv" or given.get("group", 1) != 1 or set(given.get("dilations", [1])) != {1}:
            continue
        out, channels, *kernel = weights[node.input[1]]
        size, strides = shapes[node.input[0]][2:], given.get("strides", [1, 1])
        square = size[0] == size[1] and strides[0] == strides[1] and len(size) == 2
        if square and kernel in ([1, 1], [3, 3]) and min(out, channels) >= least:
            found.add(Layer(kernel[0], size[0], channels, out, strides[0]))
    return found


def shapes_of(proto: onnx.ModelProto) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Of activations, inferred, and of weights."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return shapes, {w.name: list(w.dims) for w in graph.initializer}


def measure(folder: Path, names: list[str], told: Callable[[dict], None]) -> list[dict]:
    """A row for each layer; `told` gets it as soon as it is there."""
    users: dict[Layer, list[str]] = {}
    for name in names:
        for layer in layers_of(network(name)):
            users.setdefault(layer, []).append(name)
    rows = []
    for layer in sorted(users):
        rows.append({"layer": str(layer), "shape": astuple(layer), "networks": users[layer], **one(layer, folder)})
        told(rows[-1])
    return rows


def one(layer: Layer, folder: Path) -> dict:
    """{precision: the kernel's row of a profile on all threads}."""
    path = folder / "layer.onnx"
    onnx.save(layer.model(), path)
    model, native = tc.load(path), tc.Target.load("native")
    small = tc.compress(model, "int8", samples=random_samples(model, 2))
    found = {}
    for key, source in (("float32", model), ("int8", small)):
        package = tc.compile(source, native)
        package.save(folder / "layer.tar")
        profile = tc.deploy(folder / "layer.tar", threads=cpu.usable()).profile(budget_s=PROFILE_S)
        (row,) = (kernel for kernel in profile.kernels if "macs" in kernel)
        found[key] = {k: row[k] for k in ("ms", "gmacs", "of_peak", "family", "arithmetic", "macs")}
        found[key]["peak_gmacs"] = profile.peaks[row["arithmetic"]]["gmacs"]
    return found


def meets(row: dict, precision: str) -> bool:
    return row[precision]["of_peak"] >= BARS[precision]
