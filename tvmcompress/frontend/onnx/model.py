"""From a ModelProto to a Model: inputs bound, operators checked, the graph walked, outputs collected."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tvm import relax

from tvmcompress.errors import ModelError, OpenShapeError, did_you_mean
from tvmcompress.frontend.onnx.files import open_model
from tvmcompress.frontend.onnx.importer import Importer, Scope
from tvmcompress.frontend.onnx.support import check_operators
from tvmcompress.frontend.onnx.tensors import Tensors, dtype_name
from tvmcompress.frontend.onnx.values import Known
from tvmcompress.ir import graph
from tvmcompress.model import Model, Source, TensorSpec

Shapes = Mapping[str, Sequence[int]]


def load_onnx(
    path: str | os.PathLike, shapes: Shapes | None = None, values: Mapping[str, np.ndarray] | None = None
) -> Model:
    """Read an ONNX file, external data included. See `import_proto` for the rest."""
    path = Path(path)
    proto, tensors = open_model(path)
    source = Source.of(path, "onnx", tensors.external_files(proto.graph))
    return import_proto(proto, source, shapes, values, tensors)


def import_proto(
    proto: onnx.ModelProto,
    source: Source,
    shapes: Shapes | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    tensors: Tensors | None = None,
) -> Model:
    """Bring a model in. `shapes` binds open dimensions of inputs, `values` turns inputs into constants.

    Raises ModelError, UnsupportedOperatorsError (all of them, before any work) and OpenShapeError.
    """
    check_operators(proto)
    tensors = tensors or Tensors()
    body = proto.graph
    constants = {t.name for t in body.initializer} | {t.values.name for t in body.sparse_initializer}
    inputs = [i for i in body.input if i.name not in constants]
    bound = bound_values(inputs, values or {})
    runtime = [i for i in inputs if i.name not in bound]
    dims = bind_dimensions(runtime, shapes or {})
    specs = tuple(spec_of(i, dims) for i in runtime)

    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    scope = Scope(opsets or {"": 1}, stated_shapes(body, dims))
    importer = Importer(proto.functions)
    for tensor in body.initializer:
        known = Known(tensors.read(tensor))
        importer.look_for_infinity(known.array)
        scope.bind(tensor.name, known)
    for sparse in body.sparse_initializer:
        scope.bind(sparse.values.name, Known(tensors.read_sparse(sparse)))
    for name, array in bound.items():
        scope.bind(name, Known(array))

    params = [relax.Var(s.name, relax.TensorType(list(s.shape), s.dtype)) for s in specs]
    for spec, param in zip(specs, params):
        scope.bind(spec.name, param, frozenset([spec.name]))
    with importer.builder.function("main", params):
        with importer.builder.dataflow():
            importer.run(body.node, scope, [o.name for o in body.output])
            fields = [as_result(importer, scope, o.name) for o in body.output]
            out = importer.builder.emit_output(relax.Tuple(fields))
        importer.builder.emit_func_output(out)
    module = graph.remove_dead(importer.builder.finalize())
    outputs = tuple(result_spec(o.name, field) for o, field in zip(body.output, graph.results(module)))
    return Model(module, specs, outputs, source)


def as_result(importer: Importer, scope: Scope, name: str) -> graph.Expr:
    value = scope[name]
    if isinstance(value, Known):
        if value.array.size == 0:  # TVM cannot store a constant without elements
            return importer.emit(relax.op.zeros(value.array.shape, value.array.dtype.name), name)
        return value.expr()
    if value is None or isinstance(value, list):
        raise ModelError(f"output '{name}' is a sequence or an optional; only tensors can leave a model")
    return value


def result_spec(name: str, expr: graph.Expr) -> TensorSpec:
    dims = expr.ty.shape
    if dims is None:
        return TensorSpec(name, (None,) * max(expr.ty.ndim, 0), graph.dtype(expr))
    return TensorSpec(name, tuple(int(d) if hasattr(d, "value") else None for d in dims), graph.dtype(expr))


def hint(name: str, names: Sequence[str]) -> str:
    return did_you_mean(name, names) or f"; the inputs are {', '.join(names)}"


def bound_values(inputs: Sequence[onnx.ValueInfoProto], values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs that the caller made constants, as arrays of the declared dtype."""
    by_name = {i.name: i for i in inputs}
    bound = {}
    for name, value in values.items():
        if name not in by_name:
            raise ModelError(f"no input '{name}' to bind a value to{hint(name, list(by_name))}")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type(by_name[name]).elem_type)
        array = np.asarray(value)
        if array.dtype != dtype and array.dtype.kind not in "iufb":
            raise ModelError(f"value of input '{name}': wanted {dtype}, got {array.dtype}")
        bound[name] = array.astype(dtype)
    return bound


