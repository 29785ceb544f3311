"""Softmax, layer and local response normalisation over the last axis, row by row, in float32.

    softmax     y = exp(x - max) / sum exp(x - max)
    layer norm  y = (x - mean) / sqrt(variance + epsilon) * gain + shift, the variance in a second pass over the row
    local       y = x / (bias + alpha / size * sum of x^2 over `size` neighbours)^beta

TVM's own layer norm sums x and x^2 together, which loses digits and does not vectorise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.s_tir import Schedule
from tvm.tirx import PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa
from tvmcompress.kernels import FAMILY, generic
from tvmcompress.kernels.choices import Choose, first
from tvmcompress.kernels.tile import straight, whole_vectors

LANES = 16  # rows are reduced in whole vectors of the widest unit, what is left over by itself


def reduce_rows(rows: Sequence[int], n: int, value: Callable, kind: str, name: str) -> te.Tensor:
    """The sum or maximum over k < n of value(*row, k); `value` is evaluated where it stands."""
    reducer, combine = (te.sum, lambda a, b: a + b) if kind == "sum" else (te.max, te.max)
    whole = n // LANES * LANES

    def part(start: int, size: int, suffix: str) -> te.Tensor:
        k = te.reduce_axis((0, size), "k")
        return te.compute(rows, lambda *i: reducer(value(*i, k + start), axis=[k]), name=name + suffix)

    if whole in (0, n) or n < 2 * LANES:
        return part(0, n, "")
    main, rest = part(0, whole, "_main"), part(whole, n - whole, "_rest")
    return te.compute(rows, lambda *i: combine(main[i], rest[i]), name=name)


def softmax(x: te.Tensor) -> te.Tensor:
    """x (…, n): the same shape. For short rows; see `softmax_rows`."""
    *rows, n = (int(d) for d in x.shape)
    top = reduce_rows(rows, n, lambda *i: x[i], "max", "softmax_max")
    power = te.compute((*rows, n), lambda *i: te.exp(x[i] - top[i[:-1]]), name="softmax_exp")
    total = reduce_rows(rows, n, lambda *i: power[i], "sum", "softmax_sum")
    inverse = te.compute(rows, lambda *i: tirx.const(1.0, "float32") / total[i], name="softmax_inverse")
    return te.compute((*rows, n), lambda *i: power[i] * inverse[i[:-1]], name="softmax")


def layer_norm(x: te.Tensor, gain: te.Tensor, shift: te.Tensor, epsilon: float) -> te.Tensor:
    """x (…, n), gain and shift (n,)."""
    *rows, n = (int(d) for d in x.shape)
    share = tirx.const(1.0 / n, "float32")
    total = halved_sum(rows, n, lambda *i: x[i], "norm_sum")

    def distance(*i):
        return x[i] - total(*i[:-1]) * share

    square = halved_sum(rows, n, lambda *i: distance(*i) * distance(*i), "norm_square")

    def inverse_of(*i):
        return tirx.const(1.0, "float32") / tirx.sqrt(square(*i) * share + tirx.const(epsilon, "float32"))

    inverse = te.compute(rows, inverse_of, name="norm_inverse")
    return te.compute(
        (*rows, n), lambda *i: distance(*i) * inverse[i[:-1]] * gain[i[-1]] + shift[i[-1]], name="norm",
        attrs={FAMILY: "layer_norm"},
    )  # fmt: skip


def halved_sum(rows: Sequence[int], n: int, value: Callable, name: str) -> Callable[..., tirx.Expr]:
    """The sum over k < n of value(*row, k), as a function of the row: vectors are added up, then their halves. What is
    left behind whole vectors is added one by one."""
    lanes = next((lanes for lanes in (4 * LANES, 2 * LANES, LANES, LANES // 2) if n % lanes == 0), LANES)
    sums, rest = list[te.Tensor](), n % lanes
    if n >= lanes:
        k = te.reduce_axis((0, n // lanes), "k")
        partial = te.compute(
            (*rows, lanes), lambda *i: te.sum(value(*i[:-1], k * lanes + i[-1]), axis=[k]), name=f"{name}_{lanes}"
        )
        while lanes > 1:
            lanes //= 2
            partial = halves(partial, lanes, f"{name}_{lanes}")
        sums.append(partial)
    if rest:
        k = te.reduce_axis((0, rest), "k")
        sums.append(
            te.compute((*rows, 1), lambda *i: te.sum(value(*i[:-1], n - rest + k), axis=[k]), name=f"{name}_rest")
        )
    return lambda *i: sum((part[(*i, 0)] for part in sums[1:]), sums[0][(*i, 0)])


def halves(whole: te.Tensor, lanes: int, name: str) -> te.Tensor:
    """Of (…, 2 lanes) the first and the second half added."""
    shape = (*whole.shape[:-1], lanes)
    return te.compute(shape, lambda *i: whole[i] + whole[(*i[:-1], i[-1] + lanes)], name=name)


def schedule(sch: Schedule, isa: Isa, choose: Choose) -> None:
    """Of layer norms: row by row, all that belongs to one and what is fused behind it."""
    before, anchor, after = generic.around_anchor(sch)
    for block in after[:-1]:
        sch.compute_inline(block)
    last = [anchor, *after][-1]
    if after:
        sch.compute_inline(anchor)
    *rows, _ = sch.get_loops(last)
    work = generic.extent(sch, sch.get_loops(last))
    row = sch.fuse(*rows)
    for block in reversed(before):
        if not sch.get(block).name_hint.startswith("norm_"):
            sch.compute_inline(block)
        else:
            sch.compute_at(block, row, preserve_unit_loops=True)
    # Before sums lose their beginnings: TVM would not see what they are.
    if isa.cores > 1 and choose("tasks", first(int(work >= generic.PARALLEL_WORK), range(2))):
        sch.parallel(row)
    for block in [block for block in before if sch.get(block).name_hint.startswith("norm_")]:
        if not generic.is_reduction(sch, block):
            sch.vectorize(sch.get_loops(block)[-1])
            continue
        *_, lane, k = sch.get_loops(block)
        sch.reorder(k, lane)
        sch.vectorize(lane)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(block, k))[-1])
    straight(sch, last, 0, whole_vectors(sch, last, isa))


# Accumulators of one vector, halved until one number is left; what is no whole vector comes after, one by one.
SOFTMAX = """
@T.prim_func(private=True, s_tir=True)
def softmax(x: T.Buffer({shape}, "{data}"), y: T.Buffer({shape}, "float32")):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    top = T.sblock_alloc_buffer(({rows}, {columns}, {lanes}), "{wide}")
    total = T.sblock_alloc_buffer(({rows}, {columns}, {lanes}))
    for r in T.{parallel}({rows}):
        for p in range({columns}):
            for v in T.vectorized({lanes}):
                with T.sblock("start"):
                    i, j, k = T.axis.remap("SSS", [r, p, v])
                    T.sblock_attr({{"{family}": "ready"}})
                    top[i, j, k] = T.cast(x[i, j, k], "{wide}")
                    total[i, j, k] = T.float32(0)
            for c in range({whole} - 1):
                for v in T.vectorized({lanes}):
                    with T.sblock("max"):
                        i, j, q, k = T.axis.remap("SSSS", [r, p, c, v])
                        top[i, j, k] = T.max(
                            top[i, j, k], T.cast(x[i, j, (q + 1) * {lanes} + k], "{wide}")
                        )
{halve_top}
            for c in range({rest}):
                with T.sblock("max_rest"):
                    i, j, q = T.axis.remap("SSS", [r, p, c])
                    top[i, j, 0] = T.max(
                        top[i, j, 0], T.cast(x[i, j, {whole} * {lanes} + q], "{wide}")
                    )
            for c in range({whole}):
                for v in T.vectorized({lanes}):
                    with T.sblock("power"):
                        i, j, q, k = T.axis.remap("SSSS", [r, p, c, v])
                        y[i, j, q * {lanes} + k] = T.exp(
                            T.cast(T.cast(x[i, j, q * {lanes} + k], "{wide}") - top[i, j, 0], "float32"){scale}
                        )
                        total[i, j, k] = total[i, j, k] + y[i, j, q * {lanes} + k]
{halve_total}
            for c in range({rest}):
                with T.sblock("power_rest"):
                    i, j, q = T.axis.remap("SSS", [r, p, c])
                    y[i, j, {whole} * {lanes} + q] = T.exp(
                        T.cast(T.cast(x[i, j, {whole} * {lanes} + q], "{wide}") - top[i, j, 0], "float32"){scale}
                    )
                    total[i, j, 0] = total[i, j, 0] + y[i, j, {whole} * {lanes} + q]
            with T.sblock("inverse"):
                i, j = T.axis.remap("SS", [r, p])
                total[i, j, 0] = T.float32(1) / total[i, j, 0]
{results}
"""
HALVE = """
            for v in T.vectorized({half}):
                with T.sblock("{name}_{half}"):
                    i, j, k = T.axis.remap("SSS", [r, p, v])
                    {store}
