"""LSTM, GRU and RNN, unrolled over time. The input projection is one matrix product outside the time loop.

Shapes: T steps, N samples, I inputs, H hidden, G gates (LSTM 4, GRU 3, RNN 1), D directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError, did_you_mean
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import scalar, take
from tvmcompress.ir import graph

Activation = Callable[[graph.Expr], graph.Expr]
DEFAULT_ALPHA = {
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "ScaledTanh": 1.0,
    "HardSigmoid": 0.2,
    "Elu": 1.0,
    "Affine": 1.0,
}
DEFAULT_BETA = {"ScaledTanh": 1.0, "HardSigmoid": 0.5, "Affine": 0.0}


def activation(name: str, alpha: float | None, beta: float | None, kind: str) -> Activation:
    """An activation by ONNX's name (case does not matter), with its parameters."""
    by_lower = {n.lower(): n for n in (*DEFAULT_ALPHA, "Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")}
    if name.lower() not in by_lower:
        raise ModelError(f"unknown activation '{name}'{did_you_mean(name, by_lower.values())}")
    name = by_lower[name.lower()]
    a = scalar(DEFAULT_ALPHA.get(name, 1.0) if alpha is None else alpha, kind)
    b = scalar(DEFAULT_BETA.get(name, 0.0) if beta is None else beta, kind)
    zero, one, op = scalar(0.0, kind), scalar(1.0, kind), relax.op
    return {
        "Relu": op.nn.relu,
        "Tanh": op.tanh,
        "Sigmoid": op.sigmoid,
        "Affine": lambda x: op.add(op.multiply(x, a), b),
        "LeakyRelu": lambda x: op.where(op.less(x, zero), op.multiply(x, a), x),
        "ThresholdedRelu": lambda x: op.where(op.greater(x, a), x, zero),
        "ScaledTanh": lambda x: op.multiply(a, op.tanh(op.multiply(b, x))),
        "HardSigmoid": lambda x: op.minimum(op.maximum(op.add(op.multiply(a, x), b), zero), one),
        "Elu": lambda x: op.where(op.less(x, zero), op.multiply(a, op.subtract(op.exp(x), one)), x),
        "Softsign": lambda x: op.divide(x, op.add(one, op.abs(x))),
        "Softplus": lambda x: op.log(op.add(op.exp(x), one)),
    }[name]


def activations(node: Node, default: list[str], direction: int, kind: str) -> list[Activation]:
    """The activations of one direction; parameters are handed out in order to those that take some."""
    directions = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    names = node.attr("activations") or default * directions
    alphas, betas = iter(node.attr("activation_alpha", [])), iter(node.attr("activation_beta", []))
    lower_alpha, lower_beta = {n.lower() for n in DEFAULT_ALPHA}, {n.lower() for n in DEFAULT_BETA}
    built = []
    for name in names:
        alpha = next(alphas, None) if name.lower() in lower_alpha else None
        beta = next(betas, None) if name.lower() in lower_beta else None
        built.append(activation(name, alpha, beta, kind))
    return built[direction * len(default) : (direction + 1) * len(default)]


@dataclass
class Layer:
    """One direction: its weights laid out for x W + b, and what the cells share."""

    node: Node
    recurrent: graph.Expr  # (H, G*H)
    recurrent_bias: graph.Expr | None  # (G*H,), where it must stay inside the loop
    hidden: int
    functions: list[Activation]
    clip: float | None
    kind: str

    def emit(self, expr: graph.Expr) -> graph.Expr:
        return self.node.emit(expr, "step")

    def clipped(self, x: graph.Expr) -> graph.Expr:
        if not self.clip:
            return x
        low, high = scalar(-self.clip, self.kind), scalar(self.clip, self.kind)
        return self.emit(relax.op.minimum(relax.op.maximum(x, low), high))

    def act(self, index: int, x: graph.Expr) -> graph.Expr:
        return self.emit(self.functions[index](self.clipped(x)))

    def gates(self, x: graph.Expr, count: int) -> list[graph.Expr]:
        parts = self.emit(relax.op.split(x, count, 1))
        return [self.emit(relax.TupleGetItem(parts, i)) for i in range(count)]


def direction_of(node: Node, index: int, direction: int) -> graph.Expr | None:
    """Input `index` (D, …) of one direction; cut at load where it is known."""
    if not node.has(index):
        return None
    value = node.known(index)
    if value is not None and graph.is_const(node.x(index)):
        return graph.const(np.ascontiguousarray(value[direction]))
    return node.emit(take(node.x(index), graph.const(direction, "int64"), 0), f"direction{direction}")


def transposed(node: Node, matrix: graph.Expr) -> graph.Expr:
    if graph.is_const(matrix):
        return graph.const(np.ascontiguousarray(graph.value(matrix).T))
    return node.emit(relax.op.permute_dims(matrix, [1, 0]), "transposed")


