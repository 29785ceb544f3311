"""Our own converters, one family a file. A converter takes a Node and gives its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmcompress.frontend.onnx.operators import basic, contrib, control, layers, quantized, recurrent, reduce, shapes

_TABLES = (basic.TABLE, control.TABLE, layers.TABLE, quantized.TABLE, recurrent.TABLE, reduce.TABLE, shapes.TABLE)

CONVERTERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{("", op): convert for table in _TABLES for op, convert in table.items()},
    **{("com.microsoft", op): convert for op, convert in contrib.TABLE.items()},
}

# Operators whose definition by ONNX is imported although TVM has a converter: that one is wrong or knows less.
PREFER_FUNCTION: set[tuple[str, str]] = set()
