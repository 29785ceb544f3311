"""If, Loop and Scan, taken apart: a known branch is imported alone, loops of known length are unrolled."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators.common import take
from tvmcompress.frontend.onnx.values import Known, Value
from tvmcompress.ir import graph

MOST = 4096  # iterations that are unrolled


def if_(node: Node) -> list[Value]:
    """A branch that is known is taken; else both are computed, and the condition selects."""
    known = node.known(0)
    if known is not None:
        return node.importer.subgraph(node, node.attr("then_branch" if known.reshape(-1)[0] else "else_branch"), [])
    yes = node.importer.subgraph(node, node.attr("then_branch"), [], "then")
    no = node.importer.subgraph(node, node.attr("else_branch"), [], "else")
    condition = node.x(0)
    if graph.shape(condition) != ():
        condition = node.emit(relax.op.reshape(condition, ()), "condition")
    return [select(node, condition, a, b) for a, b in zip(yes, no)]


def select(node: Node, condition: graph.Expr, yes: Value, no: Value) -> graph.Expr:
    a, b = node.as_expr(yes), node.as_expr(no)
    same = graph.has_static_shape(a) and graph.has_static_shape(b) and graph.shape(a) == graph.shape(b)
    if not same or graph.dtype(a) != graph.dtype(b):
        raise ModelError(f"its branches differ in shape or dtype; {node.unknown(0, 'condition')}")
    return node.emit(relax.op.where(condition, a, b), "selected")


def loop(node: Node) -> list[Value]:
    """Unrolled. The trip count, or else the condition at every turn, must be known; a runtime condition masks."""
    body = node.attr("body")
    limit = node.known(0)
    trips = None if limit is None else int(limit.reshape(-1)[0])
    condition: Value = node.inputs[1] if node.has(1) else Known(np.array(True))
    if trips is None and node.has(0) and not isinstance(condition, Known):
        raise node.unknown(0, "trip count")
    carried, count = list(node.inputs[2:]), len(node.inputs) - 2
    stacked: list[list[Any]] = [[] for _ in range(len(body.output) - 1 - count)]
    turn = 0
    while trips is None or turn < trips:
        if isinstance(condition, Known) and not condition.array.reshape(-1)[0]:
            break
        if turn >= MOST:
            raise ModelError(f"more than {MOST} turns would have to be unrolled")
        if trips is None and not isinstance(condition, Known):
            raise ModelError("its condition is only known at run time and its trip count is open")
        arguments = [Known(np.array(turn, "int64")), condition, *carried]
        results = node.importer.subgraph(node, body, arguments, f"turn{turn}")
        if not isinstance(condition, Known):
            if stacked:
                raise ModelError("a runtime condition with collected outputs gives a result of unknown length")
            alive = node.as_expr(condition)
            results[1:] = [select(node, alive, new, old) for new, old in zip(results[1:], carried)]
            both = results[0] is not None and not isinstance(results[0], Known)
            results[0] = (
                node.emit(relax.op.logical_and(alive, node.as_expr(results[0])), "alive") if both else condition
            )
        condition, carried = results[0], results[1 : 1 + count]
        for collected, value in zip(stacked, results[1 + count :]):
            collected.append(value)
        turn += 1
    return [*carried, *(stack(node, c, 0, body.output[1 + count + i]) for i, c in enumerate(stacked))]


def stack(node: Node, values: list[Value], axis: int, declared: Any) -> Value:
    """Values of one shape along a new axis."""
    known = [v.array for v in values if isinstance(v, Known)]
    if known and len(known) == len(values):
        return Known(np.stack(known, axis))
    if not values:
        shape = [d.dim_value for d in declared.type.tensor_type.shape.dim]
        from onnx.helper import tensor_dtype_to_np_dtype

        return Known(np.zeros((0, *shape), tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type)))
    return node.emit(relax.op.stack([node.as_expr(v) for v in values], axis), "stacked")


def scan(node: Node) -> list[Value]:
    """Unrolled along the scan axes (opset 9 on)."""
    if node.opset < 9:
        return scan_8(node)
    return scanned(node, node.inputs)


def scan_8(node: Node) -> list[Value]:
    """Opset 8: a batch axis in front of everything, and optional sequence lengths, which must be absent."""
    if node.has(0):
        raise ModelError("sequence_lens is not supported")
    batch = node.shape(1)[0]
    results = []
    for b in range(batch):
        picked = [node.emit(take(node.as_expr(v), graph.const(b, "int64"), 0), "sample") for v in node.inputs[1:]]
        results.append(scanned(node, picked))
    return [
        node.emit(relax.op.stack([node.as_expr(r[i]) for r in results], 0), "batch") for i in range(len(results[0]))
    ]


def scanned(node: Node, inputs: list[Value]) -> list[Value]:
    body, scans = node.attr("body"), node.attr("num_scan_inputs")
    states = len(inputs) - scans
    carried, streams = list(inputs[:states]), [node.as_expr(v) for v in inputs[states:]]
    ranks = [len(graph.shape(s)) for s in streams]
    axes = [a % r for a, r in zip(node.attr("scan_input_axes", [0] * scans), ranks)]
    backward = node.attr("scan_input_directions", node.attr("directions", [0] * scans))
    outputs = len(body.output) - states
    length = graph.shape(streams[0])[axes[0]]
    if length > MOST:
        raise ModelError(f"{length} turns would have to be unrolled; at most {MOST} are")
    collected: list[list[Any]] = [[] for _ in range(outputs)]
    for turn in range(length):
        slices = []
        for stream, axis, back in zip(streams, axes, backward):
            position = length - 1 - turn if back else turn
            slices.append(node.emit(take(stream, graph.const(position, "int64"), axis), "slice"))
        results = node.importer.subgraph(node, body, [*carried, *slices], f"turn{turn}")
        carried = results[:states]
        for values, value in zip(collected, results[states:]):
            values.append(value)
    out_axes = node.attr("scan_output_axes", [0] * outputs)
    out_backward = node.attr("scan_output_directions", [0] * outputs)
    stacked = []
    for i, values in enumerate(collected):
        rank = len(graph.shape(node.as_expr(values[0]))) + 1 if values else 1
        ordered = values[::-1] if out_backward[i] else values
        stacked.append(stack(node, ordered, out_axes[i] % rank, body.output[states + i]))
    return [*carried, *stacked]


TABLE = {"If": if_, "Loop": loop, "Scan": scan}