"""


def softmax_rows(
    rows: int, columns: int, n: int, parallel: bool, data: str = "float32", scale: float = 1.0
) -> PrimFunc:
    """softmax(x * scale) over the last axis of (rows, columns, n), n >= LANES, each row while it is in the first cache.

    `data`: the dtype of x, float32 or a byte. Of bytes the distance to the row's maximum is exact.
    """
    halves = [LANES >> step for step in range(1, LANES.bit_length())]

    def halve(name: str, combine: str) -> str:
        store = f"{name}[i, j, k] = " + combine.format(f"{name}[i, j, k]", f"{name}[i, j, k + {{half}}]")
        return "".join(HALVE.format(name=name, half=half, store=store.format(half=half)) for half in halves)

    common = {"n": n, "lanes": LANES, "whole": n // LANES, "rest": n % LANES}
    source = SOFTMAX.format(
        shape=(rows, columns, n), rows=rows, columns=columns, family=FAMILY,
        parallel="parallel" if parallel else "serial",
        data=data, wide="float32" if data == "float32" else "int32",
        scale=f" * T.float32({scale!r})" if scale != 1 else "",
        halve_top=halve("top", "T.max({}, {})"), halve_total=halve("total", "{} + {}"),
        results=STEPS.format(name="scale", store="y[i, j, k] = y[i, j, k] * total[i, j, 0]", **common),
        **{key: value for key, value in common.items() if key != "n"},
    )  # fmt: skip
    return script.read(source)


# The squares of a row stand between zeros, so that whole vectors of neighbours can be read anywhere.
LOCAL = """
@T.prim_func(private=True, s_tir=True)
def local_response_norm(x: T.Buffer({shape}, "float32"), y: T.Buffer({shape}, "float32")):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
    square = T.sblock_alloc_buffer(({rows}, {columns}, {n} + {size} - 1))
    for r in T.parallel({rows}):
        for p in range({columns}):
            for c in range({before}):
                with T.sblock("before"):
                    i, j, k = T.axis.remap("SSS", [r, p, c])
                    T.sblock_attr({{"{family}": "ready"}})
                    square[i, j, k] = T.float32(0)
            for c in range({size} - 1 - {before}):
                with T.sblock("behind"):
                    i, j, k = T.axis.remap("SSS", [r, p, c])
                    square[i, j, k + {before} + {n}] = T.float32(0)
{squares}
{results}
"""
STEPS = """
            for c in range({whole}):
                for v in T.vectorized({lanes}):
                    with T.sblock("{name}"):
                        i, j = T.axis.remap("SS", [r, p])
                        k = T.axis.spatial({n}, c * {lanes} + v)
                        {store}
            for c in range({rest}):
                with T.sblock("{name}_rest"):
                    i, j = T.axis.remap("SS", [r, p])
                    k = T.axis.spatial({n}, {whole} * {lanes} + c)
                    {store}
