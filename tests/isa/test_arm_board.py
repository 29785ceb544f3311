"""Integer and float products compiled for ARM, on the emulated board: integers bit by bit, floats within 1e-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tvm import relax

import tvmcompress as tc
from tests import reference
from tests.arm_board import ArmBoard, arm_board  # noqa: F401  a fixture
from tests.lower.tools import dequantized, quantized, random_bytes, weights
from tests.test_arm_board import cross_compile
from tvmcompress.ir import graph
from tvmcompress.ir.evaluate import evaluate
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.lower import sparse
from tvmcompress.lower.sparse_layers import SparseLayers
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target

# n, h, w, c, oc, kernel, strides, padding, dilation, groups
SHAPES = [
    Conv2d(1, 9, 11, 3, 10, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    Conv2d(1, 8, 7, 16, 24, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    Conv2d(2, 7, 6, 8, 12, (3, 2), (1, 1), (0, 1, 2, 0), (2, 1), 2),
    Conv2d(1, 9, 9, 20, 20, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 20),
    Conv2d(1, 26, 29, 32, 40, (3, 3), (1, 1), (1, 1, 0, 2), (1, 1)),  # Winograd's
    Conv2d(1, 26, 19, 32, 40, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),  # the same with whole kernels that are zero
]

GROUPS, KERNELS = 4, 5  # of these the ones whose weights are 1:4, or in blocks of whole kernels, where they are sparse


def first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def relax_conv(x, w, conv: Conv2d):
    return relax.op.nn.conv2d(x, w, list(conv.strides), list(conv.padding), list(conv.dilation), conv.groups)


def emptied(w: np.ndarray, seed: int) -> np.ndarray:
    """(outputs, inputs, …) with zeros: in blocks, anywhere, or of each four inputs all but one."""
    if seed == GROUPS:
        scores = np.random.default_rng(seed).random((w.shape[0], w.shape[1] // 4, 4, *w.shape[2:]))
        return w * (scores.argsort(2) == 0).reshape(w.shape).astype(w.dtype)
    height, width = (8, 1) if seed == KERNELS else (8, 4) if seed % 2 else (1, 1)
    coarse = (-(-w.shape[0] // height), -(-w.shape[1] // width), *(w.shape[2:] if seed != KERNELS else (1, 1)))
    mask = np.random.default_rng(seed).random(coarse) < (0.6 if seed == KERNELS else 0.2)
    mask = np.repeat(np.repeat(mask, height, 0), width, 1)[: w.shape[0], : w.shape[1]]
    return w * mask.astype(w.dtype)


def everything(sparse: bool = False) -> tuple[Model, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A model of several products, its inputs, and what NumPy makes of them. `sparse`: most weights are zero."""
    specs, builds, inputs, wanted = [], [], {}, {}

    def case(array: np.ndarray, build, result: np.ndarray) -> None:
        name = f"{len(specs)}"
        specs.append(TensorSpec(f"x{name}", array.shape, str(array.dtype)))
        builds.append(build)
        inputs[f"x{name}"], wanted[f"y{name}"] = array, result

    rng = np.random.default_rng(0)
    for i, conv in enumerate(SHAPES):
        w = random_bytes((conv.oc, conv.c // conv.groups, *conv.kernel), "int8", i)
        w = emptied(w, i) if sparse else w
        for dtype in ("uint8", "int8"):
            x = random_bytes((conv.n, conv.h, conv.w, conv.c), dtype, i)
            sums = reference.conv2d(x, w, conv, 7) - 7 * w.astype(np.int64).sum((1, 2, 3))
            factor = (np.float32(np.float64(np.float32(0.5)) * np.float32(0.01)) / np.float32(2.0)).astype(np.float32)

            def integer(rw, q, w=w, conv=conv, dtype=dtype):
                y = rw.emit(relax_conv(dequantized(rw, q, 0.5, 7), weights(rw, w), conv))
                return quantized(rw, y, 2.0, 4, dtype)

            case(first(x), integer, first(reference.requantize(sums, factor, 4, dtype)))
        x = rng.standard_normal((conv.n, conv.h, conv.w, conv.c)).astype(np.float32)
        floats = w.astype(np.float32) / 64

        def real(rw, data, floats=floats, conv=conv):
            return rw.emit(relax_conv(data, graph.const(floats), conv))

        case(first(x), real, first(reference.conv2d(x, floats, conv)))
    for dtype in ("uint8", "int8"):
        x, w = random_bytes((5, 77), dtype, 3), random_bytes((77, 19), "int8", 4)
        w = np.ascontiguousarray(emptied(w.T, len(specs)).T) if sparse else w

        def product(rw, q, w=w):
            y = rw.emit(relax.op.matmul(dequantized(rw, q, 1.0, 9), weights(rw, w, 1, 1.0)))
            return rw.emit(relax.op.astype(y, "int32"))

        case(x, product, (x.astype(np.int64) - 9) @ w.astype(np.int64))
    x = rng.standard_normal((3, 40)).astype(np.float32) * 20

    def functions(rw, data):
        y = rw.emit(relax.op.add(rw.emit(relax.op.sigmoid(data)), rw.emit(relax.op.tanh(data))))
        return rw.emit(relax.op.add(y, rw.emit(relax.op.nn.softmax(data, -1))))

    power = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    case(x, functions, 1 / (1 + np.exp(-x.astype(np.float64))) + np.tanh(x) + power / power.sum(-1, keepdims=True))
    module = graph.program(
        [(s.name, s.shape, s.dtype) for s in specs], lambda rw, *data: [b(rw, d) for b, d in zip(builds, data)]
    )
    outputs = tuple(TensorSpec(f"y{i}", graph.shape(r), graph.dtype(r)) for i, r in enumerate(graph.results(module)))
    return Model(module, tuple(specs), outputs, Source("products", "test", 0, "")), inputs, wanted


def check(board: ArmBoard, target: str, folder: Path, sparse: bool = False, groups: int = 0) -> None:
    """`groups`: so many layers at least have lanes that pick their inputs."""
    cross_compile(target, folder)  # skips where no cross compiler is installed
    model, inputs, wanted = everything(sparse)
    package = tc.compile(model, Target.load(target), keep="always")
    assert package.manifest["fallbacks"] == []
    rows = package.manifest["layers"]
    assert any(row.get("algorithm") == "winograd" for row in rows) or sparse
    assert sum(row.get("sparse", {}).get("kept", False) for row in rows) == (
        14 if sparse else 0
    )  # all but grouped ones
    assert any(row.get("sparse", {}).get("format", "").endswith("kernels") for row in rows) == sparse
    assert sum(row.get("sparse", {}).get("format", "").endswith("groups") for row in rows) >= groups
    package.save(folder / "products.tar")
    results = board.run_package(folder / "products.tar", inputs)
    for name, expected in wanted.items():
        if results[name].dtype == np.float32:
            np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(results[name], expected, err_msg=name)


def test_with_the_dot_product(arm_board: ArmBoard, tmp_path: Path) -> None:  # noqa: F811
    check(arm_board, "rpi5", tmp_path)


def test_without_it_on_an_older_core(arm_board: ArmBoard, tmp_path: Path) -> None:  # noqa: F811
    check(arm_board.with_cpu("cortex-a53"), "rpi4", tmp_path)


def test_sparse_with_the_dot_product(arm_board: ArmBoard, tmp_path: Path) -> None:  # noqa: F811
    check(arm_board, "rpi5", tmp_path, sparse=True, groups=3)


def test_sparse_without_it_on_an_older_core(arm_board: ArmBoard, tmp_path: Path) -> None:  # noqa: F811
    check(arm_board.with_cpu("cortex-a53"), "rpi4", tmp_path, sparse=True, groups=1)


def test_planes_that_end_with_half_a_register(arm_board: ArmBoard, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    """Sparse layers of floats in a chain, with 49, 50 and 99 pixels: one, two and three are left of registers."""
    cross_compile("rpi4", tmp_path)
    every = sparse.candidates
    monkeypatch.setattr(sparse, "candidates", lambda *given: [one for one in every(*given) if one.text == "rows"])
    monkeypatch.setattr(SparseLayers, "cycles", lambda _self, _var, source, result: 2 - source - result)
    rng = np.random.default_rng(0)
    specs = [TensorSpec(f"x{i}", (1, 24, *size), "float32") for i, size in enumerate([(7, 7), (5, 10), (9, 11)])]

    def layer(rw, x, outputs: int, kernel: int):
        shape = (outputs, graph.shape(x)[1], kernel, kernel)
        weight = rng.standard_normal(shape) * (rng.random(shape) < 0.2) / 8
        weight[0, 0, 0, 0] = 1
        y = relax.op.nn.conv2d(x, graph.const(weight.astype(np.float32)), 1, kernel // 2)
        bias = rng.standard_normal((1, outputs, 1, 1)).astype(np.float32)
        return rw.emit(relax.op.add(rw.emit(y), graph.const(bias)))

    def chain(rw, *xs):
        results = []
        for x in xs:
            y = rw.emit(relax.op.nn.relu(layer(rw, x, 32, 1)))
            y = rw.emit(relax.op.clip(layer(rw, y, 48, 3), -0.5, 0.75))
            results.append(layer(rw, y, 16, 1))
        return results

    module = graph.program([(s.name, s.shape, s.dtype) for s in specs], chain)
    outputs = tuple(TensorSpec(f"y{i}", graph.shape(r), "float32") for i, r in enumerate(graph.results(module)))
    model = Model(module, tuple(specs), outputs, Source("planes", "test", 0, ""))
    package = tc.compile(model, Target.load("rpi4"), keep="always")
    assert sum("planes planes" in kernel["key"] for kernel in package.manifest["kernels"]) == 9
    inputs = {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in specs}
    package.save(tmp_path / "planes.tar")
    results = arm_board.run_package(tmp_path / "planes.tar", inputs)
    for name, wanted in zip([s.name for s in outputs], evaluate(module, list(inputs.values())), strict=True):
        np.testing.assert_allclose(results[name], wanted, rtol=1e-4, atol=1e-4, err_msg=name)
