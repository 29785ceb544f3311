"""What a bfloat16 kernel reads, element-wise work reads too: one array of two bytes instead of that and one of four.

    y = add(a, b); bits(y) -> conv; add(y, c)      ->      q = bits(add(a, b)); q -> conv; add(real(q), c)

where `real` is a shift that fuses into what reads it. Without this a residual network writes every sum twice.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter, Var, op_name
from tvmcompress.isa import BF16_BITS
from tvmcompress.kernels import tile

READERS = {f"relax.{name}" for name in ("add", "subtract", "multiply", "maximum", "minimum", "clip", "mean", "nn.relu")}


def is_bits(call: Expr) -> bool:
    return (
        op_name(call) == "relax.call_tir"
        and call.args[0].name_hint.startswith("bits")
        and str(call.ty.dtype) == BF16_BITS
    )


def candidates(mod: tvm.IRModule) -> dict[Var, Var]:
    """Variables of which there are bits, and which otherwise only element-wise work reads; and those bits."""
    definitions, readers, results = graph.definitions(mod), graph.consumers(mod), graph.results(mod)
    found = {}
    for var, call in definitions.items():
        if not is_bits(call):
            continue
        source = call.args[1].fields[0]
        others = [definitions[r] for r in readers.get(source, []) if r is not var and not r.same_as(var)]
        if source in definitions and source not in results and others and all(op_name(o) in READERS for o in others):
            found[source] = var
    return found


def share_bits(mod: tvm.IRModule) -> tvm.IRModule:
    chosen = candidates(mod)
    made = {bits: source for source, bits in chosen.items()}
    definitions = graph.definitions(mod)
    bits_of: dict[Expr, Expr] = {}  # of the new program

    def visit(rw: Rewriter, var: Var, expr: Expr) -> Expr | None:
        if var in chosen:
            y = rw.emit(expr, var.name)
            call = definitions[chosen[var]]
            bits_of[y] = rw.emit(relax.op.call_tir(rw.new(call.args[0]), [y], call.ty), "bits")
            return y
        if var in made:
            return bits_of[rw.replacement[made[var]]]
        if op_name(expr) not in READERS:
            return None
        arguments = [real(rw, bits_of[a]) if a in bits_of else a for a in expr.args]
        return relax.Call(expr.op, arguments, expr.attrs, expr.ty_args)

    return graph.rewrite(mod, visit) if chosen else mod


def real(rw: Rewriter, bits: Expr) -> Expr:
    return rw.emit(rw.builder.call_te(tile.real, bits, primfunc_name_hint="real"))
