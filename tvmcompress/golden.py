"""Golden inputs and outputs: what a package carries to show, on the device itself, that it computes what it should."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmcompress.spec import TensorSpec, numpy_dtype

LEVELS = 16  # distinct values of an example input


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """All that was looked at; good when everything was. `not_run` says of builds for other machines why not."""

    checks: tuple[Check, ...]
    not_run: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def json(self) -> dict:
        return {"ok": self.ok, "checks": [vars(check) for check in self.checks], "not_run": [*self.not_run]}


def compare(what: str, got: np.ndarray, wanted: np.ndarray, tolerance: Mapping[str, Any]) -> Check:
    """Floats within `absolute` + `relative` x the largest |wanted|; 8-bit integers within `quanta`; else exactly."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return Check(what, False, f"wanted {wanted.dtype} {wanted.shape}, got {got.dtype} {got.shape}")
    if wanted.dtype.kind in "iub":
        allowed = float(tolerance["quanta"]) if wanted.dtype.itemsize == 1 and wanted.dtype.kind != "b" else 0.0
        error = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
    else:
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        allowed = tolerance["absolute"] + tolerance["relative"] * float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.abs(np.where(same, 0.0, a - b)).max(initial=0.0)
    ok = bool(error <= allowed)  # NaN is not
    return Check(what, ok, f"largest error {error:.4g}, allowed {allowed:.4g}")


def example_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, np.ndarray]:
    """Deterministic inputs that pack well: floats from `LEVELS` steps in -2 … 2, integers 0 or 1 (valid as indices)."""
    inputs = {}
    for spec in specs:
        random = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        shape = tuple(1 if d is None else d for d in spec.shape)
        dtype = numpy_dtype(spec.dtype)
        if dtype.kind in "iub":
            inputs[spec.name] = random.integers(0, 2, shape).astype(dtype)
        else:
            steps = random.integers(0, LEVELS, shape)
            inputs[spec.name] = (steps * (4 / (LEVELS - 1)) - 2).astype(np.float32).astype(dtype)
    return inputs
