"""Operators that ONNX itself defines as functions of simpler ones, and functions that a model brings along."""

from __future__ import annotations

import onnx
from onnx import defs


def schema(op: str, domain: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, opset, domain)
    except defs.SchemaError:
        return None


def has_body(op: str, domain: str, opset: int) -> bool:
    found = schema(op, domain, opset)
    return found is not None and (found.has_function or found.has_context_dependent_function)


def body(node: onnx.NodeProto, opset: int, input_types: list[onnx.TypeProto]) -> onnx.FunctionProto | None:
    """The function that defines `node`; its attributes are still references."""
    found = schema(node.op_type, node.domain, opset)
    if found is None:
        return None
    data = b""
    if found.has_function:
        data = found.get_function_with_opset_version(opset) if found.function_opset_versions else b""
        if not data:
            return found.function_body
    elif found.has_context_dependent_function:
        versions = [v for v in found.context_dependent_function_opset_versions if v <= opset]
        if not versions:
            return None
        types = [t.SerializeToString() for t in input_types]
        data = found.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), types)
    if not data:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    return function


def bound_nodes(function: onnx.FunctionProto, call: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    """The function's nodes with attribute references replaced by what the call, or else the default, says."""
    given = {a.name: a for a in function.attribute_proto}
    found = schema(call.op_type, call.domain, opset)
    if found is not None:
        given |= {n: a.default_value for n, a in found.attributes.items() if a.default_value.name}
    given |= {a.name: a for a in call.attribute}
    return [_bound(node, given) for node in function.node]


def _bound(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in given:
                continue
            value = result.attribute.add()
            value.CopyFrom(given[attribute.ref_attr_name])
            value.name = attribute.name
        else:
            value = result.attribute.add()
            value.CopyFrom(attribute)
            if attribute.HasField("g"):
                nodes = [_bound(n, given) for n in attribute.g.node]
                del value.g.node[:]
                value.g.node.extend(nodes)
    return result
