"""Operator attributes: reading all of them, and copies with some changed."""

from __future__ import annotations

import tvm
from tvm import relax

from tvmcompress.ir.graph import Expr


def fields(call: Expr) -> dict:
    """All attributes of a call by name."""
    return {field.name: getattr(call.attrs, field.name) for field in call.attrs.__class__.__tvm_ffi_type_info__.fields}


def order(call: Expr) -> list[int]:
    """The axes of a permutation, none of them negative; without any they are turned round."""
    rank = len(call.args[0].ty.shape)
    return [*range(rank)][::-1] if call.attrs.axes is None else [int(axis) % rank for axis in call.attrs.axes]


def changed(call: Expr, args: list[Expr], **changes) -> Expr:
    """The same operator on `args`, with some attributes changed."""
    key = call.attrs.__class__.__tvm_ffi_type_info__.type_key
    return relax.Call(call.op, args, tvm.ir.make_node(key, **(fields(call) | changes)))
