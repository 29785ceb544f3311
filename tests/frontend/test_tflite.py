"""TFLite files, against what TensorFlow's own interpreter gave for them (`data/make_tflite.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvmcompress.errors import ModelError, OpenShapeError, UnsupportedOperatorsError
from tvmcompress.frontend.tflite import load_tflite
from tvmcompress.ir import graph
from tvmcompress.ir.evaluate import evaluate

pytest.importorskip("tflite")
DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for path in DATA.glob("*.tflite"))
# fp16 and int8 weights are exact here; TFLite also quantizes the activations of `dynamic` at run time, which we do not.
TOLERANCE = {"dynamic": 0.05}


def run(name):
    model = load_tflite(DATA / f"{name}.tflite")
    arrays = np.load(DATA / f"{name}.npz")
    got = evaluate(model.module, [arrays[f"in {s.name}"] for s in model.inputs])
    return (
        model,
        {s.name: g for s, g in zip(model.outputs, got)},
        {k[4:]: arrays[k] for k in arrays if k.startswith("out ")},
    )


@pytest.mark.parametrize("name", CASES)
def test_against_the_interpreter(name):
    model, got, wanted = run(name)
    assert set(got) == set(wanted)
    tolerance = TOLERANCE.get(name.rpartition("-")[2], 1e-4)
    for key, value in wanted.items():
        assert got[key].shape == value.shape and got[key].dtype == value.dtype, key
        if value.dtype in (np.int8, np.uint8, np.int16):
            assert np.abs(got[key].astype(int) - value.astype(int)).max() <= 1, key
        else:
            np.testing.assert_allclose(got[key], value, atol=tolerance, rtol=tolerance, err_msg=key)
    assert len(model.module["main"].body.blocks) == 1


def layers(model, *ops):
    return [b for b in graph.bindings(model.module) if graph.op_name(b.value) in ops]


def test_no_permutation_between_layers():
    """convnet: one in front of the first convolution; the mean takes the spatial axes in NCHW."""
    for name in ("convnet-float", "convnet-int8"):
        assert len(layers(load_tflite(DATA / f"{name}.tflite"), "relax.permute_dims")) == 1


def test_weights_stay_int8_beside_their_layers():
    model = load_tflite(DATA / "convnet-int8.tflite")
    known = graph.definitions(model.module)
    found = layers(model, "relax.nn.conv2d", "relax.matmul")
    assert len(found) == 3
    for layer in found:
        data, weight = (known[a] for a in layer.value.args)
        assert graph.op_name(weight) == "relax.dequantize"
        assert graph.is_const(weight.args[0]) and graph.dtype(weight.args[0]) == "int8"
        assert graph.op_name(data) in ("relax.dequantize", "relax.permute_dims")


def test_weights_only_models_keep_int8_weights():
    model = load_tflite(DATA / "weights_only-dynamic.tflite")
    stored = {
        graph.dtype(c) for b in graph.bindings(model.module) for c in graph.constants_of(b.value) if c.ty.ndim > 1
    }
    assert stored == {"int8"}


def test_names_of_layers_come_from_the_file():
    names = [b.var.name for b in layers(load_tflite(DATA / "keras_flatten.tflite"), "relax.nn.conv2d", "relax.matmul")]
    assert "conv2d" in names[0] and names[1].startswith("fully_connected_"), names


def test_another_batch_through_computed_shapes():
    one, arrays = load_tflite(DATA / "keras_flatten.tflite"), np.load(DATA / "keras_flatten.npz")
    name = one.inputs[0].name
    three = load_tflite(DATA / "keras_flatten.tflite", {name: (3, 6, 6, 2)})
    assert three.outputs[0].shape == (3, 4)
    x = np.concatenate([arrays[f"in {name}"]] * 3)
    got = evaluate(three.module, [x])[0]
    np.testing.assert_allclose(got, np.concatenate([arrays[f"out {one.outputs[0].name}"]] * 3), atol=1e-4)


def test_wrong_shapes():
    path = DATA / "convnet-float.tflite"
    with pytest.raises(ModelError, match=r"no input 'xx'.*did you mean 'x'"):
        load_tflite(path, {"xx": (1, 12, 12, 4)})
    with pytest.raises(ModelError, match="has 4 dimensions"):
        load_tflite(path, {"x": (1, 12)})
    with pytest.raises(OpenShapeError, match="--shape x="):
        load_tflite(path, {"x": (-1, 12, 12, 4)})
    with pytest.raises(ModelError, match=r"convnet-float\.tflite: layer"):
        load_tflite(path, {"x": (1, 12, 12, 5)})


def test_all_unsupported_operators_are_named(tmp_path):
    """CONV_2D and SOFTMAX renumbered to operators that we do not have."""
    import tflite

    content = bytearray((DATA / "convnet-float.tflite").read_bytes())
    model = tflite.Model.GetRootAsModel(content, 0)
    new = {
        tflite.BuiltinOperator.CONV_2D: tflite.BuiltinOperator.SVDF,
        tflite.BuiltinOperator.SOFTMAX: tflite.BuiltinOperator.RNN,
    }
    for i in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(i)
        number = new.get(code.DeprecatedBuiltinCode())
        if number is not None:
            for slot, width in ((4, 1), (10, 4)):  # the old and the new field for the operator's number
                at = code._tab.Offset(slot)
                if at:
                    content[code._tab.Pos + at : code._tab.Pos + at + width] = number.to_bytes(width, "little")
    path = tmp_path / "odd.tflite"
    path.write_bytes(content)
    with pytest.raises(UnsupportedOperatorsError) as caught:
        load_tflite(path)
    assert {(op, domain, n) for op, domain, n, _ in caught.value.operators} == {
        ("SVDF", "tflite", 1),
        ("RNN", "tflite", 1),
    }


@pytest.mark.parametrize("content", [b"", b"TFL3", bytes(range(256)) * 8, b"\x1c\0\0\0TFL3" + b"\xff" * 64])
def test_files_that_are_not_tflite(tmp_path, content):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.tflite"):
        load_tflite(path)


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load_tflite(tmp_path / "none.tflite")


def test_truncated_and_flipped_files_never_crash(tmp_path):
    content = (DATA / "activations-int8.tflite").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "broken.tflite"
    for trial in range(60):
        broken = bytearray(content)
        if trial % 2:
            broken = broken[: int(rng.integers(8, len(content)))]
        else:
            for at in rng.integers(8, len(content), 20):
                broken[at] = rng.integers(256)
        path.write_bytes(broken)
        try:
            load_tflite(path)
        except ModelError as error:
            assert "\n" not in str(error)
