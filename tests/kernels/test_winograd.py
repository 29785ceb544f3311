"""Winograd's convolution against the direct sum in float64: any padding, what hangs over the edges, work behind it."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import build, need
from tvmcompress import breakeven, linking
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels import winograd
from tvmcompress.kernels.choices import untuned
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.lower.pipeline import machine
from tvmcompress.lower.sparse import Keep
from tvmcompress.lower.weights import INLINE_BYTES
from tvmcompress.target import Target


def direct(x: np.ndarray, weight: np.ndarray, padding: tuple[int, ...]) -> np.ndarray:
    """x (n, c, h, w), weight (o, c, 3, 3), padding (top, left, bottom, right)."""
    top, left, bottom, right = padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    n, c, oc = int(rng.integers(1, 4)), 16 * int(rng.integers(1, 5)), int(rng.integers(17, 100))
    h, w = (int(v) for v in rng.integers(8, 40, 2))
    x = rng.standard_normal((n, c, h, w)).astype(np.float32)
    weight = (rng.standard_normal((oc, c, 3, 3)) / np.sqrt(9 * c)).astype(np.float32)
    return x, weight, tuple(int(v) for v in rng.integers(0, 3, 4))


def check(
    name: str, x: np.ndarray, weight: np.ndarray, padding: tuple[int, ...], epilogue: bool, width: int = 0
) -> None:
    """`width`: of the blocks of whole kernels that a sparse kernel should find, if there is to be one."""
    wanted = direct(x, weight, padding)
    rest = np.random.default_rng(1).standard_normal(wanted.shape).astype(np.float32)

    def body(rw, data, residual):
        y = rw.emit(relax.op.nn.conv2d(data, graph.const(weight), padding=padding))
        if epilogue:
            y = rw.emit(relax.op.nn.relu(rw.emit(relax.op.add(y, residual))))
        return [y]

    program, only = graph.program([("x", x.shape, "float32"), ("r", rest.shape, "float32")], body), untuned
    if width:
        only = breakeven.only(f"{width}x1 kernels")
    lowered = build(program, name, choices=only, keep=Keep("always"))
    assert not lowered.fallbacks
    (row,) = lowered.layers
    assert row["sparse"]["format"] == f"{width}x1 kernels" if width else row["algorithm"] == "winograd"
    (got,) = machine(lowered, linking.linker(Target.load(name)))([x, rest])
    wanted = np.maximum(wanted + rest, 0) if epilogue else wanted
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=1e-5)  # sums of variance 1


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(seed: int) -> None:
    x, weight, padding = random_case(seed)
    check("native", x, weight, padding, bool(seed % 2))


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_other_vectors(name: str) -> None:
    need(name)
    x, weight, padding = random_case(100)
    check(name, x, weight, padding, True)


def without_blocks(weight: np.ndarray, width: int, density: float) -> np.ndarray:
    """Kernels of `width` neighbouring outputs and one input are zero, all their taps."""
    conv = Conv2d(1, 1, 1, weight.shape[1], len(weight), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    return weight * (breakeven.emptied(conv, density, (width, 1), through=True) != 0)


@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 0.9])
@pytest.mark.parametrize("vectors", [1, 2])
def test_whole_kernels_of_zeros(density: float, vectors: int) -> None:
    x, weight, padding = random_case(round(100 * density) + vectors)
    width = vectors * facts("native").lanes
    weight = without_blocks(weight, width, density)
    if density:
        weight[:width, 3] = 0  # some of them in any case
    check("native", x, weight, padding, vectors == 1, width)


def test_a_panel_without_weights() -> None:
    """What is behind it sees zeros."""
    x, weight, padding = random_case(7)
    width = facts("native").lanes
    weight[:width] = 0
    check("native", x, weight, padding, True, width)


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_whole_kernels_with_other_vectors(name: str) -> None:
    need(name)
    x, weight, padding = random_case(100)
    width = facts(name).lanes
    check(name, x, without_blocks(weight, width, 0.3), padding, True, width)


def test_tiles_of_several_rows_and_columns() -> None:
    """Rows of patches that are part of a row, one, and several; each as the only choice."""
    isa, conv = facts("native"), Conv2d(1, 22, 30, 32, 40, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 22, 30)).astype(np.float32)
    weight = without_blocks((rng.standard_normal((40, 32, 3, 3)) / 17).astype(np.float32), isa.lanes, 0.4)
    plans, kinds = winograd.plans(conv, isa, 1, 0.4), {}
    for p in plans:
        pixels, columns = p.tile.pixels, p.columns
        kinds.setdefault((pixels < columns, pixels > columns, pixels == 1, p.rows > 1), p)
    assert len(kinds) > 4
    for p in kinds.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "plans", lambda *_, p=p: [p])
            check("native", x, weight, (1, 1, 1, 1), True, isa.lanes)


def test_weights_of_whole_kernels_are_stored_as_taps() -> None:
    weight = without_blocks(random_case(0)[1], facts("native").lanes, 0.3)
    lowered = build(
        graph.program(
            [("x", (1, weight.shape[1], 28, 28), "float32")],
            lambda rw, data: [relax.op.nn.conv2d(data, graph.const(weight), padding=1)],
        ),
        "native",
        keep=Keep("always"),
        choices=breakeven.only("x1 kernels"),
    )
    (row,) = lowered.layers
    stored = sum(t.numpy().nbytes for t in lowered.stored) - winograd.filters().nbytes
    assert lowered.prepares and row["sparse"]["bytes"] < weight.nbytes * 0.6
    assert 0 <= row["sparse"]["bytes"] - stored <= INLINE_BYTES  # few pointers stay in the program


def test_weights_are_stored_as_they_are() -> None:
    """Transformed they would be four times as large in the package."""
    weight = random_case(0)[1]
    lowered = build(
        graph.program(
            [("x", (1, weight.shape[1], 28, 28), "float32")],
            lambda rw, data: [relax.op.nn.conv2d(data, graph.const(weight), padding=1)],
        ),
        "native",
    )
    assert lowered.prepares
    assert sum(t.numpy().nbytes for t in lowered.stored) < weight.nbytes * 1.1


def facts(name: str):
    target = Target.load(name)
    return isa_of(target.to_tvm(), target.l1d, target.l2)


@pytest.mark.parametrize(
    ("conv", "faster"),
    [
        (Conv2d(1, 56, 56, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), True),
        (Conv2d(1, 14, 14, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), True),
        (Conv2d(1, 7, 7, 512, 512, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), False),  # weights cost more than is saved
        (Conv2d(1, 56, 56, 64, 64, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), False),
        (Conv2d(1, 56, 56, 64, 64, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)), False),
        (Conv2d(1, 56, 56, 64, 64, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), False),
        (Conv2d(1, 3, 3, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), False),
    ],
)
def test_where_it_is_chosen(conv: Conv2d, faster: bool) -> None:
    assert (winograd.plan(conv, facts("x86-64-v4")) is not None) == faster
