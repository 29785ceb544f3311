"""Before, expected: how the rewrite of a pass is tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from tvmcompress.ir import evaluate, graph
from tvmcompress.passes import Calibration, Outcome, Pass

Body = Callable[..., Sequence[graph.Expr]]


def program(shape: Sequence[int], body: Body, dtype: str = "float32") -> tvm.IRModule:
    """A program of one input `x`; `body(emit, x)` binds with `emit(expr, name)` and returns the results."""
    return graph.program([("x", shape, dtype)], lambda rewriter, x: body(rewriter.emit, x))


def const(values: object, dtype: str = "float32") -> graph.Expr:
    return graph.const(np.array(values, dtype))


def check_pair(step: Pass, before: tvm.IRModule, expected: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
    """`step` turns `before` into `expected`, constants and all, and leaves `before` as it was."""
    untouched = tvm.ir.load_json(tvm.ir.save_json(before))
    outcome = step(before, samples)
    relax.analysis.well_formed(outcome.module)  # raises when it is not
    tvm.ir.assert_structural_equal(outcome.module, expected, map_free_vars=True)
    tvm.ir.assert_structural_equal(before, untouched, map_free_vars=True)
    return outcome


def check_unchanged(step: Pass, before: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
    return check_pair(step, before, before, samples)


def calibration(*samples: np.ndarray, **options) -> Calibration:
    """Samples of one input, run with TVM's stock kernels."""
    return Calibration([[s] for s in samples], evaluate.executor, total=len(samples), **options)


def run(mod: tvm.IRModule, *inputs: np.ndarray) -> np.ndarray:
    return evaluate.evaluate(mod, inputs)[0]


def snr_db(signal: np.ndarray, other: np.ndarray) -> float:
    noise = np.square(signal.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(signal.astype(np.float64)).sum() / noise))
