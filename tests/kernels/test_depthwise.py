"""How depthwise convolutions are divided among cores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvmcompress.isa import isa_of
from tvmcompress.kernels.depthwise import bands
from tvmcompress.target import Target

ISA = replace(isa_of(Target.load("x86-64-v4").to_tvm()), cores=2)


@pytest.mark.parametrize("rows, shares, height", [(14, 2, 7), (14, 1, 14), (28, 2, 14), (7, 2, 7)])
def test_each_core_has_rows_of_its_own_where_they_can_be_divided(rows, shares, height):
    """384 channels of floats, 3x3. Of 7 rows each would be a band, and copies of three rows are more than is saved. Of
    two images each core has one."""
    found = bands(ISA, rows, 24, (rows + 2) * 64, 64, 3, 1, 8, shares)
    assert found[0][0] == height
    assert sorted(found) == sorted(bands(ISA, rows, 24, (rows + 2) * 64, 64, 3, 1, 8, 1))


def test_copies_take_a_small_part_of_the_second_level_cache() -> None:
    """Of 56 rows of 113 pixels read in twos, where all of a band of 28 rows would take 0.4 MB, beside what is made."""
    height, chunk = bands(ISA, 56, 6, 113 * 64, 64, 3, 2, 8, 2)[0]
    assert ((height - 1) * 2 + 3) * 113 * 64 * chunk <= ISA.l2 // 4
