"""UNIDIRECTIONAL_SEQUENCE_LSTM, unrolled over time: the form in which Keras layers are converted."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import Expr

from tvmcompress.frontend.tflite.context import Context
from tvmcompress.frontend.tflite.layers import ACTIVATIONS
from tvmcompress.ir import graph

PEEPHOLES, PROJECTIONS, NORMS = (9, 10, 11), (16, 17), (20, 21, 22, 23)
OUTPUT_STATE, CELL_STATE = 18, 19


def sequence_lstm(ctx: Context) -> None:
    """Inputs: x, 4 input weights (i f c o), 4 recurrent weights, 3 peepholes, 4 biases, projection, 2 states, norms."""
    options = ctx.operator.options
    if any(ctx.has(p) for p in (*PEEPHOLES, *PROJECTIONS, *NORMS)) or not ctx.has(1):
        raise ctx.fail("peepholes, projections, layer normalization and coupled gates are not supported")
    if ctx.graph.tensors[ctx.operator.outputs[0]].quantization is not None:
        raise ctx.fail("a fully quantized LSTM is not supported; convert it with float activations")
    x = ctx.input(0)
    if not options.TimeMajor():
        x = ctx.permute(x, (1, 0, 2))
    steps, batch, width = graph.shape(x)
    units = ctx.shape(1)[0]
    from_input = [ctx.weight(ctx.const(p), (1, 0)) for p in range(1, 5)]
    from_state = [ctx.weight(ctx.const(p), (1, 0)) for p in range(5, 9)]
    biases = [ctx.weight(ctx.const(p)) for p in range(12, 16)]
    hidden = cell = graph.const(np.zeros((batch, units), np.float32))  # states are variables, zero at the start
    results = []
    for step in range(steps):
        now = ctx.emit(relax.op.reshape(relax.op.strided_slice(x, [0], [step], [step + 1]), [batch, width]))
        gates = [gate(ctx, now, hidden, *weights) for weights in zip(from_input, from_state, biases)]
        i, f, o = (ctx.emit(relax.op.sigmoid(gates[n])) for n in (0, 1, 3))
        squash = ACTIVATIONS[options.FusedActivationFunction()]
        new = ctx.emit(relax.op.multiply(i, squash(gates[2])))
        cell = ctx.emit(relax.op.add(relax.op.multiply(f, cell), new))
        if options.CellClip() > 0:
            cell = ctx.emit(relax.op.clip(cell, -options.CellClip(), options.CellClip()))
        hidden = ctx.emit(relax.op.multiply(o, squash(cell)))
        results.append(ctx.emit(relax.op.reshape(hidden, [1, batch, units])))
    out = ctx.emit(relax.op.concat(results, 0))
    ctx.output(out if options.TimeMajor() else ctx.permute(out, (1, 0, 2)))


def gate(ctx: Context, x: Expr, hidden: Expr, from_input: Expr, from_state: Expr, bias: Expr) -> Expr:
    own, back = ctx.emit(relax.op.matmul(x, from_input)), ctx.emit(relax.op.matmul(hidden, from_state))
    return ctx.emit(relax.op.add(relax.op.add(own, back), bias))


CONVERTERS = {"UNIDIRECTIONAL_SEQUENCE_LSTM": sequence_lstm}
