"""Compressed layers that have no kernel of their own: a package says of each that it has none, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tvmcompress as tc
from tvmcompress.ir import graph
from tvmcompress.ir.zeros import densities
from tvmcompress.passes import simplified


def weights(*shape: int, density: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def loaded(folder, op: str, shape, inputs: dict[str, np.ndarray], order: list[str], **attributes) -> tc.Model:
    """One operator; `order`: its operands, of which `x` is the input."""
    node = helper.make_node(op, order, ["y"], "layer", **attributes)
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items()]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None)))
    model = helper.make_model(
        helper.make_graph([node], "net", [x], [y], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, folder / "net.onnx")
    return tc.load(folder / "net.onnx")


def said(package: tc.Package) -> list[dict]:
    return [row["sparse"] for row in package.manifest["layers"] if row.get("sparse")]


CASES = {
    "left": ("MatMul", (64, 20), {"w": weights(48, 64)}, ["w", "x"], {}, "on the left"),
    "several": ("MatMul", (4, 20, 64), {"w": weights(4, 64, 48)}, ["x", "w"], {}, "several products at once"),
    "lstm": (
        "LSTM", (6, 1, 32), {"w": weights(1, 192, 32), "r": weights(1, 192, 48)}, ["x", "w", "r"],
        {"hidden_size": 48}, "the kernel of a recurrent layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_dense_layer_is_never_called_sparse(case: str, tmp_path) -> None:
    op, shape, inputs, order, attributes, why = CASES[case]
    package = tc.compile(loaded(tmp_path, op, shape, inputs, order, **attributes), "native", keep="always")
    rows = [row for row in said(package) if not row["kept"]]
    assert [row["format"] for row in rows] == ["dense"] and why in rows[0]["why"]
    assert rows[0]["density"] == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_that_are_unpacked_to_floats(bits: int, tmp_path) -> None:
    model = loaded(tmp_path, "MatMul", (20, 64), {"w": weights(64, 48)}, ["x", "w"])
    options = f"[quantize_weights]\nbits = {bits}\nmin_size = 0\n" + ("group = 32\n" if bits == 4 else "")
    small = tc.compress(model, tc.Recipe.from_toml(options, "small"))
    (row,) = said(tc.compile(small, "native", keep="always"))
    assert not row["kept"] and "stored as integers" in row["why"] and row["density"] < 0.2


def test_zeros_are_counted_as_they_are_stored(tmp_path) -> None:
    model = loaded(tmp_path, "MatMul", (4, 20, 64), {"w": weights(4, 64, 480)}, ["x", "w"])
    sizes = [said(tc.compile(model, "native", storage=storage))[0]["dense_bytes"] for storage in ("auto", "plain")]
    assert sizes[1] == 4 * 4 * 64 * 480 and sizes[0] < 0.25 * sizes[1]


SHARED = {
    "conv": ("Conv", (1, 16, 9, 9), {"w": weights(32, 16, 3, 3, density=1)}, ["x", "w"], {}, "of a convolution"),
    "several": ("MatMul", (4, 20, 64), {"w": weights(4, 64, 48, density=1)}, ["x", "w"], {}, "for such a product"),
    "rows": ("MatMul", (20, 64), {"w": weights(64, 300, density=1)}, ["x", "w"], {}, "20 rows of 300"),
}


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("target", ["native", "rpi4", "cuda-sm80"])
def test_every_layer_with_shared_values_is_told(case: str, target: str, tmp_path) -> None:
    op, shape, inputs, order, attributes, why = SHARED[case]
    small = tc.compress(loaded(tmp_path, op, shape, inputs, order, **attributes), "cluster16")
    layers = tc.compile(small, target, keep="always").manifest["layers"]
    (row,) = (layer["shared"] for layer in layers if layer.get("shared"))
    assert not row["kept"] and row["format"] == "unpacked" and row["density"] > 0.9
    assert ("for CPUs" if target == "cuda-sm80" else "pick 16" if (case, target) == ("rows", "rpi4") else why) in row[
        "why"
    ]


def test_on_gpus(tmp_path) -> None:
    model = loaded(tmp_path, "MatMul", (20, 64), {"w": weights(64, 48)}, ["x", "w"])
    (row,) = said(tc.compile(model, "cuda-sm80"))
    assert not row["kept"] and row["why"] == "sparse kernels are for CPUs"


def test_what_is_sparse_is_told_once(tmp_path) -> None:
    model = loaded(tmp_path, "MatMul", (20, 64), {"w": weights(64, 48)}, ["x", "w"])
    (row,) = said(tc.compile(model, "native", keep="always"))
    assert row["kept"]
    full = loaded(tmp_path, "MatMul", (20, 64), {"w": weights(64, 48, density=1)}, ["x", "w"])
    assert not said(tc.compile(full, "native", keep="always"))


def test_steps_that_share_a_weight_count_once(tmp_path) -> None:
    op, shape, inputs, order, attributes, _ = CASES["lstm"]
    mod = simplified(loaded(tmp_path, op, shape, inputs, order, **attributes).module)
    found = densities(mod)
    assert [size for _, size, _, _ in found.values()] == [192 * 32, 192 * 48]
    assert len(densities(mod, set(found) | {b.var.name for b in graph.bindings(mod)})) == 0