def part(node: Node, vector: graph.Expr, start: int, stop: int) -> graph.Expr:
    if graph.is_const(vector):
        return graph.const(np.ascontiguousarray(graph.value(vector)[start:stop]))
    return node.emit(relax.op.strided_slice(vector, [0], [start], [stop]), "part")


def lstm_step(layer: Layer, x: graph.Expr, state: list[graph.Expr], peepholes: graph.Expr | None) -> list[graph.Expr]:
    """Gates in ONNX's order: input, output, forget, cell."""
    op, h, c = relax.op, state[0], state[1]
    i, o, f, g = layer.gates(layer.emit(op.add(x, layer.emit(op.matmul(h, layer.recurrent)))), 4)
    p_i = p_o = p_f = None
    if peepholes is not None:
        size = layer.hidden
        p_i, p_o, p_f = (part(layer.node, peepholes, k * size, (k + 1) * size) for k in range(3))
        i = layer.emit(op.add(i, op.multiply(p_i, c)))
        f = layer.emit(op.add(f, op.multiply(p_f, c)))
    i = layer.act(0, i)
    coupled = layer.node.attr("input_forget", 0)
    f = layer.emit(op.subtract(scalar(1.0, layer.kind), i)) if coupled else layer.act(0, f)
    cell = layer.emit(op.add(layer.emit(op.multiply(f, c)), layer.emit(op.multiply(i, layer.act(1, g)))))
    if p_o is not None:
        o = layer.emit(op.add(o, op.multiply(p_o, cell)))
    out = layer.emit(op.multiply(layer.act(0, o), layer.emit(layer.functions[2](cell))))
    return [out, cell]


def gru_step(layer: Layer, x: graph.Expr, state: list[graph.Expr], _peepholes: None) -> list[graph.Expr]:
    """Gates in ONNX's order: update, reset, hidden."""
    op, h, size = relax.op, state[0], layer.hidden
    linear = layer.node.attr("linear_before_reset", 0)
    x_z, x_r, x_h = layer.gates(x, 3)
    if linear:
        r_z, r_r, r_h = layer.gates(layer.emit(op.matmul(h, layer.recurrent)), 3)
    else:
        zr = layer.emit(op.matmul(h, part_columns(layer, 0, 2 * size)))
        r_z, r_r = layer.gates(zr, 2)
    z = layer.act(0, layer.emit(op.add(x_z, r_z)))
    r = layer.act(0, layer.emit(op.add(x_r, r_r)))
    if linear:
        if layer.recurrent_bias is not None:
            r_h = layer.emit(op.add(r_h, layer.recurrent_bias))
        candidate = layer.emit(op.add(x_h, layer.emit(op.multiply(r, r_h))))
    else:
        reset = layer.emit(op.matmul(layer.emit(op.multiply(r, h)), part_columns(layer, 2 * size, 3 * size)))
        candidate = layer.emit(op.add(x_h, reset))
    candidate = layer.act(1, candidate)
    keep = layer.emit(op.multiply(z, h))
    return [layer.emit(op.add(layer.emit(op.multiply(op.subtract(scalar(1.0, layer.kind), z), candidate)), keep))]


def part_columns(layer: Layer, start: int, stop: int) -> graph.Expr:
    """Columns of the recurrent weight, cut once for all steps."""
    cut = layer.__dict__.setdefault("cut", {})
    if start not in cut:
        if graph.is_const(layer.recurrent):
            cut[start] = graph.const(np.ascontiguousarray(graph.value(layer.recurrent)[:, start:stop]))
        else:
            cut[start] = layer.emit(relax.op.strided_slice(layer.recurrent, [1], [start], [stop]))
    return cut[start]


def rnn_step(layer: Layer, x: graph.Expr, state: list[graph.Expr], _peepholes: None) -> list[graph.Expr]:
    return [layer.act(0, layer.emit(relax.op.add(x, layer.emit(relax.op.matmul(state[0], layer.recurrent)))))]


