"""load: formats by content, and what is said of files that are none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.frontend.onnx_tools import model_of, run
from tvmcompress.errors import ModelError, OpenShapeError, UnsupportedOperatorsError, UsageError
from tvmcompress.frontend import load


@pytest.fixture
def relu(tmp_path):
    path = tmp_path / "relu.onnx"
    onnx.save(model_of("Relu", {"x": np.zeros((2, 3), "float32")}, {}, ["x"]), path)
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert len(text.splitlines()) <= 2
    return text


def test_onnx(relu):
    model = load(relu)
    assert [(s.name, s.shape, s.dtype) for s in model.inputs] == [("x", (2, 3), "float32")]
    assert [s.name for s in model.outputs] == ["y"]
    assert model.source.format == "onnx" and model.source.bytes == relu.stat().st_size
    x = np.array([[-1, 2, -3], [4, -5, 6]], "float32")
    np.testing.assert_array_equal(run(model, {"x": x})[0], np.maximum(x, 0))


def test_a_renamed_file_is_read_by_its_content(relu, tmp_path):
    other = tmp_path / "relu.tflite"
    other.write_bytes(relu.read_bytes())
    assert load(str(other)).source.format == "onnx"


def test_our_own_saved_model(relu, tmp_path):
    path = tmp_path / "relu.model"
    load(relu).save(path)
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(run(load(path), {"x": x})[0], x)
    with pytest.raises(ModelError, match="fixed"):
        load(path, shapes={"x": (1, 3)})


@pytest.mark.parametrize("name", ["m.onnx", "m.tflite", "m.pt2", "m.model", "m.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"hello, this is a text file\n" * 20, bytes(range(256)) * 4])
def test_files_that_are_no_model(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        load(path)
    assert name in one_line(error)


def test_random_bytes(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "random.onnx"
    for _ in range(50):
        path.write_bytes(rng.bytes(int(rng.integers(1, 3000))))
        with pytest.raises(ModelError):
            load(path)


def test_truncated_onnx_at_any_place(tmp_path):
    weight = np.ones((40, 40), "float32")
    proto = model_of("MatMul", {"x": np.zeros((1, 40), "float32")}, {"w": weight}, ["x", "w"])
    whole = proto.SerializeToString()
    path = tmp_path / "cut.onnx"
    for end in range(1, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError):
            load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="folder"):
        load(tmp_path)


def test_wrong_arguments(relu):
    with pytest.raises(UsageError, match="path"):
        load(42)
    with pytest.raises(UsageError, match="module"):
        load((1, 2, 3))


def test_a_package_is_not_a_model(tmp_path):
    import tarfile

    path = tmp_path / "package.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "library.so")
    with pytest.raises(ModelError, match="package"):
        load(path)


# External data


def external(tmp_path, location="weights.bin", offset=0):
    w = np.arange(12, dtype="float32").reshape(3, 4)
    tensor = onnx.TensorProto(name="w", dims=[3, 4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("y", 1, [2, 4])], [tensor],
    )  # fmt: skip
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path, w


def test_external_data(tmp_path):
    path, w = external(tmp_path, offset=8)
    (path.parent / "weights.bin").write_bytes(b"\0" * 8 + w.tobytes())
    model = load(path)
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ w)
    assert model.source.bytes == path.stat().st_size + 56


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin", "", "link.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    path, w = external(tmp_path, location)
    (tmp_path / "weights.bin").write_bytes(w.tobytes())
    (path.parent / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="outside") as error:
        load(path)
    one_line(error)


def test_external_data_missing_or_short(tmp_path):
    path, _ = external(tmp_path)
    with pytest.raises(ModelError, match="missing"):
        load(path)
    (path.parent / "weights.bin").write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="which has 20"):
        load(path)


# What is wrong inside


def test_nan_in_weights_names_the_tensor(tmp_path):
    w = np.ones((300, 3), "float32")
    w[250, 1] = np.nan
    path = tmp_path / "nan.onnx"
    onnx.save(model_of("MatMul", {"x": np.zeros((1, 300), "float32")}, {"w": w}, ["x", "w"]), path)
    with pytest.raises(ModelError, match=r"'w'.*NaN"):
        load(path)


def test_infinite_masks_are_allowed(tmp_path):
    mask = np.array([0, -np.inf, 0], "float32")
    path = tmp_path / "mask.onnx"
    onnx.save(model_of("Add", {"x": np.zeros((2, 3), "float32")}, {"m": mask}, ["x", "m"]), path)
    assert np.isneginf(run(load(path), {"x": np.zeros((2, 3), "float32")})[0][:, 1]).all()


def open_model(tmp_path, dims_x, dims_y):
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "y"], ["z"])], "g",
        [helper.make_tensor_value_info("x", 1, dims_x), helper.make_tensor_value_info("y", 1, dims_y)],
        [helper.make_tensor_value_info("z", 1, None)],
    )  # fmt: skip
    path = tmp_path / "open.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_open_shapes_name_the_input_and_the_flag(tmp_path):
    path = open_model(tmp_path, ["N", 3], ["N", 3])
    with pytest.raises(OpenShapeError, match=r"'x'.*Nx3.*--shape x=1x3") as error:
        load(path)
    one_line(error)


def test_a_symbol_is_bound_once_for_all_inputs(tmp_path):
    path = open_model(tmp_path, ["N", 3], ["N", 3])
    model = load(path, shapes={"x": (5, 3)})
    assert [s.shape for s in model.inputs] == [(5, 3), (5, 3)]
    assert model.outputs[0].shape == (5, 3)


@pytest.mark.parametrize("shapes, message", [
    ({"x": (5, 4)}, "wanted Nx3, got 5x4"),
    ({"x": (5, 3, 1)}, "wanted Nx3, got 5x3x1"),
    ({"x": (5, 3), "y": (6, 3)}, "'N' is 5 for one input and 6"),
    ({"X": (5, 3)}, "no input 'X'.*x, y"),
])  # fmt: skip
def test_wrong_shapes(tmp_path, shapes, message):
    with pytest.raises(ModelError, match=message):
        load(open_model(tmp_path, ["N", 3], ["N", 3]), shapes=shapes)


def test_all_unsupported_operators_at_once(tmp_path):
    nodes = [
        helper.make_node("Magic", ["x"], ["a"], name="first", domain="my.domain"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Magic", ["b"], ["c"], name="second", domain="my.domain"),
        helper.make_node("StringNormalizer", ["c"], ["y"], name="third"),
    ]
    info = [helper.make_tensor_value_info("x", 1, [3])], [helper.make_tensor_value_info("y", 1, [3])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    path = tmp_path / "magic.onnx"
    path.write_bytes(helper.make_model(helper.make_graph(nodes, "g", *info), opset_imports=opsets).SerializeToString())
    with pytest.raises(UnsupportedOperatorsError) as error:
        load(path)
    assert error.value.operators == [("Magic", "my.domain", 2, "first"), ("StringNormalizer", "", 1, "third")]


def test_large_initializers_are_read_one_by_one(tmp_path):
    """Packed float_data too; and initializers that are listed as inputs are constants."""
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(64, 64)).astype("float32"), rng.normal(size=(64,)).astype("float32")
    proto = model_of("Gemm", {"x": np.zeros((2, 64), "float32")}, {"b": b}, ["x", "w", "b"])
    proto.graph.initializer.append(helper.make_tensor("w", 1, w.shape, w.reshape(-1)))
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, w.shape))
    path = tmp_path / "gemm.onnx"
    onnx.save(proto, path)
    model = load(path)
    assert [s.name for s in model.inputs] == ["x"]
    x = rng.normal(size=(2, 64)).astype("float32")
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ w + b, rtol=1e-4, atol=1e-4)
    assert numpy_helper.to_array(proto.graph.initializer[1]).shape == w.shape