def bind_dimensions(inputs: Sequence[onnx.ValueInfoProto], shapes: Shapes) -> dict[str, Any]:
    """`shapes` checked against the inputs: sizes by symbol, whole shapes by a quote and the input's name."""
    names = [i.name for i in inputs]
    for name in shapes:
        if name not in names:
            raise ModelError(f"no input '{name}' to give a shape to{hint(name, names)}")
    sizes: dict[str, Any] = {}
    for value in inputs:
        if not has_tensor(value):
            raise ModelError(f"input '{value.name}' is not a tensor; only tensors can enter a model")
        if value.name not in shapes:
            continue
        wanted = tuple(int(d) for d in shapes[value.name])
        declared = tensor_type(value)
        sizes[f"'{value.name}"] = wanted
        if not declared.HasField("shape"):
            continue
        dims = declared.shape.dim
        if len(dims) != len(wanted) or min(wanted, default=0) < 0:
            raise ModelError(f"shape of input '{value.name}': wanted {show(dims)}, got {'x'.join(map(str, wanted))}")
        for dim, size in zip(dims, wanted):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise ModelError(
                    f"shape of input '{value.name}': wanted {show(dims)}, got {'x'.join(map(str, wanted))}"
                )
            if dim.dim_param and sizes.setdefault(dim.dim_param, size) != size:
                raise ModelError(
                    f"dimension '{dim.dim_param}' is {sizes[dim.dim_param]} for one input and {size} for '{value.name}'"
                )
    return sizes


def tensor_type(value: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor:
    """The type of an input; an optional tensor counts as a tensor that is given."""
    kind = value.type.optional_type.elem_type if value.type.HasField("optional_type") else value.type
    return kind.tensor_type


def has_tensor(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.optional_type.elem_type if value.type.HasField("optional_type") else value.type
    return kind.HasField("tensor_type")


def show(dims: Sequence[Any]) -> str:
    return "x".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)


def spec_of(value: onnx.ValueInfoProto, sizes: dict[str, Any]) -> TensorSpec:
    """The input's static shape; raises OpenShapeError."""
    declared = tensor_type(value)
    dtype = dtype_name(declared.elem_type, f"input '{value.name}'")
    if f"'{value.name}" in sizes:
        return TensorSpec(value.name, sizes[f"'{value.name}"], dtype)
    if not declared.HasField("shape"):
        raise OpenShapeError(
            f"the shape of input '{value.name}' is not stated; give it with --shape {value.name}=1x3x224x224"
        )
    dims = declared.shape.dim
    resolved = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param or "") for d in dims]
    if any(d is None for d in resolved):
        example = "x".join(
            str(d) if d is not None else str(e) for d, e in zip(resolved, (1, 3, 224, 224, *[16] * len(dims)))
        )
        raise OpenShapeError(
            f"input '{value.name}' has open dimensions ({show(dims)}); bind them with --shape {value.name}={example}"
        )
    return TensorSpec(value.name, tuple(int(d or 0) for d in resolved), dtype)


def stated_shapes(body: onnx.GraphProto, sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The static shapes that the model states for values inside it and for its outputs."""
    stated = {}
    for value in (*body.value_info, *body.output):
        declared = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not declared.HasField("shape"):
            continue
        dims = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param or "") for d in declared.shape.dim]
        if all(d is not None for d in dims):
            stated[value.name] = tuple(int(d or 0) for d in dims)
    return stated
