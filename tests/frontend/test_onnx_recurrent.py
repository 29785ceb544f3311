"""LSTM, GRU and RNN against ONNX Runtime, in all their forms."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frontend.onnx_tools import load_proto, model_of, ort_run, run
from tvmcompress.ir import graph

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, N, INPUTS, H = 5, 3, 4, 6


def check(op, *, lengths=None, states=False, bias=True, peepholes=False, **attrs):
    rng = np.random.default_rng(0)
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    gates = GATES[op]

    def weights(*shape):
        return rng.normal(size=(directions, *shape)).astype("float32") * 0.5

    constants = {"w": weights(gates * H, INPUTS), "r": weights(gates * H, H)}
    inputs = {"x": rng.normal(size=(T, N, INPUTS)).astype("float32")}
    order = ["x", "w", "r", "", "", "", "", ""]
    if bias:
        constants["b"], order[3] = weights(2 * gates * H), "b"
    if lengths is not None:
        constants["len"], order[4] = np.array(lengths, "int32"), "len"
    if states:
        inputs["h"], order[5] = weights(N, H), "h"
        if op == "LSTM":
            inputs["c"], order[6] = weights(N, H), "c"
    if peepholes:
        constants["p"], order[7] = weights(3 * H), "p"
    order = order if op == "LSTM" else order[:6]
    outputs = ("y", "y_h", "y_c") if op == "LSTM" else ("y", "y_h")
    proto = model_of(op, inputs, constants, order, outputs, hidden_size=H, **attrs)
    model = load_proto(proto)
    for got, wanted in zip(run(model, inputs), ort_run(proto, inputs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    return model


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_with_states_and_lengths(op, direction):
    check(op, direction=direction, states=True, lengths=[5, 2, 3])


@pytest.mark.parametrize("linear", [0, 1])
def test_gru_linear_before_reset(linear):
    check("GRU", linear_before_reset=linear, direction="bidirectional")


def test_lstm_peepholes():
    check("LSTM", peepholes=True, states=True)


@pytest.mark.parametrize("op", GATES)
def test_clip_and_no_bias(op):
    check(op, bias=False, clip=0.3)


def test_other_activations():
    check("LSTM", activations=["HardSigmoid", "Relu", "Softsign"], activation_alpha=[0.3], activation_beta=[0.4])
    check("RNN", activations=["LeakyRelu"], activation_alpha=[0.1])


def test_the_input_projection_is_one_product():
    model = check("LSTM")
    products = [b.value for b in graph.bindings(model.module) if graph.op_name(b.value) == "relax.matmul"]
    shapes = [graph.shape(p) for p in products]
    assert shapes == [(T * N, 4 * H)] + [(N, 4 * H)] * T
