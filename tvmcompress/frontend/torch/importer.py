"""TVM's importer for exported programs, with our names, our normal form, and the operators that it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

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


def import_program(program: ExportedProgram, inputs: Sequence[str], kept: Sequence[bool], owned: bool) -> tvm.IRModule:
    """One function, one dataflow block, a tuple as its result, weights as constants in the form layers read them.

    `owned` says that nobody else uses the program's tensors: they are taken out of it one by one, and shared.
    """
    module = Importer().translate(program, inputs, kept)
    parameters = list(module["main"].params)[len(inputs) :]
    used = graph.consumers(module)
    read = [v for v in parameters if v in used or any(v.same_as(r) for r in graph.results(module))]
    turned = transposed_only(module, read)
    tensors = weights(program, owned)
    bound: dict[relax.Var, relax.Expr] = {v: relax.const(0.0) for v in parameters}
    constants: dict[tuple, relax.Expr] = {}
    for var in read:
        tensor = tensors.pop(var.name) if owned else tensors[var.name]
        axes = turned.get(var)
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, axes)
        if key not in constants:
            constants[key] = constant(tensor, axes, owned)
        bound[var] = constants[key]
    done = {bound[var] for var in turned}

    def visit(rewriter: graph.Rewriter, var: relax.Var, expr: relax.Expr) -> relax.Expr | None:
        if graph.op_name(expr) == "relax.permute_dims" and expr.args[0] in done:
            return expr.args[0]
        return fold_movement(rewriter, var, expr)

    return graph.rewrite(graph.rewrite(module, visit, fewer_params=bound), fold_movement)


def transposed_only(module: tvm.IRModule, parameters: Sequence[relax.Var]) -> dict[relax.Var, tuple[int, ...]]:
    """The weights that are only ever read permuted, and how: those are permuted at once, without a second copy."""
    known, used = graph.definitions(module), graph.consumers(module)
    results = graph.results(module)
    found = {}
    for var in parameters:
        calls: list[relax.Call] = [known[u] for u in used.get(var, [])]
        if not calls or any(graph.op_name(c) != "relax.permute_dims" for c in calls) or var in results:
            continue
        rank = len(graph.shape(var))
        ways = {tuple(int(a) % rank for a in c.attrs.axes or reversed(range(rank))) for c in calls}
        if len(ways) == 1:
            found[var] = ways.pop()
    return found


def constant(tensor: torch.Tensor, axes: Sequence[int] | None, owned: bool) -> relax.Expr:
    """A weight, permuted. Its memory is shared when it may be and is aligned as TVM's own."""
    tensor = tensor.detach().cpu()
    if axes is not None:
        return graph.const(to_numpy(tensor.permute(*axes)))
    tensor = tensor.contiguous()
    if owned and tensor.data_ptr() % 64 == 0 and tensor.numel():
        return relax.const(tvm.runtime.from_dlpack(tensor))
    return graph.const(to_numpy(tensor))


def weights(program: ExportedProgram, take: bool) -> dict[str, torch.Tensor]:
    """The tensors behind the parameters of the graph, by their names in it; `take` leaves the program without."""
    named = {**dict(program.named_parameters()), **dict(program.named_buffers()), **program.constants}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT and spec.target in named:
            found[spec.arg.name] = named[spec.target]
    if take:
        program.state_dict.clear()
        program.constants.clear()
    return found


def to_numpy(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


Converter = Callable[[fx.Node, Importer], Any]
