"""What the report says of pruned channels: a row for each layer, and one for the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm

from tvmcompress.ir import graph
from tvmcompress.ir.macs import macs as all_macs
from tvmcompress.passes.support.channel_flow import Flow
from tvmcompress.passes.support.channel_groups import Ids
from tvmcompress.passes.support.layers import layers, macs


def notes(
    owner: str, before: tvm.IRModule, after: tvm.IRModule, flow: Flow, alive: np.ndarray, more: Mapping[str, dict]
) -> tuple[dict, ...]:
    """`more`: what else there is to say of a layer, by name; its `why` comes last."""
    sites = {site.layer.name: site for site in flow.sites}
    left = {layer.name: layer for layer in layers(after)}
    tied, rows = flow.groups.tied(), []
    for layer in layers(before):
        site, now = sites.get(layer.name), left[layer.name]
        extra = dict(more.get(layer.name, {}))
        why = [extra.pop("why", "")]
        row: dict[str, Any] = {"pass": owner, "layer": layer.name, "kind": layer.kind, "pruned": False}
        if site is None:
            why.insert(0, "its weights are not constant float32 matrices or kernels")
        else:
            for what, ids in (("inputs", site.inputs), ("outputs", site.outputs)):
                if ids is not None:
                    row |= {f"{what}_before": len(ids), what: int(alive[ids].sum())}
            row["pruned"] = any(row.get(w) != row.get(f"{w}_before") for w in ("inputs", "outputs"))
            row |= {"parameters_before": size(layer), "parameters": size(now)}
            why.insert(0, reason(flow, tied, alive, site.outputs))
        row |= counted(layer, now) | extra | {"why": "; ".join(w for w in why if w)}
        rows.append(row)
    return (*rows, totals(owner, before, after))


def size(layer) -> int:
    return int(np.prod(graph.shape(layer.call.args[layer.weight]), dtype=np.int64))


def counted(layer, now) -> dict[str, int]:
    known = graph.has_static_shape(layer.call) and all(graph.has_static_shape(a) for a in layer.call.args[:2])
    return {"macs_before": macs(layer), "macs": macs(now)} if known else {}


def reason(flow: Flow, tied: Mapping[int, str], alive: np.ndarray, outputs: Ids | None) -> str:
    """Why all outputs of a layer stay, if they do."""
    if outputs is None:
        return "its outputs cannot be fewer"
    if not alive[outputs].all():
        return ""
    reasons = [tied[root] for root in flow.groups.find(outputs).tolist() if root in tied]
    return reasons[0] if reasons else "what would be left rounds up to all of them, or others need them"


def totals(owner: str, before: tvm.IRModule, after: tvm.IRModule) -> dict[str, Any]:
    """Parameters and multiply-accumulates of the whole, before and after."""
    found: dict[str, Any] = {"pass": owner}
    for end, mod in (("_before", before), ("", after)):
        found |= {f"parameters{end}": parameters(mod), f"macs{end}": sum(layer.macs for layer in all_macs(mod))}
    return found


def parameters(mod: tvm.IRModule) -> int:
    """Elements of all constants but plain numbers."""
    seen = {constant for b in graph.bindings(mod) for constant in graph.constants_of(b.value)}
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in map(graph.shape, seen) if shape)
