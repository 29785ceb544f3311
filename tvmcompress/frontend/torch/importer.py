"""TVM's importer for exported programs, with our names, our normal form, and the operators that it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvmcompress.errors import ModelError, UnsupportedOperatorsError
from tvmcompress.frontend.torch import operators, quantized
from tvmcompress.frontend.torch.archive import first_line
from tvmcompress.frontend.weights import fold_movement
from tvmcompress.ir import graph

# Operators that are better imported whole than as what torch decomposes them into.
KEPT = (
    "linear.default",
    "matmul.default",
    "scaled_dot_product_attention.default",
    "hardswish.default",
    "hardsigmoid.default",
    "silu.default",
    "softmax.int",
    "log_softmax.int",
    "leaky_relu.default",
    "elu.default",
    "adaptive_avg_pool2d.default",
    "layer_norm.default",
    "upsample_bilinear2d.vec",
    "upsample_nearest2d.vec",
    "upsample_bicubic2d.vec",
)
ANCHORS = ("conv", "matmul", "_norm", "quantize", "take")
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


class NamedBuilder:
    """A BlockBuilder that calls what it binds after the node being imported."""

    def __init__(self, builder: relax.BlockBuilder):
        self.builder = builder
        self.layer = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)

    def emit(self, expr: relax.Expr, name_hint: str = "") -> relax.Expr:
        op = graph.op_name(expr).removeprefix("relax.").split(".")[-1]
        plain = not op or op in self.layer or any(word in op for word in ANCHORS)
        return self.builder.emit(expr, name_hint=self.layer if plain else f"{self.layer}_{op}")


class Importer(ExportedProgramImporter):
    def __init__(self) -> None:
        super().__init__()
        self.update_convert_map({**operators.CONVERTERS, **quantized.CONVERTERS})
        self.ours = {*operators.CONVERTERS, *quantized.CONVERTERS}

    def check(self, program: ExportedProgram) -> None:
        """Raise UnsupportedOperatorsError with every operator that has no converter."""
        missing: Counter[tuple[str, str]] = Counter()
        first: dict[tuple[str, str], str] = {}
        for node in program.graph.nodes:
            if node.op == "call_function" and node.target.__name__ not in self.convert_map:
                key = (node.target.__name__, getattr(node.target, "namespace", ""))
                missing[key] += 1
                first.setdefault(key, node.name)
        if missing:
            raise UnsupportedOperatorsError([(op, domain, n, first[op, domain]) for (op, domain), n in missing.items()])

    def translate(self, program: ExportedProgram, inputs: Sequence[str], kept: Sequence[bool]) -> tvm.IRModule:
        """A module whose parameters are `inputs` and then the weights; `kept` says which outputs are the user's."""
        self.check(program)
        parameters, users, _ = self.create_input_vars(program)
        variables = {**{name: users[name] for name in inputs}, **parameters}
        for spec in program.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT and spec.arg.name not in variables:
                node = next(n for n in program.graph.nodes if n.name == spec.arg.name)
                self.env[node] = spec.arg.value
        self.block_builder = NamedBuilder(relax.BlockBuilder())
        builder = self.block_builder.builder
        with builder.function("main", list(variables.values())):
            with builder.dataflow():
                results: Sequence[Any] = ()
                for node in program.graph.nodes:
                    if node.op == "placeholder":
                        if node.name in variables:
                            self.env[node] = variables[node.name]
                    elif node.op == "get_attr":
                        self.env[node] = getattr(program.graph_module, node.target)
                    elif node.op == "call_function":
                        self.block_builder.layer = layer_name(node)
                        self.env[node] = self.convert(node)
                    elif node.op == "output":
                        results = self.retrieve_args(node)[0]
                users_results = [r for r, keep in zip(results, kept, strict=True) if keep]
                out = builder.emit_output(relax.Tuple([builder.emit(r) for r in users_results]))
            builder.emit_func_output(out)
        return builder.finalize()

    def convert(self, node: fx.Node) -> Any:
        name = node.target.__name__
        try:
            return self.convert_map[name](node, self) if name in self.ours else self.convert_map[name](node)
        except TVM_ERRORS as error:
            raise ModelError(f"layer '{node.name}': {name} cannot be imported ({first_line(error)})") from error


def layer_name(node: fx.Node) -> str:
    """The path of the module that the node comes from when that is one of torch's own layers, else the node's name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return node.name
    path, kind = stack[-1][0], stack[-1][1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    own = path and kind.startswith("torch.nn.modules.") and not kind.endswith(("Sequential", "ModuleList"))
    return path.replace(".", "_") if own else node.name


def import_program(program: ExportedProgram, inputs: Sequence[str], kept: Sequence[bool]) -> tvm.IRModule:
    """One function, one dataflow block, a tuple as its result, weights as constants in the form layers read them."""
    module = Importer().translate(program, inputs, kept)
    parameters = list(module["main"].params)[len(inputs) :]
    tensors = weights(program)
    used = graph.consumers(module)
    read = {v for v in parameters if v in used or any(v.same_as(r) for r in graph.results(module))}
    constants: dict[int, relax.Expr] = {}

    def constant(var: relax.Var) -> relax.Expr:
        tensor = tensors[var.name]
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        return constants.setdefault(hash(key), graph.const(to_numpy(tensor)))

    bound = {v: constant(v) if v in read else relax.const(0.0) for v in parameters}
    return graph.rewrite(graph.rewrite(module, fold_movement, fewer_params=bound), fold_movement)


def weights(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The tensors behind the parameters of the graph, by the names they have in it."""
    named = {**dict(program.named_parameters()), **dict(program.named_buffers()), **program.constants}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT and spec.target in named:
            found[spec.arg.name] = named[spec.target]
    return found


def to_numpy(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


Converter = Callable[[fx.Node, Importer], Any]
