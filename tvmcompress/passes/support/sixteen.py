"""Layers in a 16-bit float type; shared by ToFp16 and ToBf16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.passes.support.base import Outcome
from tvmcompress.passes.support.layers import Layer, layers
from tvmcompress.passes.support.select import notes, select
from tvmcompress.spec import numpy_dtype

EMBEDDINGS = ("relax.take", "relax.gather_elements", "relax.gather_nd")


def narrow(mod: tvm.IRModule, owner: str, dtype: str, skip: Sequence[str], min_size: int) -> Outcome:
    """Layers with operands of `dtype` and a float32 result; other large constants are stored in `dtype`."""
    greatest = float(np.finfo(np.float16).max) if dtype == "float16" else float(np.finfo(np.float32).max)

    def why_not(layer: Layer) -> str:
        if layer.weight is not None and np.abs(layer.weights()).max(initial=0) > greatest:
            return f"it has weights beyond {greatest:.0f}, the greatest {dtype}"
        return ""

    chosen, reasons = select(mod, owner, skip, (), why_not)
    taken = {layer.var for layer in chosen}
    skipped = {layer.var for layer in layers_left(mod, reasons)}
    narrowed: dict[graph.Expr, graph.Expr] = {}
    widened: dict[graph.Expr, graph.Expr] = {}

    def cast(rewriter: graph.Rewriter, operand: graph.Expr) -> graph.Expr:
        if operand not in narrowed:
            if graph.is_const(operand):
                narrowed[operand] = graph.const(graph.value(operand).astype(numpy_dtype(dtype)))
            else:
                narrowed[operand] = rewriter.emit(relax.op.astype(operand, dtype), f"{operand.name}_{short(dtype)}")
        return narrowed[operand]

    def store(rewriter: graph.Rewriter, operand: graph.Expr) -> graph.Expr:
        """A large constant that other operators read: stored narrow, made wide where it is read."""
        if isinstance(operand, relax.Tuple):
            return relax.Tuple([store(rewriter, f) for f in operand.fields])
        if not is_large(operand, min_size, greatest):
            return operand
        if operand not in widened:
            widened[operand] = rewriter.emit(relax.op.astype(cast(rewriter, operand), "float32"), "stored")
        return widened[operand]

    def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
        if var in taken:
            return in_16_bits(expr, [cast(rewriter, a) for a in expr.args])
        if not isinstance(expr, relax.Call) or var in skipped:
            return None
        if graph.op_name(expr) in EMBEDDINGS and is_large(expr.args[0], min_size, greatest):
            args = [cast(rewriter, expr.args[0]), *expr.args[1:]]
            rows = rewriter.emit(relax.Call(expr.op, args, expr.attrs, expr.ty_args), f"{var.name}_{short(dtype)}")
            return relax.op.astype(rows, "float32")
        if not any(graph.constants_of(expr)):
            return None
        return relax.Call(expr.op, [store(rewriter, a) for a in expr.args], expr.attrs, expr.ty_args)

    return Outcome(graph.rewrite(mod, visit), notes(mod, owner, reasons))


def layers_left(mod: tvm.IRModule, reasons: dict[str, str]) -> list[Layer]:
    return [layer for layer in layers(mod) if layer.name in reasons]


def in_16_bits(expr: relax.Call, args: list[graph.Expr]) -> relax.Call:
    """The same operator on narrow operands, its sums and its result in float32."""
    op, attrs = expr.op.name.removeprefix("relax."), expr.attrs
    if op == "matmul":
        return relax.op.matmul(*args, out_dtype="float32")
    keys = ["strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout"]
    if op.endswith("_transpose"):
        keys.append("output_padding")
    options = {key: getattr(attrs, key) for key in keys}
    options = {k: v if isinstance(v, str | int) else [int(i) for i in v] for k, v in options.items()}
    return getattr(relax.op.nn, op.removeprefix("nn."))(*args, **options, out_dtype="float32")


def is_large(operand: graph.Expr, min_size: int, greatest: float) -> bool:
    if not graph.is_const(operand) or str(operand.ty.dtype) != "float32":
        return False
    array = graph.value(operand)
    return array.size >= min_size and bool(np.abs(array).max(initial=0) <= greatest)


def short(dtype: str) -> str:
    return {"float16": "fp16", "bfloat16": "bf16"}[dtype]
