"""Sparse kernels in place of dense ones, where weights hold enough zeros.

    conv2d(x, w)    ->    sparse_rows(x, values, offsets, pointers)                  zeros anywhere
                    ->    sparse_blocks(copy with padding, values, offsets, pointers) zeros in blocks of outputs
                    ->    sparse_blocks(…, places)                    N of each M inputs; bytes: zeros anywhere

Which, and whether at all, is a matter of estimated cycles (`Keep.policy` "faster"), of bytes ("smaller"), or of neither
("always", "never"). Names in `Keep.dense` stay dense: there the sparse kernel was measured and lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tvm import relax, te, tirx
from tvm.tirx import PrimFunc

from tvmcompress.ir import constants, graph, ops
from tvmcompress.ir.graph import Expr, Rewriter
from tvmcompress.isa import Isa
from tvmcompress.kernels import sparse_blocks, sparse_nm, sparse_rows, sparse_rows_lists, sparse_rows_plan, winograd
from tvmcompress.kernels.choices import Choices
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import Product, Streams, by_depth, product
from tvmcompress.kernels.sparse_rows_plan import PLANES
from tvmcompress.kernels.tiles import lanes_for, round_up
from tvmcompress.lower.finish import Finish

POLICIES = ("faster", "smaller", "always", "never")
MOVES = ("relax.reshape", "relax.permute_dims", "relax.strided_slice")
FEW_ZEROS = 0.95  # of a layer's weights: with more than that it is not sparse
EFFICIENCY = {"float32": 0.85, "int32": 0.7}  # of the peak, that dense kernels reach
STREAM = 10  # bytes in a cycle that all cores together read from memory
FEW_PIXELS = 2  # with which a layer takes as long as its weights take to arrive
OFFSET = 2  # bytes of an offset
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
    plan: sparse_blocks.Plan | sparse_rows_plan.Plan
    density: float  # of what the kernel takes at once
    cycles: float
    streams: list[Streams] = field(default_factory=list, repr=False, compare=False)  # what is packed, once it is

    def pack(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        """Weights are packed once: their bytes are counted before it is known that they are wanted."""
        if not self.streams:
            self.streams.append(self.packed(weight, conv))
        return self.streams[0]

    def packed(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        if isinstance(self.plan, sparse_rows_plan.Plan):
            return sparse_rows_lists.pack(weight, self.plan)
        return (sparse_nm if self.plan.picked else sparse_blocks).pack(weight, conv, self.plan)

    def read(self, weights: int) -> float:
        """Bytes of values and places, about, for so many weights."""
        product = self.plan.product
        places = OFFSET if isinstance(self.plan, sparse_rows_plan.Plan) else product.depth if self.plan.picked else 0
        return self.density * weights / product.depth * (product.bytes + places)

    def nbytes(self, weight: np.ndarray, conv: Conv2d) -> int:
        return sum(array.nbytes for array in self.pack(weight, conv).arrays)

    def program(self, conv: Conv2d, streams: Streams, shape: Sequence[int], fill: int, finish: Finish) -> PrimFunc:
        if isinstance(self.plan, sparse_blocks.Plan):
            return sparse_blocks.program(conv, self.plan, streams, shape)
        return sparse_rows.program(self.plan, streams, shape, fill, finish.bias is not None, finish.limits)

    @property
    def finishes(self) -> bool:
        """Whether its results are written once, so that what is behind it is best done by itself."""
        return isinstance(self.plan, sparse_rows_plan.Plan) and self.plan.whole and self.plan.product.sums == "float32"

    def source(self, rw: Rewriter, x: Expr, conv: Conv2d, fill: int) -> Expr:
        """x (n, h, w, c) as the kernel reads it."""
        if isinstance(self.plan, sparse_rows_plan.Plan):
            own = self.plan.conv
            return x if own == conv else rw.emit(relax.op.reshape(x, (own.n, own.h, own.w, graph.shape(x)[-1])))
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


def by_layout(kernel: Sparse, conv: Conv2d, isa: Isa, choices: Choices, source: str, result: str) -> Sparse | None:
    """The kernel with planes for activations (see `sparse_rows`), where there is one."""
    if not isinstance(kernel.plan, sparse_rows_plan.Plan) or kernel.plan.product.data != "float32":
        return None
    conv = sparse_rows_plan.flat(conv) if result == PLANES else conv
    p = sparse_rows_plan.plan(conv, isa, kernel.plan.product, kernel.density, choices, source, result)
    return replace(kernel, plan=p, cycles=sparse_rows_plan.estimate(p, isa, kernel.density), streams=[]) if p else None


def padded(x: te.Tensor, conv: Conv2d, image: sparse_blocks.Source, fill: int) -> te.Tensor:
    top, left, _, _ = conv.padding
    channels = int(x.shape[-1])

    def element(n, h, w, c):  # type: ignore[no-untyped-def]
        inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
        return tirx.if_then_else(inside, x[n, h - top, w - left, c], tirx.const(fill, x.dtype))

    return te.compute((conv.n, image.rows, image.columns, channels), element, name="pad")


def candidates(
    weight: np.ndarray, conv: Conv2d, isa: Isa, how: Product, choices: Choices, planes: bool = False
) -> list[Sparse]:
    """Kernels for weights (O, C, KH, KW), the fastest first; `planes`: where activations may be such."""
    found, alive = [], weight != 0
    few = conv.n * math.prod(conv.out) <= FEW_PIXELS
    for vectors in (1, 2):
        density = of_blocks(alive, vectors * how.lanes, how.depth)
        p = sparse_blocks.plan(conv, isa, how, vectors, density, choices)
        cycles = sparse_blocks.estimate(conv, p, isa, density)
        found.append(Sparse(f"{p.width}x{how.depth} blocks", p, density, cycles))
    if picked := sparse_nm.picked(conv, isa, how):
        density = sparse_nm.density(weight, conv, how, picked.words)
        # Where pixels do not fill a vector, outputs have to.
        if few or sparse_nm.suits(weight, how, density):
            p = sparse_blocks.plan(conv, isa, how, 1, density, choices, picked)
            text = f"{sparse_nm.pattern(weight, picked.words * how.depth)} groups"
            found.append(Sparse(text, p, density, sparse_blocks.estimate(conv, p, isa, density)))
    if not how.words.narrow:
        density = of_blocks(alive, 1, how.depth)
        if (rows := sparse_rows_plan.plan(conv, isa, how, density, choices)) is not None:
            text = f"rows of 1x{how.depth}" if how.depth > 1 else "rows"
            one = Sparse(text, rows, density, sparse_rows_plan.estimate(rows, isa, density))
            other = by_layout(one, conv, isa, choices, PLANES, PLANES) if planes else None
            found.append(replace(one, cycles=min(one.cycles, other.cycles)) if other else one)
    if few:
        found = [replace(one, cycles=max(one.cycles, streamed(one.read(weight.size), isa))) for one in found]
    return sorted(found, key=lambda one: one.cycles)


def streamed(size: float, isa: Isa) -> float:
    """Cycles in which so many bytes of weights arrive from memory."""
    return size / STREAM if size > isa.l2 else 0


def of_blocks(alive: np.ndarray, outputs: int, depth: int) -> float:
    """The share of blocks of `outputs` by `depth` weights that are not zero (`alive`), of all that would be full."""
    taps = by_depth(alive, depth)
    taps = np.pad(taps, ((0, -len(taps) % outputs), *((0, 0),) * 4))
    blocks = taps.reshape(-1, outputs, *taps.shape[1:]).any((1, 5))
    return max(round(float(blocks.mean()), 2), 0.01)  # layers of about one density share plans, and so kernels


def dense_cycles(conv: Conv2d, isa: Isa, how: Product, choices: Choices) -> float:
    """The same estimate for the dense kernel, which is no slower than blocks of which none is zero. A product of few
    rows takes as long as its weights take to arrive."""
    lanes = how.lanes * how.depth * 2
    oh, ow = conv.out
    channels = round_up(conv.oc, how.lanes if how.words.dot else lanes_for(isa, conv.oc))
    work = conv.n * oh * ow * channels * conv.c * conv.kernel[0] * conv.kernel[1]
    full = [sparse_blocks.cost(conv, sparse_blocks.plan(conv, isa, how, v, 1.0), isa, 1.0) for v in (1, 2)]
    cycles = min(work / lanes / EFFICIENCY[how.sums] / isa.cores, *full)
    weights = conv.oc * conv.c * conv.kernel[0] * conv.kernel[1] * how.bytes // how.depth
    cycles = max(cycles, streamed(weights, isa))
    return cycles * WINOGRAD if how.data == "float32" and winograd.plan(conv, isa, choices) else cycles


def kept(
    weight: np.ndarray, conv: Conv2d, isa: Isa, kinds: tuple[str, str], keep: Keep, name: str, choices: Choices,
    planes: bool = False,
) -> tuple[Sparse | None, dict]:  # fmt: skip
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
    found = candidates(weight, conv, isa, how, choices, planes)
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


def lost(row: dict) -> dict:
    """The row of a layer whose kernel was kept, once it is measured and has lost."""
    why = f"measured: {row['format']} are slower"
    said = {"format": "dense", "kept": False, "bytes": row["dense_bytes"], "why": why}
    return {name: value for name, value in row.items() if name != "blocks"} | said
