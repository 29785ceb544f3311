"""Which layers a pass takes, why the others stay float, and the rows of the report that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.ops import HASHED, LOOK_UP
from tvmcompress.passes.support.layers import Layer, layers, macs, skipped

WIDE = "give the model in float32, and make it narrow last"


def select(
    mod: tvm.IRModule, owner: str, skip: Sequence[str], skip_kinds: Sequence[str], why_not: Callable[[Layer], str]
) -> tuple[list[Layer], dict[str, str]]:
    """The layers to take, and for each other layer the reason. `why_not` returns a reason or an empty string."""
    everything = list(layers(mod))
    compressed = compressed_tensors(mod)
    reasons = skipped(everything, skip, skip_kinds, owner)
    for layer in everything:
        if layer.name in reasons:
            continue
        if any(a in compressed for a in layer.call.args[:2]):
            reasons[layer.name] = "already compressed"
        elif kinds := narrow(layer):
            reasons[layer.name] = f"its numbers are {kinds}: {WIDE}"
        elif str(layer.call.ty.dtype) != "float32":
            reasons[layer.name] = f"its numbers are {layer.call.ty.dtype}, wanted float32"
        elif not static(layer):
            reasons[layer.name] = "its shape is open"
        elif why := why_not(layer):
            reasons[layer.name] = why
    return [layer for layer in everything if layer.name not in reasons], reasons


def narrow(layer: Layer) -> str:
    """The dtype of operands or result that are floats of 16 bits; empty where none are."""
    kinds = [str(layer.call.ty.dtype), *map(graph.dtype, layer.call.args[:2])]
    return next((kind for kind in kinds if kind in ("float16", "bfloat16")), "")


def recurrent(mod: tvm.IRModule, chosen: Sequence[Layer]) -> list[list[Layer]]:
    """Matrix products with the same weight of which the later depend on the first, in a list for each weight."""
    groups: dict[tuple, list[Layer]] = {}
    for layer in chosen:
        if layer.kind == "matmul" and layer.weight is not None:
            groups.setdefault(layer.weight_key(), []).append(layer)
    readers, found = graph.consumers(mod), []
    for group in groups.values():
        if len(group) > 1 and reaches(readers, group[0].var, {layer.var for layer in group[1:]}):
            found.append(group)
    return found


def reaches(readers: Mapping[relax.Var, Sequence[relax.Var]], start: relax.Var, ends: set[relax.Var]) -> bool:
    seen, todo = set(), [start]
    while todo:
        for reader in readers.get(todo.pop(), []):
            if reader in ends:
                return True
            if reader not in seen:
                seen.add(reader)
                todo.append(reader)
    return False


def static(layer: Layer) -> bool:
    return all(
        isinstance(a.ty, relax.TensorType) and str(a.ty.dtype) == "float32" and graph.has_static_shape(a)
        for a in layer.call.args[:2]
    ) and graph.has_static_shape(layer.call)


def compressed_tensors(mod: tvm.IRModule) -> set[relax.Var]:
    """Variables that are dequantized, looked up or a 16-bit constant made wider, directly or moved about."""
    found: set[relax.Var] = set()
    for var, expr in graph.definitions(mod).items():
        name = graph.op_name(expr)
        args = expr.args if isinstance(expr, relax.Call) else []
        widened = name == "relax.astype" and graph.is_const(args[0])
        moved = name in ("relax.reshape", "relax.permute_dims", "relax.strided_slice") and args[0] in found
        if name in ("relax.dequantize", LOOK_UP, HASHED) or widened or moved:
            found.add(var)
    return found


def notes(
    mod: tvm.IRModule,
    owner: str,
    reasons: Mapping[str, str],
    snr: Mapping[str, float | None] | None = None,
    *,
    done: str = "quantized",
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[dict, ...]:
    """One row for each layer: pass, layer, kind, macs, quantized, why (empty if quantized) and, if known, snr_db.

    `done` is what to say instead of quantized; `more` is added to the rows of the layers that it names.
    """
    rows = []
    for layer in layers(mod):
        row: dict[str, Any] = {
            "pass": owner,
            "layer": layer.name,
            "kind": layer.kind,
            "macs": macs(layer) if graph.has_static_shape(layer.call) else None,
            done: layer.name not in reasons,
            "why": reasons.get(layer.name, ""),
        }
        if snr is not None:
            row["snr_db"] = snr.get(layer.name)
        rows.append(row | dict((more or {}).get(layer.name, {})))
    return tuple(rows)
