"""Programs as TVM fuses them: every one gets the schedule of its family."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tvm
from tvm import te

from tests.lower.tools import need
from tvmcompress.isa import isa_of
from tvmcompress.kernels import matmul
from tvmcompress.kernels.choices import untuned
from tvmcompress.lower import schedules
from tvmcompress.target import Target


def doubled(x: te.Tensor, i, j):
    return x[i, j] * tvm.tirx.const(2.0, "float32")


@pytest.mark.parametrize("steps", [1, 3])
def test_the_other_operand_of_a_sum(steps: int) -> None:
    """It comes before the anchor, which does not read it: it is computed where it is used."""
    need("native")
    target = Target.load("native")
    isa = isa_of(target.to_tvm(), target.l1d, target.l2)
    m, k, n = 6, 40, 48
    plan = matmul.plan(m, k, n, 1, isa, "float32", "float32")
    rng = np.random.default_rng(0)
    x, w, beside = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    packed = matmul.pack(w, plan)
    data, taps, side = (te.placeholder(a.shape, a.dtype) for a in (x, packed, beside))
    grown = side
    for step in range(steps):
        grown = te.compute((m, n), partial(doubled, grown), name=f"beside{step}")
    product = matmul.compute(data, taps, n, plan)
    out = te.compute((m, n), lambda i, j: grown[i, j] + product[i, j], name="sum")
    func = te.create_prim_func([data, taps, side, out])
    func = schedules.apply(func, isa, untuned, "kernel").with_attr("global_symbol", "main")
    built = tvm.compile(tvm.IRModule({"main": func}), target=target.to_tvm())
    got = tvm.runtime.tensor(np.zeros((m, n), np.float32))
    built["main"](*(tvm.runtime.tensor(a) for a in (x, packed, beside)), got)
    np.testing.assert_allclose(got.numpy(), beside * 2**steps + x @ w, rtol=1e-4, atol=1e-4)
