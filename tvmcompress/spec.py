"""TensorSpec: one input or output. Apart from `model` so that running a package needs no compiler."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its own name, its shape (None where a dimension depends on data) and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Elements; 0 when a dimension is open."""
        return int(np.prod([d or 0 for d in self.shape], dtype=np.int64))


@functools.cache
def numpy_dtype(name: str) -> np.dtype:
    """A NumPy dtype by name, with those of ml_dtypes (bfloat16, float8_e4m3fn …)."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def spec_json(spec: TensorSpec) -> dict:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def spec_from_json(value: dict) -> TensorSpec:
    return TensorSpec(value["name"], tuple(value["shape"]), value["dtype"])
