"""What is packed unpacks to exactly that, and never to more than was said."""

import lzma
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmcompress.coding.coders import CODERS, MEMORY
from tvmcompress.errors import MissingDependencyError

NAMES = ["plain", "deflate", "xz", "zstd"]
PACKING = NAMES[1:]


def coder(name: str):
    if name == "zstd":
        pytest.importorskip("zstandard")
    return CODERS[name]


@pytest.mark.parametrize("name", NAMES)
@given(st.one_of(st.binary(max_size=500), st.integers(0, 9000).map(bytes)))
def test_it_comes_back(name, data):
    packed = coder(name).pack(data)
    assert coder(name).unpack(packed, len(data)) == data
    assert coder(name).pack(data) == packed  # equal bytes


@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("wrong", [-1, 1, 10**9])
def test_another_size_is_refused(name, wrong):
    packed = coder(name).pack(bytes(5000))
    with pytest.raises(ValueError):
        coder(name).unpack(packed, max(0, 5000 + wrong))


@pytest.mark.parametrize("name", PACKING)
def test_damage_is_a_value_error(name):
    random = np.random.default_rng(0)
    data = random.integers(0, 9, 3000).astype(np.uint8).tobytes()
    packed = coder(name).pack(data)
    for trial in range(120):
        damaged = bytearray(packed)
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        if trial % 4 == 0:
            del damaged[random.integers(len(damaged)) :]
        try:
            assert coder(name).unpack(bytes(damaged), len(data)) == data
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", PACKING)
def test_a_bomb_unpacks_to_no_more_than_was_said(name):
    packed = coder(name).pack(bytes(20_000_000))
    with pytest.raises(ValueError, match="as many bytes as the manifest says"):
        coder(name).unpack(packed, 100)


def test_a_dictionary_beyond_the_limit_is_refused():
    packed = lzma.compress(bytes(100), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2 * MEMORY}])
    with pytest.raises(ValueError, match="xz: "):
        CODERS["xz"].unpack(packed, 100)


def test_deflate_comes_near_the_entropy_of_noise_with_a_skewed_histogram():
    """And is then smaller than what a search for repetitions makes of it."""
    random = np.random.default_rng(1)
    mask = np.packbits(random.random(2_000_000) < 0.1)
    counts = np.bincount(mask, minlength=256) / mask.size
    entropy = -(counts[counts > 0] @ np.log2(counts[counts > 0])) / 8 * mask.size
    packed = CODERS["deflate"].pack(mask.tobytes())
    assert len(packed) < 1.03 * entropy < len(zlib.compress(mask.tobytes()))


def test_without_zstandard_it_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for action in (lambda: CODERS["zstd"].pack(b"x"), lambda: CODERS["zstd"].unpack(b"x", 1)):
        with pytest.raises(MissingDependencyError, match=r"pip install 'tvmcompress\[zstd\]'"):
            action()
