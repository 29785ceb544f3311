"""Every sequence of steps gives back every bit; streams that no `split` makes are refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tvmcompress.coding.steps import STEPS, WIDTHS, bits_of, indexed, join, pack, split, unpack

SEQUENCES = [s for n in range(4) for s in itertools.permutations(STEPS, n)]


@st.composite
def values(draw):
    """Bit patterns of every width: any, few distinct ones, many zeros, ascending."""
    dtype = np.dtype(f"u{draw(st.sampled_from(WIDTHS))}")
    whole = draw(arrays.arrays(dtype, st.integers(0, 70)))
    kind = draw(st.sampled_from(["any", "few", "zeros", "ascending"]))
    if kind == "few":
        return whole % 5
    if kind == "zeros":
        return whole * (np.arange(whole.size) % 3 == 0).astype(dtype)
    return np.sort(whole) if kind == "ascending" else whole


@given(values(), st.sampled_from(SEQUENCES))
def test_every_bit_comes_back(given_values, steps):
    streams = split(given_values, steps)
    if streams is not None:
        back = join(streams, steps, given_values.size, given_values.itemsize)
        assert back.dtype == given_values.dtype
        np.testing.assert_array_equal(back, given_values)


@given(values(), st.sampled_from(SEQUENCES), st.randoms(use_true_random=False))
def test_streams_that_were_tampered_with_raise_nothing_but_value_errors(given_values, steps, random):
    streams = split(given_values, steps) or [np.zeros(8, np.uint8)]
    change = random.randrange(4)
    if change == 0:
        streams = streams[:-1]
    elif change == 1:
        streams = [*streams, np.zeros(3, np.uint8)]
    else:
        at = random.randrange(len(streams))
        size = streams[at].size + (random.randrange(-3, 4) if change == 2 else 0)
        streams[at] = np.frombuffer(random.randbytes(max(size, 0)), np.uint8)
    try:
        assert join(streams, steps, given_values.size, given_values.itemsize).size == given_values.size
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_mask_is_one_bit_for_each_element():
    mask, rest = split(np.array([0, 7, 0, 0, 9, 0, 0, 0, 1], np.uint16), ("mask",))
    assert mask.tolist() == [0b01001000, 0b10000000]
    assert rest.view(np.uint16).tolist() == [7, 9, 1]


def test_minus_zero_is_not_zero():
    bits = np.array([0.0, -0.0], np.float32).view(np.uint32)
    assert split(bits, ("mask",))[1].view(np.uint32).tolist() == [1 << 31]


def test_a_palette_packs_its_places():
    palette, places = split(np.array([50, 10, 10, 30, 50], np.uint32), ("palette",))
    assert palette.view(np.uint32).tolist() == [10, 30, 50]
    assert places.tolist() == [0b01_00_00_10, 0b10]  # two bits each, the first lowest


def test_a_palette_that_saves_nothing_is_not_made():
    assert split(np.arange(17, dtype=np.uint8), ("palette",)) is None
    assert split(np.arange(16, dtype=np.uint8), ("palette",)) is not None
    assert split(np.arange(257, dtype=np.uint16), ("palette",)) is None


def test_deltas_of_what_ascends_are_small():
    (low, high) = split(np.array([5, 7, 300, 2], np.uint16), ("delta", "shuffle"))
    assert low.tolist() == [5, 2, 293 - 256, (2 - 300) % 256] and high.tolist() == [0, 0, 1, (2 - 300) % 65536 // 256]


def test_a_shuffle_brings_first_bytes_together():
    planes = split(np.array([0x0102, 0x0304], np.uint16), ("shuffle",))
    assert [plane.tolist() for plane in planes] == [[2, 4], [1, 3]]


def test_distinct_values_that_a_glance_does_not_see():
    whole = np.zeros(1 << 18, np.uint32)
    whole[12345] = 6
    palette, where = indexed(whole)
    assert palette.tolist() == [0, 6] and where.nonzero()[0].tolist() == [12345]
    assert indexed(np.sort(np.arange(1 << 18, dtype=np.uint32) % 256))[0].tolist() == list(range(256))
    assert not indexed(whole[:0])[0].size and not indexed(np.arange(257, dtype=np.uint16))[0].size


@given(st.integers(1, 256), st.integers(0, 40), st.randoms(use_true_random=False))
def test_packed_numbers_come_back(count, size, random):
    numbers = np.array([random.randrange(count) for _ in range(size)], np.uint8)
    packed = pack(numbers, bits_of(count))
    assert packed.size == -(-size * bits_of(count) // 8)
    np.testing.assert_array_equal(unpack(packed, bits_of(count), size), numbers)


@pytest.mark.parametrize(
    ("streams", "steps", "message"),
    [
        ([[0, 0]], (), "has 2 bytes, wanted 12"),
        ([], (), "parts too few"),
        ([[0] * 12, [0]], (), "parts too many"),
        ([[0b11100000], [0] * 8], ("mask",), "has 8 bytes, wanted 12"),
        ([[], [0]], ("palette",), "palette has 0 bytes"),
        ([[0] * 5, [0]], ("palette",), "palette has 5 bytes"),
        ([[0] * 1028, [0] * 3], ("palette",), "palette has 1,028 bytes"),
        ([[0] * 12, [3]], ("palette",), "values that are not in its palette"),
    ],
)
def test_what_is_wrong_is_said(streams, steps, message):
    with pytest.raises(ValueError, match=message):
        join([np.array(stream, np.uint8) for stream in streams], steps, 3, 4)