STEPS: dict[str, Callable[..., list[graph.Expr]]] = {"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def recurrent(node: Node) -> list[graph.Expr | None]:
    """Inputs X, W, R, B, sequence_lens, initial_h (LSTM: initial_c, P); outputs Y, Y_h (LSTM: Y_c)."""
    op, x, kind = relax.op, node.x(0), node.dtype(0)
    batch_first = node.attr("layout", 0)
    if batch_first:
        x = node.emit(op.permute_dims(x, [1, 0, 2]), "time_first")
    time, batch, inputs = graph.shape(x)
    direction = node.attr("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    hidden = node.attr("hidden_size") or node.shape(2)[-1]
    states = 2 if node.op == "LSTM" else 1
    flat = node.emit(op.reshape(x, (time * batch, inputs)), "flat")
    outputs: list[list[graph.Expr]] = []
    last: list[list[graph.Expr]] = [[] for _ in range(states)]
    for d in range(directions):
        backward = direction == "reverse" or d == 1
        steps, final = one_direction(node, flat, d, backward, time, batch, hidden, states, kind)
        outputs.append(steps)
        for state, value in zip(last, final):
            state.append(value)
    rows = [node.emit(op.stack([outputs[d][t] for d in range(directions)], 0), "row") for t in range(time)]
    y = node.emit(op.stack(rows, 0), "sequence")  # (T, D, N, H)
    finals = [node.emit(op.stack(values, 0), "last") for values in last]  # (D, N, H)
    if batch_first:
        y = node.emit(op.permute_dims(y, [2, 0, 1, 3]), "batch_first")
        finals = [node.emit(op.permute_dims(f, [1, 0, 2]), "batch_first") for f in finals]
    return [y, *finals]


def one_direction(
    node: Node, flat: graph.Expr, d: int, backward: bool, time: int, batch: int, hidden: int, states: int, kind: str
) -> tuple[list[graph.Expr], list[graph.Expr]]:
    """Outputs in order of time, and the last states."""
    op, count = relax.op, GATES[node.op]
    weight, r_weight, bias = (direction_of(node, i, d) for i in (1, 2, 3))
    if weight is None or r_weight is None:
        raise ModelError("W and R are required")
    projected = node.emit(op.matmul(flat, transposed(node, weight)), "projection" if d == 0 else "projection_back")
    inner_bias = None
    if bias is not None:
        size = count * hidden
        w_b, r_b = part(node, bias, 0, size), part(node, bias, size, 2 * size)
        if node.op == "GRU" and node.attr("linear_before_reset", 0):
            inner_bias = part(node, r_b, 2 * hidden, 3 * hidden)
            outer = part(node, r_b, 0, 2 * hidden)
            r_b = joined(node, outer, hidden, kind)
        projected = node.emit(op.add(projected, summed(node, w_b, r_b)), "projection_bias")
    projected = node.emit(op.reshape(projected, (time, batch, count * hidden)), "by_time")
    functions = activations(node, DEFAULTS[node.op], d, kind)
    layer = Layer(node, transposed(node, r_weight), inner_bias, hidden, functions, node.attr("clip"), kind)
    state = [initial(node, 5 + s, d, batch, hidden, kind) for s in range(states)]
    peepholes = direction_of(node, 7, d) if node.op == "LSTM" else None
    lengths = node.emit(op.reshape(node.x(4), (batch, 1)), "lengths") if node.has(4) else None
    zero = graph.const(np.zeros((batch, hidden), graph.value(scalar(0, kind)).dtype))
    rows: list[graph.Expr] = [zero] * time
    for t in reversed(range(time)) if backward else range(time):
        x_t = node.emit(take(projected, graph.const(t, "int64"), 0), "x")
        new = STEPS[node.op](layer, x_t, state, peepholes)
        if lengths is None:
            state, rows[t] = new, new[0]
            continue
        alive = node.emit(op.less(graph.const(t, graph.dtype(lengths)), lengths), "alive")
        rows[t] = node.emit(op.where(alive, new[0], zero), "masked")
        state = [node.emit(op.where(alive, n, o), "masked") for n, o in zip(new, state)]
    return rows, state


def summed(node: Node, a: graph.Expr, b: graph.Expr) -> graph.Expr:
    if graph.is_const(a) and graph.is_const(b):
        return graph.const(graph.value(a) + graph.value(b))
    return node.emit(relax.op.add(a, b), "bias")


def joined(node: Node, vector: graph.Expr, zeros: int, kind: str) -> graph.Expr:
    """`vector` and then `zeros` zeros."""
    if graph.is_const(vector):
        return graph.const(np.concatenate([graph.value(vector), np.zeros(zeros, graph.value(vector).dtype)]))
    tail = graph.const(np.zeros(zeros, graph.value(scalar(0, kind)).dtype))
    return node.emit(relax.op.concat([vector, tail], 0), "bias")


def initial(node: Node, index: int, d: int, batch: int, hidden: int, kind: str) -> graph.Expr:
    """The initial state of a direction (N, H); zeros where the model gives none."""
    if not node.has(index):
        return graph.const(np.zeros((batch, hidden), graph.value(scalar(0, kind)).dtype))
    if node.attr("layout", 0):  # (N, D, H)
        return node.emit(take(node.x(index), graph.const(d, "int64"), 1), "initial")
    state = direction_of(node, index, d)
    assert state is not None
    return state


TABLE = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
