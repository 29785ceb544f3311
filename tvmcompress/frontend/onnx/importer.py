"""Walking an ONNX graph: every value is an array known at load or a Relax expression.

A node is brought in by the first of these that can: evaluation at load (all inputs known), our own converter
(`operators`), ONNX's definition of the operator as a function, TVM's stock converter (`stock`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tvmcompress.errors import ModelError, TvmcompressError
from tvmcompress.frontend.onnx import functions, stock
from tvmcompress.frontend.onnx.fold import EVALUATED, fold
from tvmcompress.frontend.onnx.node import Node
from tvmcompress.frontend.onnx.operators import CONVERTERS, PREFER_FUNCTION
from tvmcompress.frontend.onnx.values import Known, Value
from tvmcompress.ir import graph
from tvmcompress.spec import numpy_dtype


class Scope:
    """The values, opsets and stated shapes that the nodes of one graph or function body see."""

    def __init__(
        self, opsets: dict[str, int], shapes: dict[str, tuple[int, ...]] | None = None, parent: Scope | None = None
    ):
        self.opsets, self.shapes, self.parent = opsets, shapes or {}, parent
        self.values: dict[str, Value] = {}
        self.origins: dict[str, frozenset[str]] = {}  # the model inputs that a value was computed from

    def opset(self, domain: str) -> int:
        domain = "" if domain == "ai.onnx" else domain
        if domain in self.opsets:
            return self.opsets[domain]
        return self.parent.opset(domain) if self.parent else 1

    def __getitem__(self, name: str) -> Value:
        if not name:
            return None
        if name in self.values:
            return self.values[name]
        if self.parent is None:
            raise ModelError(f"value '{name}' is read but nothing computes it")
        return self.parent[name]

    def sources(self, name: str) -> frozenset[str]:
        if name in self.origins:
            return self.origins[name]
        return self.parent.sources(name) if self.parent and name not in self.values else frozenset()

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name in self.shapes:
            return self.shapes[name]
        return self.parent.shape(name) if self.parent else None

    def bind(self, name: str, value: Value, sources: frozenset[str] = frozenset()) -> None:
        if name:
            self.values[name] = value
            if sources and not isinstance(value, Known):
                self.origins[name] = sources


class Importer:
    """Emits a Relax program node by node. `functions` are the model's own, by (domain, name)."""

    def __init__(self, own_functions: Iterable[onnx.FunctionProto] = ()):
        self.builder = relax.BlockBuilder()
        self.functions = {(f.domain, f.name): f for f in own_functions}
        self._dequantized: dict[graph.Expr, Callable[[], np.ndarray]] = {}
        self._unfolded: dict[graph.Expr, Callable[[], np.ndarray | None]] = {}
        self._stack: list[str] = []
        self.infinite = False  # whether a constant of the model, a mask most likely, holds infinities

    # Emitting

    def emit(self, expr: graph.Expr, name: str) -> graph.Expr:
        """Bind `expr` to a variable; variables and constants are returned as they are."""
        if isinstance(expr, relax.Var) or graph.is_const(expr):
            return expr
        return self.builder.emit(expr, name_hint=name or "x")

    def remember_dequantized(self, var: graph.Expr, compute: Callable[[], np.ndarray]) -> None:
        """`var` is a dequantized constant: not folded, but an operator that must know its value may ask."""
        self._dequantized[var] = compute

    def look_for_infinity(self, array: np.ndarray) -> None:
        """Masks are small; large weights are not looked at."""
        if array.dtype.kind == "f" and array.nbytes <= 1 << 16 and np.isinf(array).any():
            self.infinite = True

    def dequantized(self, value: Value) -> np.ndarray | None:
        compute = self._dequantized.get(value) if isinstance(value, relax.Var) else None
        return compute() if compute else None

    def evaluated(self, value: Value) -> np.ndarray | None:
        """The value of what could be folded but for its size: large, so it should not be kept."""
        return self._unfolded[value]() if self.may_evaluate(value) else None

    def may_evaluate(self, value: Value) -> bool:
        return isinstance(value, relax.Var) and value in self._unfolded

    def remember_unfolded(self, node: Node, outputs: Sequence[Value]) -> None:
        """Outputs that follow from what is known, and were too large to be folded."""
        if not all(v is None or isinstance(v, Known) or self.may_evaluate(v) for v in node.inputs):
            return

        def compute(number: int) -> np.ndarray | None:
            arrays = [v.array if isinstance(v, Known) else self.evaluated(v) for v in node.inputs]
            if any(a is None and v is not None for a, v in zip(arrays, node.inputs)):
                return None
            results = fold(node.proto, arrays, node.opset, EVALUATED)
            return None if results is None else results[number]

        for number, value in enumerate(outputs):
            if isinstance(value, relax.Var):
                self._unfolded[value] = partial(compute, number)

    # Walking

    def run(self, nodes: Sequence[onnx.NodeProto], scope: Scope, keep: Iterable[str] = ()) -> None:
        """Import nodes in order. Known values are let go after their last use, except `keep`: weights are large."""
        last = last_uses(nodes, keep)
        for index, proto in enumerate(nodes):
            self.node(proto, scope, layer_name(proto, index, self._stack))
            for name in last.get(index, ()):
                if isinstance(scope.values.get(name), Known):
                    del scope.values[name]

    def node(self, proto: onnx.NodeProto, scope: Scope, name: str) -> None:
        """Import one node and bind its outputs in `scope`."""
        try:
            inputs = [scope[i] for i in proto.input]
            node = Node(self, scope, proto, name, inputs)
            outputs = self.convert(node)
        except TvmcompressError as error:
            if str(error).startswith("operator "):
                raise
            raise ModelError(f"operator {proto.op_type} at node '{name}': {error}") from error
        except Exception as error:
            raise ModelError(f"operator {proto.op_type} at node '{name}': {reason(error)}") from error
        given = sum(1 for o in proto.output if o)
        if len(outputs) < len(proto.output) and len(outputs) < given:
            raise ModelError(
                f"operator {proto.op_type} at node '{name}': gives {len(outputs)} outputs, {given} are used"
            )
        sources = frozenset().union(*(scope.sources(i) for i in proto.input if i)) if proto.input else frozenset()
        values = [self.named(value, name) for value in outputs]
        self.remember_unfolded(node, values)
        for output, value in zip(proto.output, values):
            scope.bind(output, value, sources)

    def named(self, value: Any, name: str) -> Value:
        if isinstance(value, np.ndarray | np.generic):
            return Known(np.asarray(value))
        if isinstance(value, relax.Expr):
            var = self.emit(value, name)
            empty = not graph.is_const(var) and graph.has_static_shape(var) and isinstance(var.ty, relax.TensorType)
            if empty and 0 in graph.shape(var):  # nothing to compute, and TVM's kernels for nothing do not compile
                return Known(np.zeros(graph.shape(var), numpy_dtype(graph.dtype(var))))
            return var
        return value

    def convert(self, node: Node) -> list[Any]:
        """The node's outputs: arrays, Known values, expressions (bound by the caller) or lists for sequences."""
        if all(v is None or isinstance(v, Known) for v in node.inputs):
            arrays = [v.array if isinstance(v, Known) else None for v in node.inputs]
            results = fold(node.proto, arrays, node.opset)
            if results is not None:
                return results
        key = (node.domain if node.domain != "ai.onnx" else "", node.op)
        own = self.functions.get((node.domain, node.op))
        if own is not None:
            return self.function(node, own)
        if key in CONVERTERS:
            outputs = CONVERTERS[key](node)
            if outputs is not NotImplemented:
                return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        if key in PREFER_FUNCTION:
            body = self.body(node)
            if body is not None:
                return self.function(node, body)
        failed: Exception | None = None
        if stock.has(node.op, node.domain):
            try:
                return stock.convert(node)
            except Exception as error:
                failed = error
        body = self.body(node)
        if body is not None:
            return self.function(node, body)
        if failed is not None:
            raise failed
        raise ModelError("not supported in this form")

    def body(self, node: Node) -> onnx.FunctionProto | None:
        if not functions.has_body(node.op, node.domain, node.opset):
            return None
        return functions.body(node.proto, node.opset, [type_proto(node, i) for i in range(len(node.inputs))])

    def function(self, node: Node, function: onnx.FunctionProto) -> list[Value]:
        """Import a function's body in a scope of its own."""
        opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in function.opset_import}
        scope = Scope(opsets or {"": node.opset})
        for name, value, outer in zip(function.input, node.inputs, node.proto.input):
            scope.bind(name, value, node.scope.sources(outer) if outer else frozenset())
        for name in function.input[len(node.inputs) :]:
            scope.bind(name, None)
        for inner, outer in zip(function.output, node.proto.output):
            stated = node.scope.shape(outer)
            if stated is not None:
                scope.shapes[inner] = stated
        self._stack.append(node.name)
        try:
            self.run(functions.bound_nodes(function, node.proto, node.opset), scope, function.output)
        finally:
            self._stack.pop()
        # An output that this call does not use may have no definition in the body made for it.
        used = [bool(outer) for outer in node.proto.output]
        return [scope[o] if u else scope.values.get(o) for o, u in zip(function.output, used)]

    def subgraph(self, node: Node, body: onnx.GraphProto, arguments: Sequence[Value], tag: str = "") -> list[Value]:
        """Import a branch or loop body in place; it sees the values around it."""
        scope = Scope({}, parent=node.scope)
        for tensor in body.initializer:
            scope.bind(tensor.name, Known(onnx.numpy_helper.to_array(tensor)))
        for formal, actual in zip(body.input, arguments):
            scope.bind(formal.name, actual, frozenset().union(*(node.scope.sources(i) for i in node.proto.input if i)))
        self._stack.append(f"{node.name}_{tag}" if tag else node.name)
        try:
            self.run(body.node, scope, [o.name for o in body.output])
        finally:
            self._stack.pop()
        return [scope[o.name] for o in body.output]

    def call(
        self, node: Node, op: str, inputs: Sequence[Any], domain: str, opset: int | None, attrs: dict[str, Any]
    ) -> list[Value]:
        """Import a node made up on the spot, on values at hand."""
        scope = Scope({domain: opset or (node.opset if domain == node.domain else 1)}, parent=node.scope)
        names = []
        for index, value in enumerate(inputs):
            names.append("" if value is None else f"argument{index}")
            if value is not None:
                scope.bind(names[-1], self.named(value, node.name))
        schema = functions.schema(op, domain, scope.opset(domain))
        proto = onnx.helper.make_node(
            op, names, [f"result{i}" for i in range(schema.max_output if schema else 1)][:8], domain=domain, **attrs
        )
        results = self.convert(Node(self, scope, proto, node.name, [scope[n] for n in names]))
        return [self.named(r, node.name) for r in results]


