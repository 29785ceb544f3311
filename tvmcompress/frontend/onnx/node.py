"""What a converter sees of an ONNX node: its inputs as arrays or expressions, attributes, and a way to emit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.values import Known, Value
from tvmcompress.ir import graph

if TYPE_CHECKING:
    from tvmcompress.frontend.onnx.importer import Importer, Scope


class Node:
    """One node on its way in.

    `inputs` are the values (None where an optional one is absent), `attributes` plain Python values (tensors and
    graphs stay protos), `opset` the version of the operator's domain, `name` what its layer will be called.
    """

    def __init__(self, importer: Importer, scope: Scope, proto: onnx.NodeProto, name: str, inputs: list[Value]):
        self.importer, self.scope, self.proto, self.name, self.inputs = importer, scope, proto, name, inputs
        self.op, self.domain = proto.op_type, proto.domain
        self.opset = scope.opset(proto.domain)
        self.attributes = attributes(proto)

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input number `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def x(self, index: int = 0) -> graph.Expr:
        """Input number `index` as a Relax expression."""
        return self.as_expr(self.inputs[index])

    def as_expr(self, value: Value) -> graph.Expr:
        if isinstance(value, Known):
            return value.expr()
        if value is None or isinstance(value, list):
            raise ModelError("a tensor was expected, and the input is absent or a sequence")
        return value

    def known(self, index: int) -> np.ndarray | None:
        """Input number `index` if its value is known at load (looking through a dequantize of a constant)."""
        if not self.has(index):
            return None
        value = self.inputs[index]
        if isinstance(value, Known):
            return value.array
        return self.importer.dequantized(value)

    def evaluated(self, index: int) -> np.ndarray | None:
        """Like `known`, also where the value was too large to be folded: to look at, not to keep."""
        known = self.known(index)
        return self.importer.evaluated(self.inputs[index]) if known is None and self.has(index) else known

    def need(self, index: int, what: str) -> np.ndarray:
        """Like `known`; raises ModelError naming the model's inputs that decide the value."""
        array = self.known(index)
        if array is not None:
            return array
        raise self.unknown(index, what)

    def need_all(self, what: dict[int, str]) -> None:
        """Raises ModelError unless every given input in `what` (number: meaning) is known; one error for all."""
        open_ = [i for i in what if self.has(i) and self.known(i) is None]
        if open_:
            raise self.unknown(open_, " and ".join(what[i] for i in open_))

    def unknown(self, index: int | list[int], what: str) -> ModelError:
        """The error for values that must be known at load and are not."""
        inputs = [self.proto.input[i] for i in ([index] if isinstance(index, int) else index)]
        sources = sorted(set().union(*(self.scope.sources(i) for i in inputs)))
        if not sources:
            return ModelError(
                f"its {what} (input {', '.join(map(repr, inputs))}) must be known when the model is loaded"
            )
        names = " and ".join(f"'{s}'" for s in sources)
        flags = " ".join(f"--value {s}=..." for s in sources)
        return ModelError(f"its {what} depends on input {names}; bind it with {flags} (values= in Python)")

    def declared(self, index: int = 0) -> tuple[int, ...] | None:
        """The static shape that the model itself states for output number `index`, or None."""
        return self.scope.shape(self.proto.output[index]) if index < len(self.proto.output) else None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of input number `index`; raises ModelError where it depends on data."""
        value = self.inputs[index]
        if isinstance(value, Known):
            return value.array.shape
        try:
            return graph.shape(self.as_expr(value))
        except ValueError as error:
            raise ModelError("the shape of its input depends on data, which this operator cannot take") from error

    def dtype(self, index: int = 0) -> str:
        value = self.inputs[index]
        return value.array.dtype.name if isinstance(value, Known) else graph.dtype(self.as_expr(value))

    def emit(self, expr: graph.Expr, suffix: str = "") -> graph.Expr:
        """Bind `expr` to a variable called after the node (`name_suffix`)."""
        return self.importer.emit(expr, f"{self.name}_{suffix}" if suffix else self.name)

    def call(
        self, op: str, inputs: list[Value], domain: str = "", opset: int | None = None, **attrs: Any
    ) -> list[Value]:
        """Import a further node `op` on values at hand, as if the model had it here."""
        return self.importer.call(self, op, inputs, domain, opset, attrs)


def attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name; byte strings decoded."""
    found = {}
    for attribute in proto.attribute:
        if attribute.ref_attr_name:
            continue  # an attribute that the caller of the function did not give
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [v.decode("utf-8", "replace") for v in value]
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        found[attribute.name] = value
    return found
