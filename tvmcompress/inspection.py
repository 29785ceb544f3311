"""inspect: what a model is, before anything is done to it, without failing on what cannot be imported."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import UnsupportedOperatorsError
from tvmcompress.ir import graph, ops
from tvmcompress.ir.macs import LayerMacs, macs
from tvmcompress.ir.sparsity import Sparsity
from tvmcompress.ir.zeros import sparsities
from tvmcompress.model import Model
from tvmcompress.spec import TensorSpec, spec_json
from tvmcompress.target import Target

MOSTLY_DENSE = 0.8


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product, the elements of its weight, the share of zeros in it, and their pattern as in
    `ir.sparsity`; None when it is computed.
    """

    name: str
    op: str
    macs: int
    integer: bool
    constant_weight: bool
    weights: int = 0
    sparsity: float | None = None
    density: float | None = None
    pattern: str | None = None
    block: tuple[int, int] | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Counts are 0 and `layers` is empty when operators are `unsupported`."""

    name: str
    format: str
    file_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    applied: tuple[str, ...] = ()
    target: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    operators: dict[str, int] | None = None  # calls of each Relax operator
    layers: tuple[Layer, ...] = ()
    unsupported: tuple[tuple[str, str, int, str], ...] = ()  # operator, domain, count, name of the first
    integer_on_target: bool = True

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_by_op(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for layer in self.layers:
            found[layer.op] = found.get(layer.op, 0) + layer.macs
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def integer_share(self) -> float | None:
        """Of all multiply-accumulates, those that run on integers on the target as the model is now (0 to 1)."""
        return self.share(lambda layer: layer.integer and self.integer_on_target)

    @property
    def integer_share_after_int8(self) -> float | None:
        """The same after the `int8` recipe, which quantizes every layer whose weight is a constant."""
        return self.share(lambda layer: (layer.integer or layer.constant_weight) and self.integer_on_target)

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in the weights of all layers."""
        total = sum(layer.weights for layer in self.layers)
        return sum(layer.weights * (layer.sparsity or 0) for layer in self.layers) / total if total else None

    def share(self, wanted: Callable[[Layer], bool]) -> float | None:
        total = self.macs
        return sum(layer.macs for layer in self.layers if wanted(layer)) / total if total else None

    def to_json(self) -> dict:
        """Everything as JSON values; stable keys."""
        return {
            "name": self.name,
            "format": self.format,
            "file_bytes": self.file_bytes,
            "inputs": [spec_json(s) for s in self.inputs],
            "outputs": [spec_json(s) for s in self.outputs],
            "applied": list(self.applied),
            "target": self.target or None,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "macs": self.macs,
            "macs_by_op": self.macs_by_op,
            "integer_share": self.integer_share,
            "integer_share_after_int8": self.integer_share_after_int8,
            "sparsity": self.sparsity,
            "operators": self.operators or {},
            "layers": [asdict(layer) for layer in self.layers],
            "unsupported": [
                {"operator": op, "domain": domain, "count": n, "first": first}
                for op, domain, n, first in self.unsupported
            ],
        }

    def rows(self) -> list[tuple[str, str]]:
        """What and how much, for a table of two columns."""
        rows = [("model", f"{self.name} ({self.format}, {self.file_bytes:,} bytes)")]
        rows += [("input", describe(spec)) for spec in self.inputs]
        rows += [("output", describe(spec)) for spec in self.outputs]
        rows += [("passes applied", ", ".join(self.applied))] if self.applied else []
        if self.unsupported:
            names = ((f"{domain}::{op}" if domain else op, n, first) for op, domain, n, first in self.unsupported)
            return rows + [("unsupported", f"{name}, {n} times, first '{first}'") for name, n, first in names]
        rows += [("parameters", f"{self.parameters:,}"), ("weights", f"{self.weight_bytes:,} bytes")]
        rows += [("MACs", f"{self.macs:,}")] + [(f"  {op}", f"{n:,}") for op, n in self.macs_by_op.items()]
        where = f" on {self.target}" if self.target else ""
        rows.append((f"MACs in integers{where}", percent(self.integer_share)))
        rows.append(("  after the int8 recipe", percent(self.integer_share_after_int8)))
        rows.append(("zeros in weights", percent(self.sparsity)))
        return rows

    def sparse_rows(self) -> list[tuple[str, str, str]]:
        """name, density, pattern of each sparse layer: for a table, empty when there is none."""
        return [(layer.name, percent(layer.density), pattern(layer)) for layer in self.layers if is_sparse(layer)]

    def layer_rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """name, operator, MACs, float or integer, zeros, their pattern: for a table with one layer a row."""
        kinds = {True: "integer", False: "float"}
        return [
            (
                layer.name,
                layer.op,
                f"{layer.macs:,}",
                kinds[layer.integer and self.integer_on_target],
                percent(layer.sparsity),
                pattern(layer),
            )
            for layer in self.layers
        ]


