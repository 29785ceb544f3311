"""breakeven: where curves cross, what is built for them, and the page that shows them."""

from dataclasses import replace

import pytest

from tvmcompress.breakeven import GROUPS, BreakEven, Curve, Side, breakeven, emptied, formats, of_groups
from tvmcompress.breakeven_html import render
from tvmcompress.errors import TargetError
from tvmcompress.isa import isa_of
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.target import Target

CONV = Conv2d(1, 5, 7, 32, 48, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


def density(*ratios: tuple[float, float]) -> float:
    return Curve("rows", "float32", "a layer", ratios).density


@pytest.mark.parametrize(
    ("ratios", "wanted"),
    [
        ([(0.1, 0.5), (0.3, 1.5)], 0.2),
        ([(0.1, 0.5), (0.2, 1.0), (0.3, 1.5)], 0.2),
        ([(0.1, 1.1), (0.2, 0.9), (0.4, 1.1)], 0.3),  # a reading that noise has spoilt
        ([(0.1, 1.1), (0.9, 1.2)], 0.0),
        ([(0.1, 0.1), (0.9, 0.9)], 0.9),
    ],
)
def test_where_a_curve_crosses(ratios, wanted):
    assert density(*ratios) == pytest.approx(wanted)


@pytest.mark.parametrize("block", [(1, 1), (16, 1), (16, 4)])
def test_zeros_come_in_blocks(block):
    weight = emptied(CONV, 0.3, block)
    assert weight.shape == (48, 32, 3, 3)
    blocks = (weight != 0).reshape(48 // block[0], block[0], 32 // block[1], block[1], 3, 3)
    assert (blocks.any((1, 3)) == blocks.all((1, 3))).all()
    assert 0.15 < (weight != 0).mean() < 0.45


@pytest.mark.parametrize("density, group, left", [(0.05, 16, 1), (0.5, 8, 4), (0.3, 16, 5), (1.0, 8, 7)])
def test_zeros_come_in_groups(density, group, left):
    weight = of_groups(CONV, density, group)
    assert weight.shape == (48, 32, 3, 3)
    assert ((weight != 0).reshape(48, -1, group, 3, 3).sum(2) == left).all()


@pytest.mark.parametrize(
    "name, groups",
    [
        ("icelake-server", ["float32", "int8"]),
        ("alderlake", ["float32", "int8"]),
        ("rpi5", ["int8"]),
        ("znver4", ["float32", "int8", "bfloat16"]),
    ],
)
def test_groups_are_tried_where_something_picks_them(name, groups):
    target = Target.load(name)
    found = [one for one in formats(isa_of(target.to_tvm())) if one.text == GROUPS]
    assert [one.dtype for one in found] == groups and all(one.block[1] in (8, 16) for one in found)


@pytest.mark.parametrize("name", ["znver4", "sapphirerapids", "neoverse-v1", "x86-64-v3"])
def test_every_format_is_built(name):
    """Of each dtype that the target has sparse kernels for; and in the form that the curve is named by."""
    target = Target.load(name)
    machine = target.to_tvm()
    isa = isa_of(machine, target.l1d, target.l2)
    found = formats(isa)
    narrow = bool(isa.bf16 and isa.bf16.function)
    assert {one.dtype for one in found} == {"float32", "int8", *(["bfloat16"] if narrow else [])}
    side = Side(target, machine, isa, None)
    for one in found:
        if one.suits(CONV, isa):
            (row,) = (row["sparse"] for row in side.build(CONV, one, 0.1).lowered.layers)
            assert row["kept"] and row["format"].endswith(one.text.removeprefix("N:M")), (one, row)


def test_blocks_of_whole_kernels():
    there = emptied(CONV, 0.3, (16, 1), through=True) != 0
    blocks = there.reshape(3, 16, 32, 9)
    assert (blocks.any((1, 3)) == blocks.all((1, 3))).all() and 0.15 < there.mean() < 0.45
    isa = isa_of(Target.load("x86-64-v4").to_tvm())
    (one,) = (one for one in formats(isa) if one.through)
    assert one.suits(CONV, isa) and not one.suits(replace(CONV, kernel=(1, 1)), isa)


@pytest.fixture(scope="module")
def estimated() -> BreakEven:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvmcompress.breakeven.LAYERS", {"a layer <3x3>": CONV})
        return breakeven("rpi4", (0.9, 0.1))


def test_of_another_machine_the_estimate_is_told(estimated):
    assert not estimated.measured and estimated.target == "rpi4"
    assert {curve.dtype for curve in estimated.curves} == {"float32", "int8"}
    for curve in estimated.curves:
        (low, less), (high, more) = curve.ratios
        assert (low, high) == (0.1, 0.9) and 0 < less < more


def test_the_page_says_what_was_found(estimated):
    page = render(estimated)
    assert "rpi4" in page and "estimate" in page and "a layer &lt;3x3&gt;" in page
    for curve in estimated.curves:
        assert f"{curve.format}: wins below {curve.density:.0%}" in page
        assert f"a layer &lt;3x3&gt;, {curve.dtype}" in page


def test_a_format_has_one_colour():
    """Also where a layer lacks one of the others."""
    wins = ((0.1, 0.5), (0.9, 1.5))
    curves = [Curve(form, "float32", "first", wins) for form in ("rows", "16x1 kernels", "16x1 blocks")]
    curves += [Curve(form, "float32", "second", wins) for form in ("rows", "16x1 blocks")]
    page = render(BreakEven("rpi4", True, tuple(curves)))
    assert page.count('<i class="v2"></i>16x1 blocks') == 2 and page.count('<i class="v1"></i>') == 1


def test_gpus_have_no_sparse_kernels():
    with pytest.raises(TargetError, match="sparse"):
        breakeven("cuda-sm80")
