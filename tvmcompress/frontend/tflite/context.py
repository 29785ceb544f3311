"""What the converters of operators work with: tensors in either layout, quantization around them, and constants.

Images are NHWC in the file and NCHW in our programs. A value of rank 4 is kept in the layout in which it was made, and
is permuted when an operator asks for the other; so between two convolutions nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import Expr

from tvmcompress.errors import ModelError
from tvmcompress.frontend.tflite.reader import Graph, Operator, Quantization, Tensor
from tvmcompress.ir import graph
from tvmcompress.ir.evaluate import evaluate

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
FOLDED = 4096  # elements up to which an operator on constants is evaluated here: shapes, indices
ANCHORS = ("conv", "matmul")


@dataclass
class Constant:
    """A weight: its stored values and how they are to be read."""

    array: np.ndarray
    quantization: Quantization | None = None

    def floats(self) -> np.ndarray:
        """The real values, for small ones that become attributes."""
        if self.quantization is None:
            return self.array
        q, shape = self.quantization, [1] * self.array.ndim
        if len(q.scale) > 1:
            shape[q.axis] = -1
        return ((self.array.astype(np.float64) - q.zero.reshape(shape)) * q.scale.reshape(shape)).astype(np.float32)


@dataclass
class Value:
    """An expression for a tensor, quantized if the tensor is; `nchw` says that a rank-4 one has its channels second."""

    expr: Expr
    nchw: bool = False


class Context:
    """The state of one import, and the operator being converted."""

    def __init__(self, source: Graph, rewriter: graph.Rewriter):
        self.graph = source
        self.rewriter = rewriter
        self.values: dict[int, Value] = {}
        self.constants: dict[int, Constant] = {
            i: Constant(*signed(t.data, t.quantization)) for i, t in enumerate(source.tensors) if t.data is not None
        }
        self.floats: dict[tuple[int, bool], Expr] = {}
        self.permuted: dict[Expr, tuple[Expr, tuple[int, ...]]] = {}
        self.operator: Operator = source.operators[0] if source.operators else Operator("", (), (), None)
        self.layer = ""

    def start(self, operator: Operator) -> None:
        self.operator = operator
        name = self.graph.tensors[operator.outputs[0]].name.split(";")[0] if operator.outputs else ""
        if "PartitionedCall" in name:  # the converter renames whatever makes an output
            name = f"{operator.kind.lower()}_{operator.outputs[0]}"
        self.layer = re.sub(r"\W+", "_", name).strip("_") or operator.kind.lower()

    def emit(self, expr: Expr) -> Expr:
        """Bind an expression; the layer's own name goes to the product or convolution, others get a suffix."""
        op = graph.op_name(expr).removeprefix("relax.").split(".")[-1]
        anchor = any(word in op for word in ANCHORS)
        return self.rewriter.emit(expr, self.layer if anchor or not op else f"{self.layer}_{op}")

    def fail(self, why: str) -> ModelError:
        return ModelError(f"{self.graph.path}: layer '{self.layer}' ({self.operator.kind}): {why}")

    # What goes in.

    def tensor(self, place: int) -> Tensor:
        return self.graph.tensors[self.operator.inputs[place]]

    def has(self, place: int) -> bool:
        return place < len(self.operator.inputs) and self.operator.inputs[place] >= 0

    def is_const(self, place: int) -> bool:
        return self.operator.inputs[place] in self.constants

    def const(self, place: int) -> Constant:
        """The constant at an input. Raises ModelError when it is computed at run time."""
        if not self.is_const(place):
            raise self.fail(f"input {place} ('{self.tensor(place).name}') must be a constant")
        return self.constants[self.operator.inputs[place]]

    def integers(self, place: int) -> list[int]:
        """A constant vector of integers: axes, sizes, paddings."""
        return [int(v) for v in self.const(place).array.reshape(-1)]

    def rank(self, place: int) -> int:
        return len(self.shape(place))

    def shape(self, place: int) -> tuple[int, ...]:
        """The shape of an input as the file has it: NHWC."""
        number = self.operator.inputs[place]
        if number in self.constants:
            return self.constants[number].array.shape
        value = self.values[number]
        dims = graph.shape(value.expr)
        return tuple(dims[a] for a in TO_NHWC) if value.nchw else dims

    def is_nchw(self, place: int) -> bool:
        value = self.values.get(self.operator.inputs[place])
        return value is not None and value.nchw

    def input(self, place: int = 0, nchw: bool = False) -> Expr:
        """An input with its real values (float32 when quantized), in the layout wanted if it has rank 4."""
        return self.real(self.operator.inputs[place], nchw)

    def real(self, number: int, nchw: bool = False) -> Expr:
        if number in self.constants:
            constant = self.constants[number]
            return self.weight(constant, TO_NCHW if nchw and constant.array.ndim == 4 else None)
        value = self.values[number]
        key = (number, nchw)
        if key not in self.floats:
            expr = value.expr
            quantization = self.graph.tensors[number].quantization
            if quantization is not None and is_quantized(self.graph.tensors[number]):
                expr = self.emit(dequantize(expr, quantization))
            if value.nchw != nchw and len(graph.shape(expr)) == 4:
                expr = self.permute(expr, TO_NCHW if nchw else TO_NHWC)
            self.floats[key] = expr
        return self.floats[key]

    def weight(self, constant: Constant, axes: Sequence[int] | None = None, shape: list[int] | None = None) -> Expr:
        """A constant as an expression: permuted by `axes`, then given `shape`, which keeps the quantized axis.

        Quantized ones stay as they are stored, under a dequantize; float16 ones under a cast.
        """
        array, q = constant.array, constant.quantization
        axis = q.axis if q is not None else 0
        if axes is not None:
            array = array.transpose(axes)
            axis = list(axes).index(axis)
        if shape is not None:
            if q is not None and len(q.scale) > 1:
                axis = shape.index(len(q.scale))
            array = array.reshape(shape)
        expr = graph.const(array)
        if q is not None:
            return self.emit(dequantize(expr, Quantization(q.scale, q.zero, axis)))
        if array.dtype == np.float16:
            return self.emit(relax.op.astype(expr, "float32"))
        return expr

    def permute(self, expr: Expr, axes: Sequence[int]) -> Expr:
        """permute_dims, joined to the one it undoes or continues; a reshape where only dimensions of 1 move."""
        axes = tuple(int(a) for a in axes)
        if expr in self.permuted:
            expr, before = self.permuted[expr]
            axes = tuple(before[a] for a in axes)
        if axes == tuple(range(len(axes))):
            return expr
        shape = graph.shape(expr)
        moved = [a for a in axes if shape[a] != 1]
        if moved == sorted(moved):
            out = self.emit(relax.op.reshape(expr, [shape[a] for a in axes]))
        else:
            out = self.emit(relax.op.permute_dims(expr, list(axes)))
        self.permuted[out] = (expr, axes)
        return out

    # What comes out.

    def output(self, expr: Expr, place: int = 0, nchw: bool = False) -> None:
        """Real values for an output; they are quantized here if the tensor is."""
        number = self.operator.outputs[place]
        tensor = self.graph.tensors[number]
        nchw = nchw and len(graph.shape(expr)) == 4
        q = tensor.quantization
        if q is not None and is_quantized(tensor):
            zero = graph.const(np.asarray(q.zero[0], tensor.dtype))
            expr = self.emit(relax.op.quantize(expr, graph.const(float(q.scale[0]), "float32"), zero, -1, tensor.dtype))
        elif graph.dtype(expr) != tensor.dtype:
            expr = self.emit(relax.op.astype(expr, tensor.dtype))
        self.values[number] = Value(self.rewriter.emit(expr, self.layer), nchw)

    def fold(self) -> None:
        """Turn small outputs of an operator on constants into constants: the shapes that a program computes."""
        numbers = [n for n in self.operator.outputs if n in self.values]
        if not all(n in self.constants for n in self.operator.inputs if n >= 0) or not numbers:
            return
        results = [self.values[n].expr for n in numbers]
        if any(self.graph.tensors[n].quantization for n in numbers):
            return
        if any(int(np.prod(graph.shape(r), dtype=np.int64)) > FOLDED for r in results):
            return
        arrays = evaluate(graph.program([], lambda rewriter: [replay(self.rewriter, rewriter, r) for r in results]), [])
        for number, array in zip(numbers, arrays):
            self.define(number, array)

    def define(self, number: int, array: np.ndarray) -> None:
        """An output that is known now."""
        self.constants[number] = Constant(np.asarray(array).astype(self.graph.tensors[number].dtype))
        self.values.pop(number, None)


