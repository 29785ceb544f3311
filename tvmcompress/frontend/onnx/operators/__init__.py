"""Our own converters, one family a file. A converter takes a Node and gives its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmcompress.frontend.onnx.operators import (
    arithmetic,
    basic,
    contrib,
    control,
    indexing,
    layers,
    norms,
    padding,
    quantized,
    recurrent,
    reduce,
    resize,
    shapes,
    signal,
)

_FAMILIES = (
    arithmetic, basic, control, indexing, layers, norms, padding, quantized, recurrent, reduce, resize, shapes, signal,
)  # fmt: skip

CONVERTERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{("", op): convert for family in _FAMILIES for op, convert in family.TABLE.items()},
    **{("com.microsoft", op): convert for op, convert in contrib.TABLE.items()},
}

# Operators whose definition by ONNX is imported although TVM has a converter: that one is wrong or knows less.
PREFER_FUNCTION: set[tuple[str, str]] = set()
