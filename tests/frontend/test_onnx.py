"""The ONNX driver: names, constants, values that must be known, functions, control flow, errors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontend.onnx_tools import load_proto, model_of, ort_run, run
from tvmcompress.errors import ModelError
from tvmcompress.ir import graph as ir


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def proto_of(nodes, inputs, outputs, constants=(), opset=17, functions=(), domains=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in constants])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def layers(model):
    return {b.var.name: b.value for b in ir.bindings(model.module)}


def test_layers_are_called_after_their_nodes():
    w = np.ones((4, 3, 3, 3), "float32")
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="stem.conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Gemm", ["f", "g"], ["y"], name="fc", transB=1),
    ]
    nodes.insert(2, helper.make_node("Flatten", ["r"], ["f"]))
    constants = [("w", w), ("b", np.ones(4, "float32")), ("g", np.ones((5, 4 * 36), "float32"))]
    model = load_proto(proto_of(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 5])], constants))
    found = layers(model)
    assert ir.op_name(found["stem_conv"]) == "relax.nn.conv2d"
    assert ir.op_name(found["fc"]) == "relax.matmul" and ir.is_const(found["fc"].args[1])
    assert ir.op_name(found["Relu_1"]) == "relax.nn.relu"
    assert "stem_conv_bias" in found


def test_what_is_known_is_folded():
    """Shape, Gather and Concat of a static input never reach the program; the reshape is static."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = [("zero", np.array([0])), ("rest", np.array([-1]))]
    model = load_proto(proto_of(nodes, [value("x", [2, 3, 4])], [value("y", None)], constants))
    assert model.outputs[0].shape == (2, 12)
    assert [ir.op_name(v) for v in layers(model).values() if ir.op_name(v)] == ["relax.reshape"]


def test_outputs_that_are_inputs_or_constants():
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["c"], ["z"])]
    proto = proto_of(
        nodes, [value("x", [3])], [value("y", [3]), value("z", [2]), value("x", [3])], [("c", np.array([1, 2]))]
    )
    model = load_proto(proto)
    x = np.array([1, 2, 3], "float32")
    y, z, again = run(model, {"x": x})
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(z, [1, 2])
    np.testing.assert_array_equal(again, x)
    assert [s.name for s in model.outputs] == ["y", "z", "x"]


def test_a_value_that_must_be_known_names_the_input_and_the_flag():
    nodes = [helper.make_node("Add", ["k", "one"], ["k1"]), helper.make_node("TopK", ["x", "k1"], ["y", "i"])]
    inputs = [value("x", [5]), value("k", [1], TensorProto.INT64)]
    proto = proto_of(nodes, inputs, [value("y", ["K"])], [("one", np.array([1]))])
    with pytest.raises(ModelError, match=r"operator TopK at node 'TopK_1'.*'k'.*--value k=") as error:
        load_proto(proto)
    assert len(str(error.value).splitlines()) == 1
    model = load_proto(proto, values={"k": [1]})
    assert [s.name for s in model.inputs] == ["x"] and model.outputs[0].shape == (2,)
    np.testing.assert_array_equal(run(model, {"x": np.array([1, 5, 2, 4, 3], "float32")})[0], [5, 4])


def test_the_stated_shape_stands_in_for_an_unknown_value():
    """Slice with runtime bounds reads what they say, and never outside the tensor."""
    nodes = [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])]
    inputs = [value("x", [5, 2]), value("starts", [1], TensorProto.INT64), value("ends", [1], TensorProto.INT64)]
    model = load_proto(proto_of(nodes, inputs, [value("y", [2, 2])], [("axes", np.array([0]))]))
    x = np.arange(10, dtype="float32").reshape(5, 2)
    for start in (0, 2, 3, -2):
        (got,) = run(model, {"x": x, "starts": np.array([start]), "ends": np.array([start % 5 + 2])})
        np.testing.assert_array_equal(got, x[start:][:2])


