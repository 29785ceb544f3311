"""From an ExportedProgram to a Model: shapes, names of inputs and outputs, and the order of steps."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from tvmcompress.errors import ModelError, OpenShapeError, did_you_mean
from tvmcompress.frontend.torch import archive
from tvmcompress.frontend.torch.importer import KEPT, import_program
from tvmcompress.ir import graph
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec

USERS = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)
Shapes = Mapping[str, Sequence[int]] | None


def load_file(path: str | os.PathLike, shapes: Shapes) -> Model:
    return to_model(archive.read(path), Source.of(path, "torch"), shapes, owned=True)


def load_module(
    module: torch.nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any] | None, shapes: Shapes
) -> Model:
    """Export a live module in eval mode; its own training flag is put back."""
    if isinstance(module, ExportedProgram):
        return to_model(module, Source("ExportedProgram", "torch", *fingerprint(module.state_dict)), shapes)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"wanted a torch.nn.Module, a path or an ExportedProgram, got {type(module).__name__}")
    if example_inputs is None:
        raise ModelError("a live module needs example inputs: load((module, (tensor, …)))")
    args, kwargs = split_inputs(example_inputs)
    training = module.training
    module.eval()
    try:
        exported = export(module, args, kwargs, type(module).__name__)
    finally:
        module.train(training)
    return to_model(exported, Source(type(module).__name__, "torch", *fingerprint(module.state_dict())), shapes)


def split_inputs(example_inputs: Any) -> tuple[tuple, dict]:
    if isinstance(example_inputs, Mapping):
        return (), {name: as_tensor(value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, torch.Tensor | np.ndarray):
        example_inputs = (example_inputs,)
    return tuple(as_tensor(value) for value in example_inputs), {}


def as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def export(module: torch.nn.Module, args: tuple, kwargs: dict, name: str) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, args, kwargs)
    except Exception as error:  # what the user's own forward() raises, or what torch cannot trace
        raise ModelError(f"{name}: torch.export.export cannot trace it ({archive.first_line(error)})") from error


def fingerprint(state: Mapping[str, Any]) -> tuple[int, str]:
    """Bytes and SHA-256 of a state dict."""
    digest, total = hashlib.sha256(), 0
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(name.encode())
            digest.update(raw)
            total += raw.nbytes
    return total, digest.hexdigest()


def to_model(exported: ExportedProgram, source: Source, shapes: Shapes, owned: bool = False) -> Model:
    exported = bind_shapes(exported, shapes or {}, source.name)
    table = torch.export.default_decompositions()
    for name in KEPT:
        table.pop(operator(name), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = exported.run_decompositions(table)
    inputs = tuple(TensorSpec(s.arg.name, *described(exported, s.arg.name)) for s in tensor_inputs(exported))
    specs = exported.graph_signature.output_specs
    kept = [s.kind in USERS and isinstance(s.arg, TensorArgument) for s in specs]
    names = [name for name, _ in tensor_outputs(exported)]
    if not names:
        raise ModelError(f"{source.name}: returns no tensor")
    module = import_program(exported, [s.arg.name for s in tensor_inputs(exported)], kept, owned)
    outputs = tuple(TensorSpec(n, graph.shape(r), graph.dtype(r)) for n, r in zip(names, graph.results(module)))
    return Model(module, inputs, outputs, source)


def tensor_outputs(exported: ExportedProgram) -> list[tuple[str, str]]:
    """The user's name and the graph's name of each tensor that is returned."""
    specs = [s for s in exported.graph_signature.output_specs if s.kind in USERS]
    names = output_names(exported, len(specs))
    return [(name, s.arg.name) for name, s in zip(names, specs) if isinstance(s.arg, TensorArgument)]


def border(exported: ExportedProgram) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs with None for open dimensions."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}

    def spec(name: str, node: str) -> TensorSpec:
        value = values[node]
        dims = tuple(d if isinstance(d, int) else None for d in value.shape)
        return TensorSpec(name, dims, str(value.dtype).removeprefix("torch."))

    inputs = tuple(spec(s.arg.name, s.arg.name) for s in tensor_inputs(exported))
    return inputs, tuple(spec(name, node) for name, node in tensor_outputs(exported))


def operator(name: str) -> Any:
    packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def tensor_inputs(exported: ExportedProgram) -> list:
    """The specs of the tensors that a user passes; constants such as a flag are part of the program."""
    found = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument):
            if not isinstance(spec.arg, TensorArgument):
                raise ModelError(
                    f"input '{spec.arg.name}' is a number that is not known; export the model with a fixed value"
                )
            found.append(spec)
    return found


def meta(exported: ExportedProgram, name: str) -> torch.Tensor:
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name == name:
            return node.meta["val"]
    raise ModelError(f"input '{name}' is not in the graph")


def described(exported: ExportedProgram, name: str) -> tuple[tuple[int, ...], str]:
    value = meta(exported, name)
    return tuple(int(d) for d in value.shape), str(value.dtype).removeprefix("torch.")


def bind_shapes(exported: ExportedProgram, shapes: Mapping[str, Sequence[int]], name: str) -> ExportedProgram:
    """The program for the shapes given: exported anew when it has open dimensions."""
    specs = tensor_inputs(exported)
    known = [s.arg.name for s in specs]
    for wrong in set(shapes) - set(known):
        raise ModelError(f"{name}: has no input '{wrong}'{did_you_mean(wrong, known)} (inputs: {', '.join(known)})")
    values = [meta(exported, n) for n in known]
    changed = False
    examples: dict[str, torch.Tensor] = {}
    for key, value in zip(known, values):
        own = tuple(value.shape)
        wanted = tuple(int(d) for d in shapes.get(key, own) if isinstance(d, int)) if key in shapes else own
        if key not in shapes and not all(isinstance(d, int) for d in own):
            text = "x".join(str(d) if isinstance(d, int) else "?" for d in own)
            raise OpenShapeError(f"{name}: input '{key}' has open dimensions ({text}); bind them: --shape {key}={text}")
        fits = len(wanted) == len(own) and all(not isinstance(o, int) or o == w for o, w in zip(own, wanted))
        if not fits:
            raise ModelError(
                f"{name}: input '{key}' was exported as {own}, not {wanted}; export it with dynamic_shapes"
            )
        changed |= not all(isinstance(d, int) for d in own)
        examples[key] = torch.zeros([int(d) for d in wanted], dtype=value.dtype)
    if not changed:
        return exported
    flat = [
        examples[s.arg.name] if isinstance(s.arg, TensorArgument) else s.arg.value
        for s in exported.graph_signature.input_specs
        if s.kind is InputKind.USER_INPUT
    ]
    args, kwargs = pytree.tree_unflatten(flat, exported.call_spec.in_spec)
    return export(exported.module(), args, kwargs, name)


def output_names(exported: ExportedProgram, count: int) -> list[str]:
    """A dict's keys, else output_0, output_1 …"""
    fallback = [f"output_{i}" for i in range(count)]
    try:
        tree = pytree.tree_unflatten(list(range(count)), exported.call_spec.out_spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        return fallback
    if len(paths) != count or not all(path and isinstance(path[0], pytree.MappingKey) for path in paths):
        return fallback
    return ["_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path in paths]