def replay(old: graph.Rewriter, new: graph.Rewriter, expr: Expr) -> Expr:
    """The expression behind a variable that depends on constants only, bound again in another program."""
    definition = old.builder.lookup_binding(expr) if isinstance(expr, relax.Var) else None
    if definition is None:
        return new.new(expr)
    for var in relax.analysis.free_vars(definition):
        if var not in new.replacement:
            new.replacement[var] = replay(old, new, var)
    return new.emit(new.new(definition))


def is_quantized(tensor: Tensor) -> bool:
    """int32 and int64 tensors carry scales only as biases, which are constants."""
    return tensor.dtype in ("int8", "uint8", "int16")


def signed(array: np.ndarray, q: Quantization | None) -> tuple[np.ndarray, Quantization | None]:
    """uint8 weights of old models as int8, the zero point moved along; floats carry no quantization."""
    if q is None or array.dtype.kind == "f":
        return array, None
    if array.dtype == np.uint8:
        return (array ^ 128).view(np.int8), Quantization(q.scale, q.zero - 128, q.axis)
    return array, q


def dequantize(expr: Expr, q: Quantization) -> Expr:
    """Per tensor with scalars, per channel with vectors."""
    kind = graph.dtype(expr)
    if len(q.scale) == 1:
        return relax.op.dequantize(
            expr, graph.const(float(q.scale[0]), "float32"), graph.const(np.asarray(q.zero[0], kind))
        )
    zero = np.ascontiguousarray(q.zero).astype(kind)
    return relax.op.dequantize(expr, graph.const(q.scale), graph.const(zero), q.axis)
