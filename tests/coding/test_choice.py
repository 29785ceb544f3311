"""The steps that arrays of a kind get, and what is expected of them."""

import numpy as np
import pytest

from tests.coding import subjects
from tvmcompress.coding import choice
from tvmcompress.coding.parts import coded
from tvmcompress.coding.steps import split

CHOSEN = {
    "float32, 90% zeros": ("mask", "shuffle"),
    "float32, 90% zeros, 16 values": ("mask", "palette"),
    "float32, 16 values": ("palette",),
    "int8, 90% zeros": ("mask",),
    "places that ascend": ("delta", "shuffle"),
    "bfloat16": ("shuffle",),
    "float32": (),
    "int8": (),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_chosen(name):
    array = subjects.ARRAYS[name]()
    best = choice.ranked(subjects.bits(array), array.dtype.kind in "iu")[0]
    # Dense floats gain a little by their exponents.
    assert best.steps == CHOSEN[name] or (name == "float32" and best == (("shuffle",), pytest.approx(0.85, abs=0.06)))


@pytest.mark.parametrize("name", subjects.ARRAYS)
def test_what_is_expected_of_it_comes_true(name, pool):
    array = subjects.ARRAYS[name]()
    best = choice.ranked(subjects.bits(array), array.dtype.kind in "iu")[0]
    made = coded(array, "xz", pool)
    if made:
        assert sum(map(len, made[1])) == pytest.approx(best.share * array.nbytes, rel=0.1, abs=600)


def test_what_fits_a_sample_need_not_fit_the_whole():
    """A palette that a sample suggests, and the next best where the whole has more values."""
    few = np.random.default_rng(0).integers(1, 5, 1 << 19).astype(np.uint32)
    few[50_000:51_000] = np.arange(1000, 2000, dtype=np.uint32)  # between two runs that are looked at
    first, second = choice.ranked(few, False)[:2]
    assert first.steps == ("palette",)
    assert split(few, first.steps) is None and split(few, second.steps) is not None


def test_a_sample_is_from_all_over():
    whole = np.arange(10_000_000, dtype=np.uint32)
    some = choice.sample(whole)
    assert some.size == choice.RUN * choice.RUNS and some[0] == 0 and some[-1] == whole[-1]
    assert choice.sample(whole[:1000]).size == 1000


def test_bytes_of_a_stream_by_its_entropy():
    assert choice.packed_bytes(np.zeros(0, np.uint8)) == 0
    assert choice.packed_bytes(np.zeros(1000, np.uint8)) == 0
    assert choice.packed_bytes(np.arange(1000).astype(np.uint8) % 4) == pytest.approx(250)
    assert choice.packed_bytes(np.arange(25600).astype(np.uint8)) == 25600  # nothing to gain
