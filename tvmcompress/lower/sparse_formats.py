"""What a layer's weights can become where they hold zeros: a class for each kind of kernel.

Each says what its kernel reads of activations and of weights, and writes its program, which is made when it is wanted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from tvm import relax, te, tirx
from tvm.tirx import PrimFunc

from tvmcompress.coding import parts
from tvmcompress.ir import graph
from tvmcompress.ir.graph import Expr, Rewriter
from tvmcompress.isa import Isa
from tvmcompress.kernels import (
    sparse_blocks,
    sparse_nm,
    sparse_rows,
    sparse_rows_lists,
    sparse_rows_plan,
    sparse_winograd,
    winograd,
)
from tvmcompress.kernels.choices import Choices
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse import Product, Streams
from tvmcompress.kernels.sparse_rows_plan import PLANES
from tvmcompress.lower.finish import Finish

OFFSET = 2  # bytes of an offset
Plan = TypeVar("Plan", sparse_blocks.Plan, sparse_rows_plan.Plan, sparse_winograd.Plan)


@dataclass(frozen=True)
class Sparse(ABC, Generic[Plan]):
    """A kernel for a layer's weights. `text` names its format."""

    text: str
    plan: Plan
    density: float  # of what the kernel takes at once
    cycles: float
    streams: list[Streams] = field(default_factory=list, repr=False, compare=False)  # what is packed, once it is

    @property
    def product(self) -> Product:
        return self.plan.product

    @property
    def finishes(self) -> bool:
        """Whether its results are written once, so that what is behind it is best done by itself."""
        return False

    def pack(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        """Weights are packed once: their bytes are counted before it is known that they are wanted."""
        if not self.streams:
            self.streams.append(self.packed(weight, conv))
        return self.streams[0]

    def nbytes(self, weight: np.ndarray, conv: Conv2d, storage: str) -> int:
        """About as many as they are stored in, in a package."""
        return round(sum(parts.expected(array, storage) for array in self.pack(weight, conv).arrays))

    def read(self, weights: int) -> float:
        """Bytes of values and places, about, for so many weights."""
        return self.density * weights / self.product.depth * (self.product.bytes + self.place_bytes)

    place_bytes = 0

    @abstractmethod
    def packed(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        """Weights (O, C, KH, KW) as lists."""

    @abstractmethod
    def program(self, conv: Conv2d, streams: Streams, shape: Sequence[int], fill: int, finish: Finish) -> PrimFunc:
        """What reads them, with a result of `shape`; `fill` is what padding holds."""

    def source(self, rw: Rewriter, x: Expr, conv: Conv2d, fill: int) -> Expr:
        """x (n, h, w, c) as the kernel reads it."""
        return x

    def weights(self, rw: Rewriter, streams: Streams) -> list[Expr]:
        """What is packed, as the kernel reads it."""
        return [graph.const(array) for array in streams.arrays]


class Rows(Sparse[sparse_rows_plan.Plan]):
    """Zeros anywhere."""

    place_bytes = OFFSET

    @property
    def finishes(self) -> bool:
        return self.plan.whole and self.product.sums == "float32"

    def packed(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        return sparse_rows_lists.pack(weight, self.plan)

    def program(self, conv: Conv2d, streams: Streams, shape: Sequence[int], fill: int, finish: Finish) -> PrimFunc:
        return sparse_rows.program(self.plan, streams, shape, fill, finish.bias is not None, finish.limits)

    def source(self, rw: Rewriter, x: Expr, conv: Conv2d, fill: int) -> Expr:
        own = self.plan.conv
        return x if own == conv else rw.emit(relax.op.reshape(x, (own.n, own.h, own.w, graph.shape(x)[-1])))


class Blocks(Sparse[sparse_blocks.Plan]):
    """Zeros in blocks of outputs."""

    def packed(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        return sparse_blocks.pack(weight, conv, self.plan)

    def program(self, conv: Conv2d, streams: Streams, shape: Sequence[int], fill: int, finish: Finish) -> PrimFunc:
        return sparse_blocks.program(conv, self.plan, streams, shape)

    def source(self, rw: Rewriter, x: Expr, conv: Conv2d, fill: int) -> Expr:
        image = sparse_blocks.source(conv, self.plan)
        if image.padded(conv):
            x = rw.emit(rw.builder.call_te(lambda data: padded(data, conv, image, fill), x, primfunc_name_hint="pad"))
        return rw.emit(relax.op.reshape(x, (conv.n, math.prod(graph.shape(x)[1:]))))


class Groups(Blocks):
    """N of each M inputs, at places of each output's own."""

    @property
    def place_bytes(self) -> int:  # type: ignore[override]
        return self.product.depth

    def packed(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        return sparse_nm.pack(weight, conv, self.plan)


class Kernels(Sparse[sparse_winograd.Plan]):
    """Zeros in blocks of whole 3x3 kernels. Their taps become Winograd's when a package is loaded."""

    def packed(self, weight: np.ndarray, conv: Conv2d) -> Streams:
        return sparse_winograd.pack(weight, conv, self.plan)

    def program(self, conv: Conv2d, streams: Streams, shape: Sequence[int], fill: int, finish: Finish) -> PrimFunc:
        return sparse_winograd.program(conv, self.plan, streams)

    def weights(self, rw: Rewriter, streams: Streams) -> list[Expr]:
        taps, *places = super().weights(rw, streams)
        many, count, width = graph.shape(taps)
        flat = rw.emit(relax.op.reshape(taps, (many, count * width)))
        numbers = rw.emit(relax.op.matmul(graph.const(winograd.filters()), flat))
        return [rw.emit(relax.op.reshape(numbers, (winograd.PATCH**2, count, width))), *places]


def by_layout(kernel: Sparse, conv: Conv2d, isa: Isa, choices: Choices, source: str, result: str) -> Rows | None:
    """The kernel with planes for activations (see `sparse_rows`), where there is one."""
    if not isinstance(kernel, Rows) or kernel.product.data != "float32":
        return None
    conv = sparse_rows_plan.flat(conv) if result == PLANES else conv
    p = sparse_rows_plan.plan(conv, isa, kernel.product, kernel.density, choices, source, result)
    if p is None:
        return None
    return Rows(kernel.text, p, kernel.density, sparse_rows_plan.estimate(p, isa, kernel.density))


def padded(x: te.Tensor, conv: Conv2d, image: sparse_blocks.Source, fill: int) -> te.Tensor:
    top, left, _, _ = conv.padding
    channels = int(x.shape[-1])

    def element(n, h, w, c):  # type: ignore[no-untyped-def]
        inside = tirx.all(h >= top, h < conv.h + top, w >= left, w < conv.w + left)
        return tirx.if_then_else(inside, x[n, h - top, w - left, c], tirx.const(fill, x.dtype))

    return te.compute((conv.n, image.rows, image.columns, channels), element, name="pad")