"""
# x to the power of -beta, where that needs no logarithm.
POWERS = {
    0.5: "T.float32(1) / T.sqrt({0})",
    0.75: "T.float32(1) / (T.sqrt({0}) * T.sqrt(T.sqrt({0})))",
    1.0: "T.float32(1) / ({0})",
}


def local_response_norm(shape: Sequence[int], size: int, alpha: float, beta: float, bias: float) -> PrimFunc:
    """For (rows, columns, n), scheduled."""
    rows, columns, n = shape
    before = (size - 1) // 2
    total = " + ".join(f"square[i, j, k + {j}]" for j in range(size))
    base = f"T.float32({bias!r}) + T.float32({alpha / size!r}) * ({total})"
    power = POWERS.get(round(beta, 6), f"T.exp(T.log({{0}}) * T.float32({-beta!r}))").format(base)
    common = {"n": n, "lanes": LANES, "whole": n // LANES, "rest": n % LANES}
    source = LOCAL.format(
        shape=(rows, columns, n), rows=rows, columns=columns, n=n, size=size, before=before, family=FAMILY,
        squares=STEPS.format(name="square", store=f"square[i, j, k + {before}] = x[i, j, k] * x[i, j, k]", **common),
        results=STEPS.format(name="norm", store=f"y[i, j, k] = x[i, j, k] * ({power})", **common),
    )  # fmt: skip
    return script.read(source)
