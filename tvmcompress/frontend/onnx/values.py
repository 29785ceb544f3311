"""What stands for an ONNX value while a graph is imported: known, computed, a sequence, or absent."""

from __future__ import annotations

import numpy as np

from tvmcompress.ir import graph

LARGE = 1 << 20  # bytes; larger arrays become constants at once, so that they never exist twice
NARROW = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}


class Known:
    """A value known at load. Its Relax constant is made once, on first use, and then holds the only copy."""

    __slots__ = ("_const", "array")

    def __init__(self, array: np.ndarray):
        self.array = np.asarray(array)
        self._const: graph.Expr | None = None
        if self.array.nbytes >= LARGE and self.array.dtype.kind in "fiu":
            self.expr()

    def expr(self) -> graph.Expr:
        """The value as a Relax constant. 4-bit and 2-bit integers are widened to 8 bits, which TVM can compute with."""
        if self._const is None:
            array = self.array.astype(NARROW.get(self.array.dtype.name, self.array.dtype), copy=False)
            self._const = graph.const(array)
            if array.dtype.kind in "fiu" and array is self.array:
                self.array = graph.value(self._const)
        return self._const


Value = Known | graph.Expr | list | None
