"""Which operators of a model cannot be imported: all of them at once, before any work."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from tvmcompress.errors import UnsupportedOperatorsError
from tvmcompress.frontend.onnx import functions, stock
from tvmcompress.frontend.onnx.operators import CONVERTERS

Row = tuple[str, str, int, str]
# What the reference can evaluate at load, and nothing can at run time, is supported where its inputs are known.
AT_LOAD = {"Constant", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow", "Det"}


def unsupported_operators(proto: onnx.ModelProto) -> list[Row]:
    """(operator, domain, count, first node's name) of each operator that has no way in, in order of appearance."""
    own = {(f.domain, f.name): f for f in proto.functions}
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    found: dict[tuple[str, str], list] = {}
    for node, node_opsets, index in _nodes(proto.graph.node, opsets, own, set()):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not supported(node.op_type, domain, node_opsets.get(domain, 1)):
            row = found.setdefault((node.op_type, domain), [0, node.name or f"{node.op_type}_{index}"])
            row[0] += 1
    return [(op, domain, count, first) for (op, domain), (count, first) in found.items()]


def check_operators(proto: onnx.ModelProto) -> None:
    rows = unsupported_operators(proto)
    if rows:
        raise UnsupportedOperatorsError(rows)


def supported(op: str, domain: str, opset: int, depth: int = 0) -> bool:
    """Whether an operator has a converter, or a definition made of operators that have one."""
    if (domain, op) in CONVERTERS or stock.has(op, domain) or (not domain and op in AT_LOAD):
        return True
    found = functions.schema(op, domain, opset)
    if found is None or depth > 8:
        return False
    if found.has_context_dependent_function:
        return True
    if not found.has_function:
        return False
    body = functions.body(onnx.NodeProto(op_type=op, domain=domain), opset, [])
    if body is None:
        return False
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in body.opset_import}
    return all(supported(n.op_type, n.domain, opsets.get(n.domain, opset), depth + 1) for n in body.node)


def _nodes(
    nodes, opsets: dict[str, int], own: dict, inside: set
) -> Iterator[tuple[onnx.NodeProto, dict[str, int], int]]:
    """Every node, those of branches, loop bodies and the model's own functions included."""
    for index, node in enumerate(nodes):
        key = (node.domain, node.op_type)
        if key in own:
            if key not in inside:
                function = own[key]
                inner = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in function.opset_import}
                yield from _nodes(function.node, inner or opsets, own, inside | {key})
            continue
        yield node, opsets, index
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node, opsets, own, inside)
