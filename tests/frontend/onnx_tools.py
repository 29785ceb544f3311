"""Small ONNX models for tests, and two ways to run them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmcompress.frontend.onnx import import_proto
from tvmcompress.ir.evaluate import evaluate
from tvmcompress.model import Model, Source


def model_of(op, inputs, constants, order, outputs=("y",), domain="", version=17, **attrs) -> onnx.ModelProto:
    """A model of one node; `order` lists its inputs by name, "" for an absent one."""
    node = helper.make_node(op, order, list(outputs), name="node", domain=domain, **attrs)
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(o) for o in outputs if o],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", version)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def load_proto(proto, shapes=None, values=None) -> Model:
    return import_proto(proto, Source("test", "onnx", 0, ""), shapes, values)


def run(model: Model, inputs) -> list[np.ndarray]:
    return evaluate(model.module, [inputs[s.name] for s in model.inputs])


def ort_run(proto, inputs) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