def is_sparse(layer: Layer) -> bool:
    """Zeros in a pattern, or more of them than rounding to 4 bits makes of small weights."""
    return layer.density is not None and layer.density < (1 if layer.pattern != "unstructured" else MOSTLY_DENSE)


def pattern(layer: Layer) -> str:
    return str(Sparsity(layer.density or 0, layer.pattern or "", layer.block)) if layer.density not in (None, 1) else ""


def describe(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} {'x'.join('?' if d is None else str(d) for d in spec.shape) or 'scalar'}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def inspect(
    source: str | os.PathLike | Model,
    target: Target | str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> Inspection:
    """Inspect a model file or a Model. Operators that cannot be imported are reported, not raised.

    `target` (a Target or what `Target.load` takes) decides what runs in integers there; CUDA targets have no integer
    kernels yet. Raises ModelError for a file that cannot be read at all, TargetError.
    """
    target = Target.load(target) if isinstance(target, str) else target
    about = target.name if target else ""
    integer = target is None or target.kind != "cuda"
    if isinstance(source, Model):
        return inspect_model(source, about, integer)
    # The one verb that contains another: to inspect a file is to load it and look.
    from tvmcompress import frontend

    path = Path(source)
    try:
        model = frontend.load(path, shapes=shapes, values=values)
    except UnsupportedOperatorsError as error:
        inputs, outputs = border(path)
        size = path.stat().st_size
        operators = tuple(error.operators)
        return Inspection(path.name, path.suffix[1:], size, inputs, outputs, target=about, unsupported=operators)
    return inspect_model(model, about, integer)


def inspect_model(model: Model, target: str, integer: bool) -> Inspection:
    parameters, size = weights(model.module)
    counts: dict[str, int] = {}
    for binding in graph.bindings(model.module):
        name = graph.op_name(binding.value).removeprefix("relax.")
        if name:
            counts[name] = counts.get(name, 0) + 1
    zeros = sparsities(model.module)
    layers = tuple(layer_of(found, *zeros.get(found.name, (0, None))) for found in macs(model.module))
    return Inspection(
        model.source.name,
        model.source.format,
        model.source.bytes,
        model.inputs,
        model.outputs,
        model.applied,
        target,
        parameters,
        size,
        dict(sorted(counts.items())),
        layers,
        integer_on_target=integer,
    )


def layer_of(found: LayerMacs, size: int, zeros: Sparsity | None) -> Layer:
    about = (found.name, found.op, found.macs, found.integer, found.constant_weight)
    return Layer(*about, size, 1 - zeros.density, zeros.density, zeros.pattern, zeros.block) if zeros else Layer(*about)


def weights(mod: tvm.IRModule) -> tuple[int, int]:
    """Parameters, and bytes of all constants. Scales, zero points, codebooks, batch statistics and single numbers are
    none; a weight that shares its value with others is one of its own."""
    seen: dict[relax.Expr, int] = {}
    for binding in graph.bindings(mod):
        name = graph.op_name(binding.value)
        last = name.endswith("quantize") or name == ops.LOOK_UP
        skipped = 1 if last else 3 if name.endswith("batch_norm") else None
        for constant in graph.constants_of(binding.value):
            seen.setdefault(constant, 0)
        arguments = binding.value.args if isinstance(binding.value, relax.Call) else []
        for place, argument in enumerate(arguments):
            for constant in graph.constants_of(argument):
                size = math.prod(graph.shape(constant))
                if size > 1 and (skipped is None or place < skipped):
                    unpacked = name in (ops.UNPACK_INT4, ops.LOOK_UP)
                    seen[constant] = math.prod(graph.shape(binding.var)) if unpacked else size
    return sum(seen.values()), sum(graph.value(c).nbytes for c in seen)


def border(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as a file that cannot be imported declares them."""
    if path.suffix == ".tflite":
        from tvmcompress.frontend.tflite import border_tflite

        return border_tflite(path)
    if path.suffix == ".pt2":
        from tvmcompress.frontend.torch import border_torch

        return border_torch(path)
    if path.suffix == ".onnx":
        return border_onnx(path)
    return (), ()


def border_onnx(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    import onnx

    graph_proto = onnx.load(str(path), load_external_data=False).graph
    weights_ = {tensor.name for tensor in graph_proto.initializer}

    def spec(info: onnx.ValueInfoProto) -> TensorSpec:
        tensor = info.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else ""
        return TensorSpec(info.name, dims, dtype)

    inputs = tuple(spec(i) for i in graph_proto.input if i.name not in weights_)
    return inputs, tuple(spec(o) for o in graph_proto.output)
