"""Sparse kernels in place of dense ones, where weights hold enough zeros.

    conv2d(x, w)    ->    sparse_rows(x, values, offsets, pointers)                  zeros anywhere
                    ->    sparse_blocks(copy with padding, values, offsets, pointers) zeros in blocks of outputs
                    ->    sparse_blocks(…, places)                    N of each M inputs; bytes: zeros anywhere
                    ->    sparse_winograd(x, G values, offsets, pointers) zeros in blocks of outputs, of whole kernels

Which, and whether at all, is a matter of estimated cycles (`Keep.policy` "faster"), of bytes ("smaller"), or of neither
("always", "never"). Names in `Keep.dense` stay dense: there the sparse kernel was measured and lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax

from tvmcompress.ir import constants, graph, ops
from tvmcompress.ir.graph import Expr, Rewriter
from tvmcompress.ir.sparsity import FEW_ZEROS
from tvmcompress.isa import Isa
from tvmcompress.kernels import sparse_blocks, sparse_nm, sparse_rows_plan, sparse_winograd, winograd
from tvmcompress.kernels.choices import Choices
from tvmcompress.kernels.conv2d import Conv2d, key
from tvmcompress.kernels.sparse import Product, by_depth, product
from tvmcompress.kernels.sparse_rows_plan import PLANES
from tvmcompress.kernels.tiles import lanes_for, round_up
from tvmcompress.lower import compressed
from tvmcompress.lower.sparse_formats import Blocks, Groups, Kernels, Rows, Sparse, by_layout

POLICIES = ("faster", "smaller", "always", "never")
MOVES = ("relax.reshape", "relax.permute_dims", "relax.strided_slice")
EFFICIENCY = {"float32": 0.85, "int32": 0.7}  # of the peak, that dense kernels reach
STREAM = 10  # bytes in a cycle that all cores together read from memory
SMALLER = 0.9  # times the bytes: what a coder makes of more is not known as well
FEW_PIXELS = 2  # with which a layer takes as long as its weights take to arrive
WINOGRAD = 0.6  # of the time of the other dense kernel


@dataclass(frozen=True)
class Keep:
    """Which layers with zeros get sparse kernels. `storage`: of the package, as `compile` takes it."""

    policy: str = "faster"
    dense: frozenset[str] = frozenset()
    storage: str = "auto"


KEEP = Keep()


def stored(rw: Rewriter, weight: Expr) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """The values of weights that are constants, or that share few values, and what a package stores for them if they
    stay dense; else None."""
    if graph.is_const(weight):
        value = graph.value(weight)
        return value, [value]
    call = shared(weight, rw.definition)
    if call is None or (known := constants.known(weight, rw.definition)) is None:
        return None
    return known, [graph.value(a) for a in call.args if graph.is_const(a)]


def shared(weight: Expr, definition: constants.Definition) -> relax.Call | None:
    """The call that looks up or hashes a weight, which is that moved about; None for other weights."""
    call = definition(weight)
    while call is not None and graph.op_name(call) in MOVES:
        call = definition(call.args[0])
    return call if graph.op_name(call) in (ops.LOOK_UP, ops.HASHED) else None


def candidates(
    weight: np.ndarray, conv: Conv2d, isa: Isa, how: Product, choices: Choices, planes: bool = False
) -> list[Sparse]:
    """Kernels for weights (O, C, KH, KW), the fastest first; `planes`: where activations may be such."""
    found: list[Sparse] = []
    alive = weight != 0
    few = conv.n * math.prod(conv.out) <= FEW_PIXELS
    for vectors in (1, 2):
        density = of_blocks(alive, vectors * how.lanes, how.depth)
        p = sparse_blocks.plan(conv, isa, how, vectors, density, choices)
        cycles = sparse_blocks.estimate(conv, p, isa, density)
        found.append(Blocks(f"{p.width}x{how.depth} blocks", p, density, cycles))
        density = share(sparse_winograd.alive(weight, vectors * how.lanes))
        w = sparse_winograd.plan(conv, isa, how, vectors, density, choices) if density <= FEW_ZEROS else None
        if w is not None:
            cycles = sparse_winograd.estimate(conv, w, isa, density)
            found.append(Kernels(f"{w.width}x1 kernels", w, density, cycles))
    if picked := sparse_nm.picked(conv, isa, how):
        density = sparse_nm.density(weight, conv, how, picked.words)
        # Where pixels do not fill a vector, outputs have to.
        if few or sparse_nm.suits(weight, how, density):
            p = sparse_blocks.plan(conv, isa, how, 1, density, choices, picked)
            text = f"{sparse_nm.pattern(weight, picked.words * how.depth)} groups"
            found.append(Groups(text, p, density, sparse_blocks.estimate(conv, p, isa, density)))
    if not how.words.narrow:
        density = of_blocks(alive, 1, how.depth)
        if (rows := sparse_rows_plan.plan(conv, isa, how, density, choices)) is not None:
            text = f"rows of 1x{how.depth}" if how.depth > 1 else "rows"
            one = Rows(text, rows, density, sparse_rows_plan.estimate(rows, isa, density))
            other = by_layout(one, conv, isa, choices, PLANES, PLANES) if planes else None
            found.append(replace(one, cycles=min(one.cycles, other.cycles)) if other else one)
    if few:
        found = [replace(one, cycles=max(one.cycles, streamed(one.read(weight.size), isa))) for one in found]
    return sorted(found, key=lambda one: one.cycles)


def streamed(size: float, isa: Isa) -> float:
    """Cycles in which so many bytes of weights arrive from memory."""
    return size / STREAM if size > isa.l2 else 0


def of_blocks(alive: np.ndarray, outputs: int, depth: int) -> float:
    """The share of blocks of `outputs` by `depth` weights that are not zero (`alive`), of all that would be full."""
    taps = by_depth(alive, depth)
    taps = np.pad(taps, ((0, -len(taps) % outputs), *((0, 0),) * 4))
    return share(np.asarray(taps.reshape(-1, outputs, *taps.shape[1:]).any((1, 5))))


def share(alive: np.ndarray) -> float:
    """Of what is true, rounded: layers of about one density share plans, and so kernels."""
    return max(round(float(alive.mean()), 2), 0.01)


def dense_cycles(conv: Conv2d, isa: Isa, how: Product, choices: Choices) -> float:
    """The same estimate for the dense kernel, which is no slower than blocks of which none is zero. A product of few
    rows takes as long as its weights take to arrive."""
    lanes = how.lanes * how.depth * 2
    oh, ow = conv.out
    channels = round_up(conv.oc, how.lanes if how.words.dot else lanes_for(isa, conv.oc))
    work = conv.n * oh * ow * channels * conv.c * conv.kernel[0] * conv.kernel[1]
    full = [sparse_blocks.cost(conv, sparse_blocks.plan(conv, isa, how, v, 1.0), isa, 1.0) for v in (1, 2)]
    cycles = min(work / lanes / EFFICIENCY[how.sums] / isa.cores, *full)
    weights = conv.oc * conv.c * conv.kernel[0] * conv.kernel[1] * how.bytes // how.depth
    cycles = max(cycles, streamed(weights, isa))
    return cycles * WINOGRAD if how.data == "float32" and winograd.plan(conv, isa, choices) else cycles


def kept(
    weight: np.ndarray, conv: Conv2d, isa: Isa, kinds: tuple[str, str], keep: Keep, name: str, choices: Choices,
    planes: bool = False, dense_arrays: Sequence[np.ndarray] = (),
) -> tuple[Sparse | None, dict]:  # fmt: skip
    """The kernel for a layer, None for the dense one; and a row for the report, empty where there are no zeros.
    `dense_arrays`: what is stored for the weights where they stay dense, if not they themselves."""
    density = float(np.count_nonzero(weight)) / max(weight.size, 1)
    if density > FEW_ZEROS:
        return None, {}
    row = compressed.plain("sparse", density, dense_arrays or (weight,), keep.storage)
    how = product(conv, isa, *kinds) if conv.groups == 1 else None
    if how is None:
        return None, row | {"why": "grouped" if conv.groups > 1 else f"no sparse kernel for {' x '.join(kinds)} here"}
    if keep.policy == "never":
        return None, row | {"why": "dense was asked for"}
    found = candidates(weight, conv, isa, how, choices, planes)
    # Where hardly any block can be left out, the kernel is the dense one with lists.
    found = [one for one in found if one.density <= FEW_ZEROS]
    if not found:
        return None, row | {"why": "its zeros leave no block that a kernel could leave out"}
    if keep.policy == "smaller":
        found.sort(key=lambda one: one.nbytes(weight, conv, keep.storage))
    text = choices(f"zeros {density:.2f} {key(conv, how.data)}")("format", [one.text for one in found])
    best, dense = next(one for one in found if one.text == text), dense_cycles(conv, isa, how, choices)
    row |= {"estimate": best.cycles / dense}
    if name in keep.dense:
        return None, row | {"why": f"measured: {best.text} are slower"}
    if keep.policy == "faster" and best.cycles >= dense:
        return None, row | {"why": f"{best.text} would take {best.cycles / dense:.2f} times as long"}
    size = best.nbytes(weight, conv, keep.storage)
    if keep.policy == "smaller" and size > SMALLER * row["bytes"]:
        return None, row | {"why": f"{best.text} would take {size / row['bytes']:.2f} times the bytes"}
    return best, row | {"format": best.text, "kept": True, "bytes": size, "blocks": best.density, "why": ""}