def test_functions_of_the_model_and_of_onnx():
    """A model-local function that uses an operator ONNX defines as a function (Celu), with an attribute handed down."""
    body = [helper.make_node("Celu", ["a"], ["b"]), helper.make_node("Add", ["b", "a"], ["c"])]
    body[0].attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function("mine", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 17)], ["slope"])
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="mine", slope=2.0)]
    proto = proto_of(nodes, [value("x", [4])], [value("y", [4])], functions=[function], domains=["mine"])
    x = np.array([-2, -0.5, 0, 3], "float32")
    np.testing.assert_allclose(run(load_proto(proto), {"x": x})[0], ort_run(proto, {"x": x})[0], rtol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_if(known):
    branches = [
        helper.make_graph([helper.make_node(op, ["x", "x"], ["r"])], op, [], [value("r", [3])]) for op in ("Add", "Mul")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    proto = proto_of([node], [value("x", [3]), value("c", [], TensorProto.BOOL)], [value("y", [3])])
    x = np.array([3, 4, 5], "float32")
    for condition in (True, False):
        model = load_proto(proto, values={"c": condition} if known else None)
        (got,) = run(model, {"x": x, "c": np.array(condition)})
        np.testing.assert_array_equal(got, x + x if condition else x * x)
    assert len(layers(model)) == (2 if known else 4)


def test_loop_is_unrolled():
    body = helper.make_graph(
        [
            helper.make_node("Add", ["v", "x"], ["w"]),
            helper.make_node("Identity", ["cond"], ["again"]),
            helper.make_node("Mul", ["w", "w"], ["square"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("cond", [], TensorProto.BOOL), value("v", [2])],
        [value("again", [], TensorProto.BOOL), value("w", [2]), value("square", [2])],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["last", "all"], body=body)
    proto = proto_of([node], [value("x", [2])], [value("last", [2]), value("all", [3, 2])], [("n", np.array(3))])
    x = np.array([1, 2], "float32")
    last, squares = run(load_proto(proto), {"x": x})
    np.testing.assert_array_equal(last, x * 4)
    np.testing.assert_array_equal(squares, [(x * 2) ** 2, (x * 3) ** 2, (x * 4) ** 2])


def test_an_error_inside_names_operator_and_node():
    proto = model_of(
        "Conv", {"x": np.zeros((1, 3, 8, 8), "float32")}, {"w": np.ones((4, 5, 3, 3), "float32")}, ["x", "w"]
    )
    with pytest.raises(ModelError, match=r"operator Conv at node 'node': 3 input channels do not fit"):
        load_proto(proto)


def test_strings_are_refused_by_name():
    proto = proto_of(
        [helper.make_node("Identity", ["s"], ["y"])], [value("s", [1], TensorProto.STRING)], [value("y", None)]
    )
    with pytest.raises(ModelError, match="'s' holds strings"):
        load_proto(proto)


@pytest.mark.parametrize("mode, coordinates", [
    ("nearest", "asymmetric"), ("nearest", "half_pixel"), ("linear", "half_pixel"), ("linear", "align_corners"),
    ("linear", "pytorch_half_pixel"), ("cubic", "half_pixel"),
])  # fmt: skip
@pytest.mark.parametrize("scales", [[1, 1, 2, 2], [1, 1, 0.6, 1.7]])
def test_resize_against_onnx_runtime(mode, coordinates, scales):
    if coordinates == "align_corners" and scales[2] != 2:
        pytest.skip("ONNX's reference keeps the fraction of the new length, ONNX Runtime does not")
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 7)).astype("float32")
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    proto = model_of("Resize", {"x": x}, {"s": np.array(scales, "float32")}, ["x", "", "s"], **attrs)
    np.testing.assert_allclose(run(load_proto(proto), {"x": x})[0], ort_run(proto, {"x": x})[0], rtol=1e-4, atol=1e-5)


def placing(data, rows, rest):
    """Data, constant places, and updates of their shape and `rest`, all but data as ScatterND wants them."""
    rng = np.random.default_rng(3)
    inputs = {"data": rng.standard_normal(data).astype("f4")}
    inputs["updates"] = rng.standard_normal((*np.shape(rows)[:-1], *rest)).astype("f4")
    order = ["data", "rows", "updates"]
    return model_of("ScatterND", inputs, {"rows": np.array(rows, "i8")}, order), inputs


def box(*ranges):
    return np.stack(np.meshgrid(*(np.arange(*r) for r in ranges), indexing="ij"), -1)


@pytest.mark.parametrize("data, rows, rest, boxed", [
    ((2, 5), box((0, 2), (0, 5)), (), True),
    ((2, 5, 3), box((0, 2), (1, 4)), (3,), True),
    ((4, 5, 6), box((1, 3), (2, 5), (0, 5)), (), True),
    ((4, 5, 6), box((-3, -1), (-2, 0)), (6,), True),
    ((4, 5), [[2]], (5,), True),
    ((4, 5), [2], (5,), True),
    ((4, 5), [[2], [1]], (5,), False),
    ((4, 5), [[1], [1]], (5,), False),
    ((4, 6), box((0, 4), (0, 6, 2)), (), False),
    ((4, 4), [[0, 0], [1, 1], [2, 2], [3, 3]], (), False),
])  # fmt: skip
def test_places_that_are_a_box_are_no_scatter(data, rows, rest, boxed):
    proto, inputs = placing(data, rows, rest)
    model = load_proto(proto)
    assert ("scatter" in model.module.script()) != boxed
    np.testing.assert_array_equal(run(model, inputs)[0], ort_run(proto, inputs)[0])


def test_places_too_large_to_be_folded_are_looked_at():
    """As PyTorch writes x[:, 64:] = y."""
    n, m = 128, 200
    nodes = [
        helper.make_node("Expand", ["row", "shape"], ["rows"]),
        helper.make_node("Expand", ["column", "shape"], ["columns"]),
        helper.make_node("Concat", ["rows", "columns"], ["places"], axis=-1),
        helper.make_node("ScatterND", ["x", "places", "y"], ["z"]),
    ]
    row, column, shape = np.arange(n).reshape(n, 1, 1), np.arange(64, m).reshape(1, m - 64, 1), np.array([n, m - 64, 1])
    constants = [("row", row), ("column", column), ("shape", shape)]
    given = [value("x", [n, m]), value("y", [n, m - 64])]
    proto = proto_of(nodes, given, [value("z", [n, m])], constants)
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((n, m)).astype("f4"), "y": rng.standard_normal((n, m - 64)).astype("f4")}
    model = load_proto(proto)
    assert "scatter" not in model.module.script() and "int64" not in model.module.script()
    np.testing.assert_array_equal(run(model, inputs)[0], ort_run(proto, inputs)[0])
