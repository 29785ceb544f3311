"""From a TFLite graph to a Model, operator by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from tvm import relax

from tvmcompress.errors import ModelError, OpenShapeError, UnsupportedOperatorsError, did_you_mean
from tvmcompress.frontend.tflite import elementwise, layers, movement, recurrent, reduction
from tvmcompress.frontend.tflite.context import Context, Value
from tvmcompress.frontend.tflite.reader import Graph, Operator, Tensor
from tvmcompress.frontend.weights import fold_movement
from tvmcompress.ir import graph
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec

CONVERTERS = {
    **layers.CONVERTERS,
    **elementwise.CONVERTERS,
    **movement.CONVERTERS,
    **reduction.CONVERTERS,
    **recurrent.CONVERTERS,
}
TVM_ERRORS = (
    ValueError,
    AssertionError,
    NotImplementedError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
)


def import_file(source: Graph, origin: Source, shapes: Mapping[str, Sequence[int]]) -> Model:
    check_operators(source)
    inputs = input_specs(source, shapes)
    context = None

    def body(rewriter: graph.Rewriter, *params: relax.Var) -> list[relax.Expr]:
        nonlocal context
        context = Context(source, rewriter)
        for number, param in zip(source.inputs, params):
            context.values[number] = Value(param)
        for operator in source.operators:
            convert(context, operator)
        return [result(context, number) for number in source.outputs]

    module = graph.program([(variable_name(s.name), graph_shape(s), s.dtype) for s in inputs], body)
    module = graph.remove_dead(graph.rewrite(module, fold_movement))
    outputs = tuple(
        TensorSpec(own_name(source, number), graph.shape(r), graph.dtype(r))
        for number, r in zip(source.outputs, graph.results(module))
    )
    return Model(module, tuple(inputs), outputs, origin)


def check_operators(source: Graph) -> None:
    """Raise UnsupportedOperatorsError with every kind that has no converter."""
    missing: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for operator in source.operators:
        if operator.custom or operator.kind not in CONVERTERS:
            key = (operator.kind, "tflite.custom" if operator.custom else "tflite")
            missing[key] += 1
            name = source.tensors[operator.outputs[0]].name if operator.outputs else ""
            first.setdefault(key, name)
    if missing:
        raise UnsupportedOperatorsError(
            [(kind, domain, n, first[kind, domain]) for (kind, domain), n in missing.items()]
        )
    for tensor in source.tensors:
        if tensor.sparse:
            raise ModelError(
                f"{source.path}: weight '{tensor.name}' is stored sparse; convert the model without sparsity"
            )


def own_name(source: Graph, number: int) -> str:
    return source.names.get(number) or source.tensors[number].name or f"tensor_{number}"


def declared(source: Graph, numbers: Sequence[int]) -> tuple[TensorSpec, ...]:
    """Tensors with the shapes and dtypes in the file."""
    tensors = [(own_name(source, n), source.tensors[n]) for n in numbers]
    return tuple(TensorSpec(name, tuple(d if d >= 0 else None for d in t.shape), t.dtype) for name, t in tensors)


def variable_name(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name) or "x"


def graph_shape(spec: TensorSpec) -> list[int]:
    return [d for d in spec.shape if d is not None]


def input_specs(source: Graph, shapes: Mapping[str, Sequence[int]]) -> list[TensorSpec]:
    """Inputs with the shapes given, under the signature's or the tensor's name, or else the file's."""
    names = {own_name(source, n): n for n in source.inputs}
    tensor_names = {source.tensors[n].name: n for n in source.inputs}
    given = {}
    for name, shape in shapes.items():
        number = names.get(name, tensor_names.get(name))
        if number is None:
            raise ModelError(f"{source.path}: has no input '{name}'{did_you_mean(name, names)}")
        given[number] = tuple(int(d) for d in shape)
    return [
        TensorSpec(name, input_shape(source, name, number, given), dtype_of(source, number))
        for name, number in names.items()
    ]


def input_shape(source: Graph, name: str, number: int, given: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    own = source.tensors[number].shape
    shape = given.get(number, own)
    if number in given and len(shape) != len(own) and own:
        raise ModelError(f"{source.path}: input '{name}' has {len(own)} dimensions {own}, not {shape}")
    if any(d < 1 for d in shape):
        text = "x".join(str(d) if d > 0 else "?" for d in shape)
        raise OpenShapeError(
            f"{source.path}: input '{name}' has open dimensions ({text}); bind them: --shape {name}={text}"
        )
    return shape


def dtype_of(source: Graph, number: int) -> str:
    tensor: Tensor = source.tensors[number]
    if tensor.dtype in ("string", "resource", "variant", "complex64", "complex128"):
        raise ModelError(f"{source.path}: tensor '{tensor.name}' is of dtype {tensor.dtype}, which cannot be compiled")
    return tensor.dtype


def convert(context: Context, operator: Operator) -> None:
    context.start(operator)
    try:
        for number in operator.inputs:
            known = number < 0 or number in context.values or number in context.constants
            if not known and not context.graph.tensors[number].variable:
                raise context.fail(f"reads tensor {number}, which nothing writes")
        CONVERTERS[operator.kind](context)
        context.fold()
    except TVM_ERRORS as error:
        text = (str(error).strip().splitlines() or [""])[-1]
        raise context.fail(f"cannot be imported ({type(error).__name__}: {text[:160]})") from error


def result(context: Context, number: int) -> relax.Expr:
    """An output of the model in the file's layout and dtype."""
    if number in context.constants:
        return context.rewriter.emit(
            relax.op.add(graph.const(context.constants[number].array), zero_of(context, number))
        )
    value = context.values.get(number)
    if value is None:
        raise ModelError(
            f"{context.graph.path}: output '{context.graph.tensors[number].name}' is written by no operator"
        )
    context.layer = "output"
    return context.permute(value.expr, (0, 2, 3, 1)) if value.nchw else value.expr


def zero_of(context: Context, number: int) -> relax.Expr:
    return graph.const(np.zeros((), context.constants[number].array.dtype))
