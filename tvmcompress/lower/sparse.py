"""Sparse kernels in place of dense ones, where weights hold enough zeros.

    conv2d(x, w)    ->    sparse_rows(x, values, offsets, pointers)                  zeros anywhere
                    ->    sparse_blocks(copy with padding, values, offsets, pointers) zeros in blocks of outputs

Which, and whether at all, is a matter of estimated cycles (`Keep.policy` "faster"), of bytes ("smaller"), or of neither
("always", "never"). Names in `Keep.dense` stay dense: there the sparse kernel was measured and lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.tirx import PrimFunc

from tvmcompress.ir import constants, graph, ops
from tvmcompress.ir.graph import Expr, Rewriter
from tvmcompress.isa import Isa
from tvmcompress.kernels import sparse_blocks, sparse_rows, winograd
from tvmcompress.kernels.choices import Choices
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import Product, Streams, by_depth, product
from tvmcompress.kernels.tile import lanes_for, round_up

POLICIES = ("faster", "smaller", "always", "never")
MOVES = ("relax.reshape", "relax.permute_dims", "relax.strided_slice")
FEW_ZEROS = 0.95  # of a layer's weights: with more than that it is not sparse
EFFICIENCY = {"float32": 0.85, "int32": 0.7}  # of the peak, that dense kernels reach
WINOGRAD = 0.6  # of the time of the other dense kernel


@dataclass(frozen=True)
class Keep:
    """Which layers with zeros get sparse kernels."""

    policy: str = "faster"
    dense: frozenset[str] = frozenset()


KEEP = Keep()


@dataclass(frozen=True)
class Sparse:
    """A kernel for a layer's weights: its program is made when it is wanted. `text` names its format."""

    text: str
    plan: sparse_blocks.Plan | sparse_rows.Plan
    density: float  # of what the kernel takes at once
    cycles: float

    def pack(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        if isinstance(self.plan, sparse_blocks.Plan):
            return sparse_blocks.pack(weight, conv, self.plan)
        return sparse_rows.pack(weight, self.plan)

    def nbytes(self, weight: np.ndarray, conv: Conv2d) -> int:
        return sum(array.nbytes for array in self.pack(weight, conv).arrays)

    def program(self, conv: Conv2d, streams: Streams, shape: Sequence[int], fill: int) -> PrimFunc:
        if isinstance(self.plan, sparse_blocks.Plan):
            return sparse_blocks.program(conv, self.plan, streams, shape)
        return sparse_rows.program(self.plan, streams, shape, fill)

    def source(self, rw: Rewriter, x: Expr, conv: Conv2d, fill: int) -> Expr:
        """x (n, h, w, c) as the kernel reads it."""
        if isinstance(self.plan, sparse_rows.Plan):
            return x
        image = sparse_blocks.source(conv, self.plan)
        if image.padded(conv):
            x = rw.emit(rw.builder.call_te(lambda data: padded(data, conv, image, fill), x, primfunc_name_hint="pad"))
        return rw.emit(relax.op.reshape(x, (conv.n, math.prod(graph.shape(x)[1:]))))


def stored(rw: Rewriter, weight: Expr) -> np.ndarray | None:
    """The values of weights that are constants, or that share few values, which a package stores as such; else None."""
    call = rw.definition(weight)
    while graph.op_name(call) in MOVES:
        call = rw.definition(call.args[0])
    if graph.is_const(weight) or graph.op_name(call) in (ops.LOOK_UP, ops.HASHED):
        return constants.known(weight, rw.definition)
    return None


def padded(x: te.Tensor, conv: Conv2d, image: sparse_blocks.Source, fill: int) -> te.Tensor:
    top, left, _, _ = conv.padding
    channels = int(x.shape[-1])

    def element(n, h, w, c):  # type: ignore[no-untyped-def]
        inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
        return tirx.if_then_else(inside, x[n, h - top, w - left, c], tirx.const(fill, x.dtype))

    return te.compute((conv.n, image.rows, image.columns, channels), element, name="pad")


def candidates(weight: np.ndarray, conv: Conv2d, isa: Isa, how: Product, choices: Choices) -> list[Sparse]:
    """Kernels for weights (O, C, KH, KW), the fastest first."""
    found = []
    for vectors in (1, 2):
        density = of_blocks(weight, vectors * how.lanes, how.depth)
        p = sparse_blocks.plan(conv, isa, how, vectors, density, choices)
        cycles = sparse_blocks.cost(conv, p, isa, density)
        found.append(Sparse(f"{p.width}x{how.depth} blocks", p, density, cycles))
    if not how.words.narrow:
        density = of_blocks(weight, 1, how.depth)
        if (rows := sparse_rows.plan(conv, isa, how, density, choices)) is not None:
            text = f"rows of 1x{how.depth}" if how.depth > 1 else "rows"
            found.append(Sparse(text, rows, density, sparse_rows.cost(rows, isa, density)))
    return sorted(found, key=lambda one: one.cycles)


def of_blocks(weight: np.ndarray, outputs: int, depth: int) -> float:
    """The share of blocks of `outputs` by `depth` weights that are not zero, of all that would be full."""
    taps = by_depth(weight, depth)
    taps = np.pad(taps, ((0, -len(taps) % outputs), *((0, 0),) * 4))
    blocks = taps.reshape(-1, outputs, *taps.shape[1:]).any((1, 5))
    return max(round(float(blocks.mean()), 2), 0.01)  # layers of about one density share plans, and so kernels


def dense_cycles(conv: Conv2d, isa: Isa, how: Product, choices: Choices) -> float:
    """The same estimate for the dense kernel, which is no slower than blocks of which none is zero."""
    lanes = how.lanes * how.depth * 2
    oh, ow = conv.out
    channels = round_up(conv.oc, how.lanes if how.words.dot else lanes_for(isa, conv.oc))
    work = conv.n * oh * ow * channels * conv.c * conv.kernel[0] * conv.kernel[1]
    full = [sparse_blocks.cost(conv, sparse_blocks.plan(conv, isa, how, v, 1.0), isa, 1.0) for v in (1, 2)]
    cycles = min(work / lanes / EFFICIENCY[how.sums] / isa.cores, *full)
    return cycles * WINOGRAD if how.data == "float32" and winograd.plan(conv, isa, choices) else cycles


def kept(
    weight: np.ndarray, conv: Conv2d, isa: Isa, kinds: tuple[str, str], keep: Keep, name: str, choices: Choices
) -> tuple[Sparse | None, dict]:
    """The kernel for a layer, None for the dense one; and a row for the report, empty where there are no zeros."""
    density = float(np.count_nonzero(weight)) / max(weight.size, 1)
    if density > FEW_ZEROS:
        return None, {}
    bytes_ = int(weight.nbytes)
    row = {"density": density, "format": "dense", "kept": False, "dense_bytes": bytes_, "bytes": bytes_}
    how = product(conv, isa, *kinds) if conv.groups == 1 else None
    if how is None:
        return None, row | {"why": "grouped" if conv.groups > 1 else f"no sparse kernel for {' x '.join(kinds)} here"}
    if keep.policy == "never":
        return None, row | {"why": "dense was asked for"}
    found = candidates(weight, conv, isa, how, choices)
    if keep.policy == "smaller":
        found.sort(key=lambda one: one.nbytes(weight, conv))
    text = choices(f"zeros {density:.2f} {key(conv, how.data)}")("format", [one.text for one in found])
    best, dense = next(one for one in found if one.text == text), dense_cycles(conv, isa, how, choices)
    row |= {"estimate": best.cycles / dense}
    if name in keep.dense:
        return None, row | {"why": f"measured: {best.text} are slower"}
    if keep.policy == "faster" and best.cycles >= dense:
        return None, row | {"why": f"{best.text} would take {best.cycles / dense:.2f} times as long"}
    size = best.nbytes(weight, conv)
    if keep.policy == "smaller" and size >= bytes_:
        return None, row | {"why": f"{best.text} would take {size / bytes_:.2f} times the bytes"}
    return best, row | {"format": best.text, "kept": True, "bytes": size, "blocks": best.density, "why": ""}
