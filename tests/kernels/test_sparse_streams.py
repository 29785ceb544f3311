"""Weights with zeros as lists: from what `pack` writes, read as its docstring says, the dense weights come back."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmcompress.isa import BF16_BITS, Isa, isa_of
from tvmcompress.kernels import sparse_blocks, sparse_nm, sparse_rows_lists, sparse_rows_plan, sparse_winograd
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.sparse import Streams, narrow, product
from tvmcompress.target import Target

TARGETS = ("icelake-server", "x86-64-v4", "x86-64-v3", "x86-64-v2", "rpi5", "rpi4", "generic-armv7", "neoverse-v1")
KINDS = (("float32", "float32"), ("uint8", "int8"), ("int8", "int8"), ("bfloat16", "bfloat16"))


def isa_named(name: str) -> Isa:
    target = Target.load(name)
    return isa_of(target.to_tvm(), target.l1d, target.l2)


ISAS = {name: isa_named(name) for name in TARGETS}


@st.composite
def layers(draw) -> tuple[Conv2d, np.ndarray]:
    """A convolution and its weights (O, C, KH, KW): whole numbers, which every dtype holds."""
    number = lambda most: draw(st.integers(1, most))  # noqa: E731
    kernel, strides, dilation = ((number(most), number(most)) for most in (4, 3, 3))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    h, w = reach[0] + number(9) - 1, reach[1] + number(20) - 1
    padding = draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0)]))
    conv = Conv2d(number(2), h, w, number(40), number(70), kernel, strides, padding, dilation)
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    weight = rng.integers(1, 100, (conv.oc, conv.c, *kernel)) * rng.choice([-1, 1], (conv.oc, conv.c, *kernel))
    return conv, weight * (rng.random(weight.shape) < density)


def stored(weight: np.ndarray, kind: str) -> np.ndarray:
    return weight.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)


def words(streams: Streams, p, count: int) -> np.ndarray:
    """Values as whole numbers, `count` of them for each offset."""
    dtype = {BF16_BITS: ml_dtypes.bfloat16, "float32": np.float32}.get(p.product.data, np.dtype(p.product.weight))
    return streams.values.view(dtype).reshape(-1, count).astype(np.int64)


def from_blocks(streams: Streams, conv: Conv2d, p: sparse_blocks.Plan) -> np.ndarray:
    """(O, C, KH, KW): an offset is a place in the padded image, as the first pixel's window lies there."""
    depth, columns = p.product.depth, sparse_blocks.source(conv, p).columns
    channels, (dh, dw) = -(-conv.c // depth) * depth, conv.dilation
    values = words(streams, p, p.width * depth).reshape(-1, p.width, depth)
    dense = np.zeros((p.panels(conv) * p.width, channels, *conv.kernel), np.int64)
    assert len(streams.pointers) == p.panels(conv) + 1 and streams.pointers[0] == 0
    for panel in range(p.panels(conv)):
        rows = slice(panel * p.width, (panel + 1) * p.width)
        for j in range(streams.pointers[panel], streams.pointers[panel + 1]):
            pixel, c = divmod(int(streams.offsets[j]), channels)
            y, x = divmod(pixel, columns)
            assert y % dh == 0 and x % dw == 0 and c % depth == 0
            assert not dense[rows, c : c + depth, y // dh, x // dw].any() and values[j].any()
            dense[rows, c : c + depth, y // dh, x // dw] = values[j]
    assert not dense[conv.oc :].any() and not dense[:, conv.c :].any()
    return dense[: conv.oc, : conv.c]


def from_rows(streams: Streams, p: sparse_rows_plan.Plan) -> np.ndarray:
    """(O, C, KH, KW): an offset is a place in the copy, counted from its slice of the channels."""
    conv, depth = p.conv, p.product.depth
    (dh, dw), (sh, sw), (kh, kw) = conv.dilation, conv.strides, conv.kernel
    taps = {}
    for i in range(kh):
        for j in range(kw):
            # Of the images that hold the row and the column of x that a tap reads, the one that begins nearest.
            own = [(i * dh - a, j * dw - b, n) for n, (a, b) in enumerate(p.origins)]
            row, column, image = min((r, c, n) for r, c, n in own if min(r, c) >= 0 and r % sh == 0 and c % sw == 0)
            at = image * p.image + row // sh * p.line + column // sw
            taps |= {s * p.plane + at: (s, i, j) for s in range(p.tile.slice)}
    assert len(taps) == kh * kw * p.tile.slice
    values, (firsts,) = words(streams, p, depth), streams.more
    dense = np.zeros((p.chunks * p.chunk, p.slices * p.tile.slice * depth, kh, kw), np.int64)
    for group, first in enumerate(firsts):
        chunk, part = divmod(group, p.slices)
        slots = streams.pointers[group * p.chunk : (group + 1) * p.chunk]
        assert sorted(slots[:, 1]) == list(range(p.chunk)) and (np.diff(slots[:, 0].astype(int)) <= 0).all()
        j = int(first) * sparse_rows_plan.STEP
        for many, row in slots:
            for _ in range(int(many) * sparse_rows_plan.STEP):
                s, tap_row, tap_column = taps[int(streams.offsets[j]) * p.unit]
                c = (part * p.tile.slice + s) * depth
                dense[chunk * p.chunk + row, c : c + depth, tap_row, tap_column] += values[j]
                j += 1
    assert not dense[conv.oc :].any() and not dense[:, conv.c :].any()
    return dense[: conv.oc, : conv.c]


def from_picked(streams: Streams, conv: Conv2d, p: sparse_blocks.Plan) -> np.ndarray:
    """(O, C, KH, KW): a place is counted from an offset, within the window that is read there."""
    depth, columns = p.product.depth, sparse_blocks.source(conv, p).columns
    channels, length, (dh, dw) = -(-conv.c // depth) * depth, p.picked.words * depth, conv.dilation
    values = words(streams, p, p.width * depth).reshape(-1, p.width, depth)
    places = streams.more[0].reshape(values.shape)
    dense = np.zeros((p.panels(conv) * p.width, channels, *conv.kernel), np.int64)
    assert streams.pointers[0] == 0 and places.max() < length <= channels and 4 * p.picked.words <= p.picked.pick.reach
    for panel in range(p.panels(conv)):
        for j in range(streams.pointers[panel], streams.pointers[panel + 1]):
            pixel, first = divmod(int(streams.offsets[j]), channels)
            y, x = divmod(pixel, columns)
            assert y % dh == 0 and x % dw == 0 and first + length <= channels and values[j].any()
            for lane, d in np.ndindex(p.width, depth):
                at = panel * p.width + lane, first + places[j, lane, d], y // dh, x // dw
                assert not (dense[at] and values[j, lane, d])
                dense[at] += values[j, lane, d]
    assert not dense[conv.oc :].any() and not dense[:, conv.c :].any()
    return dense[: conv.oc, : conv.c]


@given(layer=layers(), name=st.sampled_from(TARGETS), kinds=st.sampled_from(KINDS), vectors=st.integers(1, 2))
@settings(max_examples=150, deadline=None)
def test_blocks_come_back(layer, name, kinds, vectors):
    (conv, weight), isa = layer, ISAS[name]
    if (how := product(conv, isa, *kinds)) is None:
        return
    p = sparse_blocks.plan(conv, isa, how, vectors, 0.5)
    streams = sparse_blocks.pack(stored(weight, kinds[1]), conv, p)
    np.testing.assert_array_equal(from_blocks(streams, conv, p), weight)


@given(layer=layers(), name=st.sampled_from(TARGETS), vectors=st.integers(1, 2))
@settings(max_examples=100, deadline=None)
def test_kernels_come_back(layer, name, vectors):
    """An offset is a channel; values are taps, of all blocks one after the other."""
    (conv, weight), isa = layer, ISAS[name]
    conv = replace(conv, h=20, w=30, c=2 * isa.lanes, kernel=(3, 3), strides=(1, 1), dilation=(1, 1))
    weight = np.resize(weight, (conv.oc, conv.c, 3, 3)).astype(np.float32)
    p = sparse_winograd.plan(conv, isa, product(conv, isa, "float32", "float32"), vectors, 0.5)
    if p is None:
        return
    streams, dense = sparse_winograd.pack(weight, conv, p), np.zeros((p.panels(conv) * p.width, conv.c, 9), np.float32)
    for panel in range(p.panels(conv)):
        for j in range(streams.pointers[panel], streams.pointers[panel + 1]):
            at = slice(panel * p.width, (panel + 1) * p.width), streams.offsets[j]
            assert not dense[at].any() and streams.values[:, j].any()
            dense[at] = streams.values[:, j].T
    assert not dense[conv.oc :].any()
    np.testing.assert_array_equal(dense[: conv.oc].reshape(weight.shape), weight)


@given(layer=layers(), name=st.sampled_from(TARGETS), kinds=st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_groups_come_back(layer, name, kinds):
    (conv, weight), isa = layer, ISAS[name]
    how = product(conv, isa, *kinds)
    if how is None or (picked := sparse_nm.picked(conv, isa, how)) is None:
        return
    p = sparse_blocks.plan(conv, isa, how, 1, 0.5, picked=picked)
    streams = sparse_nm.pack(stored(weight, kinds[1]), conv, p)
    np.testing.assert_array_equal(from_picked(streams, conv, p), weight)


@given(layer=layers(), name=st.sampled_from(TARGETS), kinds=st.sampled_from(KINDS), data=st.data())
@settings(max_examples=150, deadline=None)
def test_rows_come_back(layer, name, kinds, data):
    (conv, weight), isa = layer, ISAS[name]
    how = product(conv, isa, *kinds)
    if how is None or how.words.narrow:
        return
    tile = data.draw(st.sampled_from(sparse_rows_plan.tiles(conv, isa, how)))
    p = sparse_rows_plan.Plan(how, tile, conv)
    streams = sparse_rows_lists.pack(stored(weight, kinds[1]), p)
    np.testing.assert_array_equal(from_rows(streams, p), weight)


def test_planes_are_read_as_they_lie():
    """Offsets count vectors; two slices of the channels, of which the second is not full."""
    conv, isa = Conv2d(1, 1, 48, 40, 5, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), ISAS["x86-64-v4"]
    weight = np.random.default_rng(0).integers(-2, 2, (5, 40, 1, 1)).astype(np.float32)
    how = product(conv, isa, "float32", "float32")
    tiles = [t for t in sparse_rows_plan.tiles(conv, isa, how) if t.images == sparse_rows_plan.NONE]
    assert {t.columns for t in tiles} == {16, 24, 48}  # runs of which a row is some
    p = sparse_rows_plan.Plan(how, next(t for t in tiles if t.slice == 32), conv)
    assert (p.plane, p.unit) == (48, 16)
    streams = sparse_rows_lists.pack(weight, p)
    assert set(streams.offsets) == {3 * channel for channel in range(32)}
    np.testing.assert_array_equal(from_rows(streams, p), weight)


@pytest.mark.parametrize("width, share", [(784, 1), (3136, 1), (12544, 0.25), (128, 0.5), (1024, 0.0625)])
def test_planes_a_power_of_two_apart_share_sets(width, share):
    """Of 64 sets: planes of 1024 pixels all begin in the same one, and a tile of 64 takes four."""
    conv = Conv2d(1, 1, width, 256, 64, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    isa = replace(ISAS["x86-64-v4"], l1d=32 << 10)
    how = product(conv, isa, "float32", "float32")
    tile = sparse_rows_plan.Tile(1, 64, 64, 32, 1, sparse_rows_plan.NONE)
    assert sparse_rows_plan.sets(sparse_rows_plan.Plan(how, tile, conv), isa) == share
    copy = replace(tile, images=sparse_rows_plan.REMAINDERS)
    assert sparse_rows_plan.sets(sparse_rows_plan.Plan(how, copy, conv), isa) == 1


@pytest.mark.parametrize("width, unit", [(40, 8), (196, 4), (49, 1), (37, 1)])
def test_planes_that_are_no_whole_vectors(width, unit):
    conv, isa = Conv2d(1, 1, width, 40, 5, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), ISAS["x86-64-v4"]
    weight = np.random.default_rng(0).integers(-2, 2, (5, 40, 1, 1)).astype(np.float32)
    how = product(conv, isa, "float32", "float32")
    tiles = [t for t in sparse_rows_plan.tiles(conv, isa, how) if t.images == sparse_rows_plan.NONE]
    assert width in {t.columns for t in tiles}
    p = sparse_rows_plan.Plan(how, tiles[-1], conv)
    assert (p.plane, p.unit) == (width, unit)
    np.testing.assert_array_equal(from_rows(sparse_rows_lists.pack(weight, p), p), weight)


@pytest.mark.parametrize("width, name, there", [(6, "rpi4", True), (7, "rpi4", False), (7, "x86-64-v4", True)])
def test_the_last_words_of_planes_are_read_at_once_or_not_at_all(width, name, there):
    """Three words are no register where there are no masks."""
    conv, isa = Conv2d(1, 1, width, 40, 5, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), ISAS[name]
    tiles = sparse_rows_plan.tiles(conv, isa, product(conv, isa, "float32", "float32"))
    assert (sparse_rows_plan.NONE in {t.images for t in tiles if t.columns == width}) == there


@pytest.mark.parametrize("change", [{"h": 3}, {"padding": (0, 1, 0, 1)}, {"kernel": (1, 3)}])
def test_planes_that_have_to_be_copied(change):
    conv, isa = Conv2d(1, 1, 48, 40, 5, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), ISAS["x86-64-v4"]
    conv = replace(conv, **change)
    made = sparse_rows_plan.tiles(conv, isa, product(conv, isa, "float32", "float32"))
    assert made and sparse_rows_plan.NONE not in {t.images for t in made}


def test_channels_that_only_fill_up_another_instruction():
    """smmla takes eight channels, so that a pixel has 24; weights are of 20, and sdot takes four."""
    conv, isa = Conv2d(1, 6, 9, 24, 7, (3, 2), (1, 1), (0, 0, 0, 0), (1, 1), zeros=4), ISAS["neoverse-v1"]
    weight = np.random.default_rng(0).integers(-9, 9, (7, 20, 3, 2))
    how, filled = product(conv, isa, "int8", "int8"), np.pad(weight, ((0, 0), (0, 4), (0, 0), (0, 0)))
    assert how is not None and how.depth == 4
    blocks = sparse_blocks.plan(conv, isa, how, 1, 0.5)
    np.testing.assert_array_equal(
        from_blocks(sparse_blocks.pack(weight.astype("int8"), conv, blocks), conv, blocks), filled
    )
    groups = sparse_blocks.plan(conv, isa, how, 1, 0.5, picked=sparse_nm.picked(conv, isa, how))
    np.testing.assert_array_equal(
        from_picked(sparse_nm.pack(weight.astype("int8"), conv, groups), conv, groups), filled
    )


@pytest.mark.parametrize("most, dtype", [(0, np.uint16), ((1 << 16) - 1, np.uint16), (1 << 16, np.int32)])
def test_offsets_take_two_bytes_where_that_is_enough(most, dtype):
    assert narrow(np.array([0, most])).dtype == dtype
    assert narrow(np.array([0, most])).tolist() == [0, most]
    assert narrow(np.zeros(0, np.int64)).tolist() == [0]


def test_lists_by_hand():
    """Three outputs of two inputs, one of them empty; four lanes, so panels of four outputs."""
    conv, isa = Conv2d(1, 1, 5, 2, 3, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), ISAS["rpi4"]
    weight = np.array([[0, 3], [0, 0], [5, 7]], np.float32)[:, :, None, None]
    how = product(conv, isa, "float32", "float32")
    blocks = sparse_blocks.pack(weight, conv, sparse_blocks.plan(conv, isa, how, 1, 0.5))
    np.testing.assert_array_equal(blocks.values, [[0, 0, 5, 0], [3, 0, 7, 0]])
    assert blocks.offsets.tolist() == [0, 1] and blocks.pointers.tolist() == [0, 2]
    picked = sparse_nm.picked(conv, isa, how)
    groups = sparse_nm.pack(weight, conv, sparse_blocks.plan(conv, isa, how, 1, 0.5, picked=picked))
    # A window is both inputs: the third output needs two vectors, the first picks its second input in the first.
    assert picked is not None and picked.words == 2
    np.testing.assert_array_equal(groups.values, [[3, 0, 5, 0], [0, 0, 7, 0]])
    np.testing.assert_array_equal(groups.more[0], [[1, 0, 0, 0], [0, 0, 1, 0]])
    assert groups.offsets.tolist() == [0, 0] and groups.pointers.tolist() == [0, 2]
    tile = next(t for t in sparse_rows_plan.tiles(conv, isa, how) if t.slice == 2 and t.parts == 1 and t.columns == 5)
    p = sparse_rows_plan.Plan(how, tile, conv)
    assert p.plane == 12  # two vectors of pixels, and one more to make them odd
    rows = sparse_rows_lists.pack(weight, p)
    # The third output has most weights; what has one is filled up to two.
    assert rows.values.tolist() == [5, 7, 3, 0] and rows.offsets.tolist() == [0, 12, 12, 0]
    assert rows.pointers[:3].tolist() == [[1, 2], [1, 0], [0, 1]] and rows.more[0].tolist() == [0]
