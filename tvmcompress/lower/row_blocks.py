"""Rows of sparse products in as many blocks as there are cores, each of which lies in one piece of memory.

    matmul(x (1, 128, k), w)    ->    reshape(matmul(reshape(x, (2, 64, k)), w), (1, 128, n))

As planes (see `planes`) rows are innermost, and two cores that share them write every second stretch of 256 bytes.
Processors fetch ahead beyond what a core is at, so that lines which the other one writes go to and fro between them;
where cores share no cache that may take as long as the sums. Blocks are images to all that follows, each core has its
own, and nothing is fetched that another writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import Isa
from tvmcompress.kernels.choices import untuned
from tvmcompress.kernels.code import LINE_BYTES
from tvmcompress.kernels.sparse_rows_plan import LATENCY
from tvmcompress.lower.planes import alike, components, first, goes_along, images, last, linked, permutes
from tvmcompress.lower.sparse import KEEP
from tvmcompress.lower.sparse_layers import SparseLayers


def in_blocks(mod: tvm.IRModule, isa: Isa) -> tvm.IRModule:
    """The program with the rows of its sparse products, and of what is element-wise behind these, in blocks."""
    layers, definitions = SparseLayers(isa, untuned, KEEP), graph.definitions(mod)
    products = [
        var
        for var, expr in definitions.items()
        if op_name(expr) == "relax.matmul" and graph.has_static_shape(var) and blocks(graph.shape(var), isa) > 1
    ]
    sparse = {var: data[0] for var in products if (data := layers.data_of(definitions, var, definitions[var]))}
    if sparse:
        planes = planes_of_program(mod, definitions)
        sparse = {var: data for var, data in sparse.items() if not {var, data} & planes}
    return graph.rewrite(mod, Blocked(set(sparse), isa)) if sparse else mod


def planes_of_program(mod: tvm.IRModule, definitions: Mapping[Var, Expr]) -> set[Var]:
    """What the program itself has with channels first, on its way in or out: as such it is planes without a copy."""
    readers = graph.consumers(mod)
    along = {var for var, expr in definitions.items() if goes_along(var, expr)}
    links = {var: set[Var]() for var in definitions} | linked(definitions, along)

    def turned(var: Var) -> bool:
        ends = any(permutes(definitions[reader], first) for reader in readers.get(var, []) if reader in definitions)
        return ends or (var in definitions and permutes(definitions[var], last))

    return {var for group in components(links) if any(map(turned, group)) for var in group}


def blocks(shape: tuple[int, ...], isa: Isa) -> int:
    """How many, 1 for none: each of whole lines of the cache, and as many of these as hide what a sum waits for."""
    if len(shape) < 2 or images(shape) != 1:
        return 1
    lanes, rows = max(isa.lanes, LINE_BYTES // 4), prod(shape[:-1])
    return max((n for n in range(1, isa.cores + 1) if gcd(rows, n * lanes) == n * lanes <= rows // LATENCY), default=1)


class Blocked:
    """Writes the new program: each expression that is in blocks has a view of the old shape, for all others."""

    def __init__(self, sparse: set[Var], isa: Isa) -> None:
        self.sparse, self.isa = sparse, isa
        self.blocks: dict[Expr, Expr] = {}  # of a view

    def __call__(self, rw: Rewriter, var: Var, expr: Expr) -> Expr | None:
        if var in self.sparse:
            args = [self.operand(rw, expr.args[0], graph.shape(expr.args[0])), expr.args[1]]
        elif goes_along(var, expr) and any(a in self.blocks for a in alike(var, expr)):
            args = [self.operand(rw, a, graph.shape(var)) for a in expr.args]
        else:
            return None
        made = rw.emit(relax.Call(expr.op, args, expr.attrs, expr.ty_args), var.name)
        view = rw.emit(relax.op.reshape(made, graph.shape(var)))
        self.blocks[view] = made
        return view

    def operand(self, rw: Rewriter, a: Expr, whole: tuple[int, ...]) -> Expr:
        """What an operator in blocks reads in place of `a`, which has the shape `whole`, or holds a vector of channels
        or a single value."""
        if a in self.blocks or not isinstance(a.ty, relax.TensorType):
            return self.blocks.get(a, a)
        shape, count = graph.shape(a), blocks(whole, self.isa)
        wanted = (
            (count, prod(whole[:-1]) // count, whole[-1]) if shape == whole else shape[-1:] if prod(shape) > 1 else ()
        )
        if graph.is_const(a):
            return graph.const(graph.value(a).reshape(wanted))
        return rw.emit(relax.op.reshape(a, wanted))
