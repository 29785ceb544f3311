"""The files that the examples in `--help` speak of, made once for all tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tvmcompress.kernels.conv2d import Conv2d

ROOT = Path(__file__).parents[2]
SHAPE = (1, 3, 12, 12)


def network() -> onnx.ModelProto:
    """Two convolutions, a pool and a classifier: `x (1, 3, 12, 12)` to `y (1, 10)`."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(np.prod(shape[1:]) or 1)
        return numpy_helper.from_array((random.normal(size=shape) / scale).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "fc", transB=1),
    ]
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (10, 16), "b3": (10,)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10))],
        [weight(name, *shape) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def prepare(folder: Path) -> Path:
    """model.onnx, calib.npz, test.npz (with labels), x.npz; and small.model, small.tar, float.tar made of them.

    Also a tuning log, which stands for the user's own from now on, a copy of it, other.db, and its records, base.jsonl.
    """
    os.environ["TVMCOMPRESS_LOG"] = str(folder / "tuning.db")
    random = np.random.default_rng(1)
    images = random.normal(size=(12, *SHAPE[1:])).astype(np.float32)
    onnx.save(network(), folder / "model.onnx")
    np.savez(folder / "calib.npz", x=images)
    np.savez(folder / "test.npz", x=images[:4], labels=np.arange(4))
    np.savez(folder / "x.npz", x=images[:1])
    for arguments in (
        f"compress {folder}/model.onnx --recipe int8 --samples {folder}/calib.npz -o {folder}/small.model",
        f"compile {folder}/small.model -o {folder}/small.tar",
        f"compile {folder}/model.onnx -o {folder}/float.tar",
        f"tune {folder}/model.onnx --trials 4",
        f"log export -o {folder}/base.jsonl",
        f"log merge {folder}/tuning.db --log {folder}/other.db",
    ):
        assert quick(arguments) == 0, arguments
    return folder


def briefly(monkeypatch) -> None:
    """In this process tuning leaves a kernel alone after two trials without a gain, and confirms one of them.

    Break-even densities are found of one small layer, and from two densities.
    """
    for name, value in (("search.FLAT", 1), ("search.BATCH", 2), ("kernel.FINALISTS", 1), ("finals.ROUNDS", 1)):
        monkeypatch.setattr(f"tvmcompress.tuning.{name}", value)
    small = Conv2d(1, 5, 7, 16, 32, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    monkeypatch.setattr("tvmcompress.breakeven.LAYERS", {"1x1, 16 to 32, 5x7": small})
    monkeypatch.setattr("tvmcompress.breakeven.breakeven.__defaults__", ((0.1, 0.9), None))


def quick(arguments: str) -> int:
    """The command in this process; its exit code."""
    from tvmcompress.cli import main

    return main(arguments.split())


def tvmcompress(arguments: str | list[str], folder: Path, **options) -> subprocess.CompletedProcess:
    """The command as a shell would run it."""
    words = arguments.split() if isinstance(arguments, str) else arguments
    command = [sys.executable, "-m", "tvmcompress", *words]
    options = {"capture_output": True, "text": True, "timeout": 300, **options}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, **options)
