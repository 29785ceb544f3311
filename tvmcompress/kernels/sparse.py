"""What sparse convolutions and matrix products have in common: how their weights are stored, and a step of their sums.

A matrix product is the convolution of one row of pixels: x (…, m, k) is an image 1 x m of k channels.

Weights are a list of what is not zero, and where it is read: `values`, the offset in the input of each, and where the
part of each row of outputs begins. What is known of the weights when a model is compiled is in these arrays alone: the
code does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.tirx import Expr

from tvmcompress.isa import BF16_BITS, Isa
from tvmcompress.kernels import CODE, FAMILY, MACS
from tvmcompress.kernels.choices import KEY
from tvmcompress.kernels.code import Function, Words, module
from tvmcompress.kernels.conv2d import Conv2d, instruction

SPARSE_MACS = 1 << 20  # of the dense product, from which threads are worth starting
BITS = {"uint16": "i16", "int32": "i32"}  # LLVM's names of what offsets are
SHORT = 1 << 16  # offsets below it take two bytes


@dataclass(frozen=True)
class Product:
    """How products are formed: the instruction, or none; `data` and `weight` as they are read, and the sums' dtype.

    An element of the reduction is `depth` channels, that many as the instruction takes at once.
    """

    words: Words
    data: str
    weight: str

    @property
    def lanes(self) -> int:
        return self.words.lanes

    @property
    def depth(self) -> int:
        return self.words.dot.depth if self.words.dot else 1

    @property
    def sums(self) -> str:
        return "int32" if self.data in ("int8", "uint8", "int16") else "float32"

    @property
    def bytes(self) -> int:
        """Of an element."""
        return tvm.DataType(self.data).bits // 8 * self.depth


def product(conv: Conv2d, isa: Isa, data: str, weight: str) -> Product | None:
    """None where these dtypes are not multiplied one vector at a time."""
    dot, read = instruction(conv, isa, data, weight)
    if dot and not dot.function:
        kinds = dot.data, dot.weight
        dot = next((d for d in isa.dots if d.function and (d.data, d.weight) == kinds), None)
        if dot is None and read != "int16":
            return None
    if dot:
        return Product(Words(dot.lanes, dot, isa.fused), read, dot.taken)
    if read == "int16":
        return Product(Words(isa.lanes, None, isa.fused, "i8" if weight == "int8" else "i16"), read, weight)
    return Product(Words(isa.lanes, None, isa.fused), read, read) if read == "float32" else None


def called(name: str, *arguments: Expr) -> Expr:
    """A call of a function that is written in LLVM's language."""
    return T.call_extern("void", name, *arguments)


@dataclass(frozen=True)
class Limits:
    """Between which sums are kept; a sum that is no number becomes the first limit that there is, `high` before `low`,
    as with TVM's own operators."""

    low: float = -math.inf
    high: float = math.inf


UNLIMITED = Limits()


@dataclass(frozen=True)
class Streams:
    """Weights as a kernel reads them."""

    values: np.ndarray
    offsets: np.ndarray
    pointers: np.ndarray
    more: tuple[np.ndarray, ...] = ()

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.values, self.offsets, self.pointers, *self.more


def coarse(count: int) -> int:
    """`count` or up to 3% more: layers of one shape that have about as many weights then share a kernel."""
    step = 1 << max(count.bit_length() - 6, 0)
    return -(-count // step) * step


def narrow(offsets: np.ndarray) -> np.ndarray:
    """In two bytes where that is enough; never empty, since no tensor is."""
    offsets = offsets if len(offsets) else np.zeros(1, np.int64)
    return offsets.astype(np.uint16 if offsets.max() < SHORT else np.int32)


def as_read(values: np.ndarray, product: Product) -> np.ndarray:
    """In the dtype in which the kernel reads weights: of bfloat16 the bits."""
    return values.view(np.uint16) if product.data == BF16_BITS else values.astype(product.weight)


def by_depth(weight: np.ndarray, depth: int) -> np.ndarray:
    """(O, C, KH, KW) as (O, KH, KW, C / depth, depth), channels filled up with zeros."""
    missing = -weight.shape[1] % depth
    padded = np.pad(weight, ((0, 0), (0, missing), (0, 0), (0, 0)))
    o, c, kh, kw = padded.shape
    return padded.reshape(o, c // depth, depth, kh, kw).transpose(0, 3, 4, 1, 2)


def attributes(family: str, key: str, conv: Conv2d, product: Product, functions: Sequence[Function]) -> dict:
    """Annotations of the anchor block. Multiply-accumulates are those of the dense product that this one stands for."""
    dot = product.words.dot.intrinsic if product.words.dot else ""
    return {FAMILY: family, KEY: key, MACS: conv.macs, "dot": dot, CODE: module(product.words, functions)}


def wide(names: dict[str, Any]) -> dict[str, Any]:
    """Numbers as TVM counts in tensors' shapes: programs that count otherwise are not fused with others."""

    def counted(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(counted(one) for one in value)
        return T.int64(value) if type(value) is int else value

    return {name: counted(value) for name, value in names.items()}


def result_axes(shape: Sequence[int], whole: tuple[int, int, int, int]) -> dict[str, str]:
    """How a result of `shape` is taken from (n, h, w, channels): names for the text of a program."""
    names = [f"v{i}" for i in range(len(shape))]
    if tuple(shape) == whole:
        image, across = names[0], f"{names[1]}, {names[2]}"
    else:
        images = [name for name, size in zip(names[:-2], shape[:-2]) if size != 1]
        image, across = images[0] if images else "0", f"0, {names[-2]}"
    return {
        "indices": ", ".join(f"i{i}" for i in range(len(shape))),
        "extents": ", ".join(f"T.int64({size})" for size in shape),
        "axes": ", ".join(names),
        "kinds": "S" * len(shape),
        "image": image,
        "across": across,
        "last": names[-1],
    }
