"""Compressed layers for which no kernel of their own was looked for: that they have none, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.macs import LAYERS, macs
from tvmcompress.ir.sparsity import FEW_ZEROS
from tvmcompress.ir.zeros import densities
from tvmcompress.lower import compressed
from tvmcompress.lower.compressed import Row
from tvmcompress.lower.sparse import MOVES, shared
from tvmcompress.target import Target

Known = Mapping[relax.Var, relax.Expr]


def explained(layers: Sequence[Row], mod: tvm.IRModule, target: Target, storage: str) -> list[Row]:
    """A build's rows, and among them each layer of the program with zeros or with shared values: see `compressed`.
    `storage`: of the package."""
    names, known = {row["name"]: row for row in layers}, graph.definitions(mod)
    dense = {name: row["sparse"]["density"] for name, row in names.items() if row.get("sparse")}
    rows: dict[str, dict[str, Row]] = {"sparse": {}, "shared": {}}
    for name, (density, _, call, place) in densities(mod, dense).items():
        dense[name] = density
        if density <= FEW_ZEROS:
            why = no_sparse_kernel(names.get(name), call, place, known, target)
            arrays = behind(call.args[place], known)
            rows["sparse"][name] = compressed.plain("sparse", density, arrays, storage) | {"why": why}
    for name, weight, call in with_shared(mod, known):
        if name in dense and not names.get(name, {}).get("shared"):
            row = compressed.plain("shared", dense[name], behind(weight, known), storage)
            rows["shared"][name] = row | {"why": unlooked(names.get(name), call, target)}
    counts = {row.name: row for row in macs(mod)}
    others = dict.fromkeys(name for said in rows.values() for name in said if name not in names)
    more = [{"name": name, "kind": counts[name].op, "macs": counts[name].macs, "integer": False} for name in others]
    return compressed.said([*layers, *more], rows)


def with_shared(mod: tvm.IRModule, known: Known) -> Iterator[tuple[str, relax.Expr, relax.Call]]:
    """The name of each layer whose weight shares values, the weight, and the call."""
    for binding in graph.bindings(mod):
        call = binding.value
        if graph.op_name(call) in LAYERS:
            weight = next((argument for argument in call.args[:2] if is_shared(argument, known)), None)
            if weight is not None:
                yield binding.var.name, weight, call


def behind(weight: relax.Expr, known: Known) -> Iterator[np.ndarray]:
    """The constants that a weight is made of."""
    if graph.is_const(weight):
        yield graph.value(weight)
    else:
        for argument in getattr(known.get(weight), "args", ()):
            yield from behind(argument, known)


def source(weight: relax.Expr, known: Known) -> relax.Expr | None:
    """What makes a weight that is moved about or made wider after it."""
    made = known.get(weight)
    while made is not None and graph.op_name(made) in (*MOVES, "relax.astype"):
        made = known.get(made.args[0])
    return made


def is_shared(weight: relax.Expr, known: Known) -> bool:
    made = known.get(weight)
    while made is not None and graph.op_name(made) in (*MOVES, "relax.astype", "relax.dequantize"):
        weight = made.args[0]
        made = known.get(weight)
    return shared(weight, known.get) is not None


def no_sparse_kernel(row: Row | None, call: relax.Call, place: int, known: Known, target: Target) -> str:
    """Why there is none. `row`: the kernel's, if the layer has one of its own; `place`: of the weight."""
    if target.kind != "cpu":
        return "sparse kernels are for CPUs"
    if place == 0:
        return "no sparse kernel for weights on the left"
    if row is None:
        return "it is in the kernel of a recurrent layer"
    if graph.op_name(source(call.args[place], known)) == "relax.dequantize":
        return "its weights are stored as integers, and unpacked to floats"
    if row["kind"] == "matmul" and len(graph.shape(call.args[place])) > 2:
        return "no sparse kernel for several products at once"
    return f"no sparse kernel for {row.get('dtype', row['kind'])} here"


def unlooked(row: Row | None, call: relax.Call, target: Target) -> str:
    """Why shared values are not looked up by the layer's kernel."""
    if target.kind != "cpu":
        return "kernels that look values up are for CPUs"
    if row is None:
        return "it is in the kernel of a recurrent layer"
    if graph.op_name(call) != "relax.matmul":
        return "kernels that look values up are for matrix products: each value of a convolution is used often"
    return "no kernel that looks values up for such a product"
