"""Decisions: asked of a chooser, written down as JSON, and read back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tvmcompress.isa import isa_of
from tvmcompress.kernels import winograd, woven
from tvmcompress.kernels.choices import Recorder, decided, nearest, untuned, written
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.kernels.tiles import Product, Tile, tiles
from tvmcompress.target import Target

TARGET = Target.load("icelake-server")
ISA = isa_of(TARGET.to_tvm(), TARGET.l1d, TARGET.l2)


def test_written_as_json() -> None:
    tile = Tile(6, 4, 16)
    for candidate, form in [
        (tile, {"pixels": 6, "vectors": 4, "lanes": 16}),
        ((2, 1), [2, 1]),
        ("rows", "rows"),
        (3, 3),
        (winograd.Plan(1, 2, tile, 123.4), {"rows": 1, "columns": 2, "tile": written(tile)}),
        (woven.Woven(ISA.dot, 4, 4, 2), {"dot": ISA.dot.intrinsic, "step": 4, "outputs": 4, "groups": 2}),
    ]:
        assert json.loads(json.dumps(written(candidate))) == form


def test_every_candidate_can_be_told_from_the_others() -> None:
    conv = Conv2d(1, 56, 56, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    for candidates in (tiles(ISA, Product(56, 64, outer=56)), winograd.plans(conv, ISA)):
        forms = [json.dumps(written(c), sort_keys=True) for c in candidates]
        assert len(set(forms)) == len(forms) > 4


def test_tiles_of_short_reductions_leave_room_for_their_stores() -> None:
    """Few sums, or whole rows of results: what is written waits, and nothing else is done meanwhile."""
    two = replace(ISA, cores=2)
    short, long = tiles(two, Product(112, 96, 16, 112))[0], tiles(two, Product(14, 96, 576, 14))[0]
    assert short.pixels * short.vectors <= 12 and long.pixels * long.vectors >= 24


def test_recorded_and_replayed() -> None:
    candidates = tiles(ISA, Product(56, 64, outer=56))
    recorder = Recorder(decided({"a": {"tile": written(candidates[5]), "tasks": 2}}))
    assert recorder("a")("tile", candidates) == candidates[5]
    assert recorder("a")("tasks", [3, 2, 1]) == 2
    assert recorder("b")("tasks", [3, 2, 1]) == 3
    assert recorder.decisions("a") == {"tile": written(candidates[5]), "tasks": 2}
    assert recorder.asked["a"]["tasks"].taken == 1 and recorder.asked["a"]["tasks"].candidates == (3, 2, 1)
    assert recorder.decisions("c") == {}


@pytest.mark.parametrize("table", [{"tasks": 9}, {"tasks": None}, {"other": 2}, {}])
def test_what_is_no_candidate_is_not_taken(table: dict) -> None:
    assert decided({"a": table})("a")("tasks", [3, 2, 1]) == untuned("a")("tasks", [3, 2, 1]) == 3


@pytest.mark.parametrize(
    ("value", "offered", "place"),
    [
        (7, [8, 1, 4], 0),
        (2, [8, 1, 4], 1),  # by ratios, of one more each
        ({"pixels": 6, "lanes": 4}, [{"pixels": 6, "lanes": 16}, {"pixels": 2, "lanes": 4}], 1),
        ([2, 1], [[4, 4], [1, 1], [2, 2]], 1),
        ([2, 1], [[3, 3, 3], [2, 2, 2]], 1),
        ({"dot": "sdot", "step": 4}, [{"dot": "vpdpbusd", "step": 2}, {"dot": "vpdpbusd", "step": 4}], 1),
        ("rows", ["channels", "columns"], 0),
        (True, [2, 3], 0),
        (None, [2, 1], 0),
        ({"pixels": 1}, ["all", {"pixels": 8}], 1),
    ],
)
def test_what_is_nearest(value: object, offered: list, place: int) -> None:
    assert nearest(value, offered) == place
    assert decided({"a": {"d": value}}, nearest)("a")("d", offered) == offered[place]
