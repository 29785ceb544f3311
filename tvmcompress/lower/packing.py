"""Weights to the layouts of kernels by operators: where they are not known at compile time, or are packed at load."""

from __future__ import annotations

from tvm import relax

from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter
from tvmcompress.isa import Isa
from tvmcompress.kernels import conv2d as conv_kernel
from tvmcompress.kernels import winograd
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.tiles import lanes_for, round_up


def pad_to(rw: Rewriter, expr: Expr, dims: tuple[int, ...]) -> Expr:
    """Zeros behind each axis up to `dims`."""
    old = graph.shape(expr)
    width = [w for have, want in zip(old, dims) for w in (0, want - have)]
    return rw.emit(relax.op.nn.pad(expr, width)) if any(width) else expr


def pack_conv(rw: Rewriter, weight: Expr, conv: Conv2d, p: conv_kernel.Plan) -> Expr:
    """`kernels.conv2d.pack` as operators."""
    oc, ic, kh, kw = graph.shape(weight)
    group, blocks, block = oc // conv.groups, p.blocks(conv.oc // conv.groups), p.tile.block
    icp = -(-ic // p.depth) * p.depth
    e = rw.emit(relax.op.reshape(weight, (conv.groups, group, ic, kh, kw)))
    e = pad_to(rw, e, (conv.groups, blocks * block, icp, kh, kw))
    e = rw.emit(relax.op.reshape(e, (conv.groups * blocks, block, icp // p.depth, p.depth, kh, kw)))
    e = rw.emit(relax.op.permute_dims(e, (0, 4, 5, 2, 1, 3)))
    return e if p.depth > 1 else rw.emit(relax.op.squeeze(e, [5]))


def transform_filters(rw: Rewriter, weight: Expr, conv: Conv2d, p: winograd.Plan) -> Expr:
    """A kernel's 9 taps become 36, by operators: stored they would be four times as large."""
    many, blocks, c, block = winograd.packed_shape(conv, p)
    e = rw.emit(relax.op.permute_dims(weight, (2, 3, 1, 0)))
    e = pad_to(rw, e, (*conv.kernel, c, blocks * block))
    e = rw.emit(relax.op.reshape(e, (9, c * blocks * block)))
    e = rw.emit(relax.op.matmul(graph.const(winograd.filters()), e))
    e = rw.emit(relax.op.reshape(e, (many, c, blocks, block)))
    return rw.emit(relax.op.permute_dims(e, (0, 2, 1, 3)))


def pack_depthwise(rw: Rewriter, weight: Expr, conv: Conv2d, isa: Isa) -> Expr:
    e = rw.emit(relax.op.permute_dims(rw.emit(relax.op.squeeze(weight, [1])), (1, 2, 0)))
    return pad_to(rw, e, (*conv.kernel, round_up(conv.oc, lanes_for(isa, conv.oc))))


def pack_matmul(rw: Rewriter, weight: Expr, p: conv_kernel.Plan) -> Expr:
    k, n = graph.shape(weight)
    block = p.tile.block
    kp, np_ = -(-k // p.depth) * p.depth, -(-n // block) * block
    e = pad_to(rw, weight, (kp, np_))
    e = rw.emit(relax.op.reshape(e, (kp // p.depth, p.depth, np_ // block, block)))
    e = rw.emit(relax.op.permute_dims(e, (2, 0, 3, 1)))
    return e if p.depth > 1 else rw.emit(relax.op.squeeze(e, [3]))
