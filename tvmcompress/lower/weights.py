"""Weights leave the program: they become arguments of `main`, mapped from the package.

What is computed from constants alone (unpacking of 4-bit weights, packing into a kernel's layout) moves to a second
function, `prepare`, that runs once when a package is loaded: on disk weights stay as small as compression made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr

INLINE_BYTES = 64  # scalars stay in the program


@dataclass(frozen=True)
class Split:
    """`module` has `main(inputs…, weights…)`, and if `prepares` also `prepare(stored…) -> weights`."""

    module: tvm.IRModule
    stored: list[tvm.runtime.Tensor]
    inputs: int
    prepares: bool


def split(mod: tvm.IRModule) -> Split:
    """Divide a program with constants into `main` and `prepare`."""
    old = mod["main"]
    constant: set[relax.Var] = set()
    for binding in graph.bindings(mod):
        if reads_constants_only(binding.value, constant):
            constant.add(binding.var)
    constant.discard(old.body.body)  # the result stays in `main`, though all its fields be constant
    definitions = graph.definitions(mod)
    frontier = [v for v in frontier_of(mod, constant) if not isinstance(definitions[v], relax.Tuple)]
    first = first_equals(mod)
    direct = direct_constants(mod, constant, first)
    rewriter = graph.Rewriter()
    rewriter.adopt(mod)
    stored = write_prepare(rewriter, mod, constant, frontier, direct, first) if frontier else [c.value for c in direct]

    params = [relax.Var(p.name, p.ty) for p in old.params]
    weights = [relax.Var(f"weight_{i}", e.ty) for i, e in enumerate([*frontier, *direct])]
    lifted = dict(zip(direct, weights[len(frontier) :]))
    rewriter.replacement.update(zip([*old.params, *frontier], [*params, *weights]))
    rewriter.on_const = lambda c: lifted.get(first.get(c, c), c)
    write_function(rewriter, mod, "main", [*params, *weights], lambda v: v not in constant, old.body.body)
    return Split(rewriter.builder.finalize(), stored, len(params), bool(frontier))


def write_function(rewriter, mod, name: str, params: list, belongs: Callable, result: Expr) -> None:
    """Emit the bindings that belong to one function, and its result."""
    builder = rewriter.builder
    with builder.function(name, params):
        with builder.dataflow():
            for binding in graph.bindings(mod):
                if belongs(binding.var):
                    rewriter.bind(binding, rewriter.new(binding.value))
            out = rewriter.new(result)
            out = builder.emit_output(out if isinstance(out, relax.Tuple) else relax.Tuple([out]))
        builder.emit_func_output(out)


def reads_constants_only(expr: Expr, constant: set[relax.Var]) -> bool:
    variables = [v for v in relax.analysis.free_vars(expr) if not isinstance(v, relax.GlobalVar)]
    if isinstance(expr, relax.Tuple | GenericConst | relax.ShapeExpr):
        return bool(variables) and all(v in constant for v in variables)
    return all(v in constant for v in variables)


def frontier_of(mod: tvm.IRModule, constant: set[relax.Var]) -> list[relax.Var]:
    """Constant variables that something not constant reads, in order."""
    needed: dict[relax.Var, None] = {}
    readers = [b.value for b in graph.bindings(mod) if b.var not in constant]
    readers += [mod["main"].body.body]
    for expr in readers:
        for var in relax.analysis.free_vars(expr):
            if var in constant:
                needed[var] = None
    # A tuple is not a weight: its fields are.
    definitions = graph.definitions(mod)
    for var in [v for v in needed if isinstance(definitions[v], relax.Tuple)]:
        for field in relax.analysis.free_vars(definitions[var]):
            needed[field] = None
    return list(needed)


def first_equals(mod: tvm.IRModule) -> dict[GenericConst, GenericConst]:
    """For every large constant the first that equals it: an unrolled loop must not keep a copy for each turn."""
    alike: dict[tuple, list[GenericConst]] = {}
    for binding in graph.bindings(mod):
        for c in graph.constants_of(binding.value):
            if isinstance(c.value, tvm.runtime.Tensor) and nbytes(c) > INLINE_BYTES:
                alike.setdefault((graph.dtype(c), graph.shape(c)), []).append(c)
    first = {}
    for group in alike.values():
        found: dict[bytes, GenericConst] = {}
        different = list(dict.fromkeys(group))
        for c in different:
            key = digest(c.value) if len(different) > 1 else b""
            first[c] = found.setdefault(key, c)
    return first


def digest(tensor: tvm.runtime.Tensor) -> bytes:
    value = np.ascontiguousarray(graph.as_numpy(tensor))
    return hashlib.blake2b(value.reshape(-1).view(np.uint8).data, digest_size=32).digest()


def direct_constants(mod: tvm.IRModule, constant: set[relax.Var], first: dict) -> list[GenericConst]:
    """Large constants that `main` itself reads, each once."""
    found: dict[GenericConst, None] = {}
    for binding in graph.bindings(mod):
        if binding.var not in constant:
            for c in graph.constants_of(binding.value):
                if isinstance(c.value, tvm.runtime.Tensor) and nbytes(c) > INLINE_BYTES:
                    found[first[c]] = None
    return list(found)


def nbytes(constant: GenericConst) -> int:
    dims = graph.shape(constant)
    return int(np.prod(dims, dtype=np.int64)) * tvm.DataType(graph.dtype(constant)).bits // 8


def write_prepare(rewriter, mod, constant, frontier, direct, first) -> list[tvm.runtime.Tensor]:
    """Emit `prepare` with one parameter per large constant that it reads or passes through; the values of these."""
    params: dict[GenericConst, relax.Var] = {}

    def lift(c: GenericConst) -> Expr:
        if nbytes(c) <= INLINE_BYTES:
            return c
        c = first.get(c, c)
        if c not in params:
            params[c] = relax.Var(f"stored_{len(params)}", c.ty)
        return params[c]

    # Parameters must be known before the body is written.
    for binding in graph.bindings(mod):
        if binding.var in constant:
            for c in graph.constants_of(binding.value):
                lift(c)
    for c in direct:
        lift(c)
    rewriter.on_const = lift
    result = relax.Tuple([*frontier, *direct])
    write_function(rewriter, mod, "prepare", list(params.values()), lambda v: v in constant, result)
    return [c.value for c in params]
