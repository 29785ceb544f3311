"""Layers with zeros in their weights for which no sparse kernel was looked for: that they stay dense, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.macs import macs
from tvmcompress.ir.sparsity import FEW_ZEROS
from tvmcompress.ir.zeros import densities
from tvmcompress.lower.sparse import MOVES
from tvmcompress.target import Target


def told(layers: Sequence[dict[str, Any]], mod: tvm.IRModule, target: Target) -> list[dict[str, Any]]:
    """A build's rows, each layer of the program with zeros among them (see `sparse.kept` for what a row says)."""
    found = densities(mod, {row["name"] for row in layers if row.get("sparse")})
    known, names = graph.definitions(mod), {row["name"]: row for row in layers}
    counts = {row.name: row for row in macs(mod)}
    said, more = dict[str, dict](), list[dict]()
    for name, (density, size, call, place) in found.items():
        if density > FEW_ZEROS:
            continue
        row = names.get(name)
        weight = call.args[place]
        bytes_ = size * tvm.DataType(graph.dtype(weight)).bits // 8
        zeros = {"density": density, "format": "dense", "kept": False, "dense_bytes": bytes_, "bytes": bytes_}
        made = known.get(weight)
        while made is not None and graph.op_name(made) in (*MOVES, "relax.astype"):
            made = known.get(made.args[0])
        said[name] = zeros | {"why": why(row, made, len(graph.shape(weight)), place, target)}
        if row is None:
            layer = counts[name]
            more.append({"name": name, "kind": layer.op, "macs": layer.macs, "integer": False})
    return [row | {"sparse": said[row["name"]]} if row["name"] in said else row for row in (*layers, *more)]


def why(row: dict | None, made: relax.Expr | None, rank: int, place: int, target: Target) -> str:
    """No sparse kernel. `row`: the kernel's, if it has one of its own; `made`: what its weight comes from."""
    if target.kind != "cpu":
        return "sparse kernels are for CPUs"
    if place == 0:
        return "no sparse kernel for weights on the left"
    if row is None:
        return "it is in the kernel of a recurrent layer"
    if row.get("algorithm") == "looked up":
        return "its kernel looks shared values up"
    if graph.op_name(made) == "relax.dequantize":
        return "its weights are stored as integers, and unpacked to floats"
    if row["kind"] == "matmul" and rank > 2:
        return "no sparse kernel for several products at once"
    return f"no sparse kernel for {row.get('dtype', row['kind'])} here"