def layer_name(proto: onnx.NodeProto, index: int, stack: Sequence[str]) -> str:
    """The node's own name, or the operator's with the node's position; inside a function, after the caller's."""
    own = proto.name or f"{proto.op_type}_{index}"
    return f"{stack[-1]}/{own}" if stack else own


def last_uses(nodes: Sequence[onnx.NodeProto], keep: Iterable[str]) -> dict[int, list[str]]:
    """From the number of a node to the values that no later node reads."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in reads(node):
            last[name] = index
    kept = set(keep)
    by_node: dict[int, list[str]] = {}
    for name, index in last.items():
        if name and name not in kept:
            by_node.setdefault(index, []).append(name)
    return by_node


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those inside its branches and bodies included."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (o.name for o in body.output)
            for inner in body.node:
                yield from reads(inner)


def type_proto(node: Node, index: int) -> onnx.TypeProto:
    if not node.has(index) or isinstance(node.inputs[index], list):
        return onnx.TypeProto()
    kind = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(node.dtype(index)))
    value = node.inputs[index]
    static = isinstance(value, Known) or graph.has_static_shape(node.as_expr(value))
    return onnx.helper.make_tensor_type_proto(kind, node.shape(index) if static else None)


def reason(error: Exception) -> str:
    """The telling line of an exception that TVM raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    if not isinstance(error, ValueError | TypeError | RuntimeError):
        text = f"{type(error).__name__}: {text}"
    return text[:300]
