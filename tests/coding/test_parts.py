"""Arrays to parts and back: exact for every dtype, as small as is wanted, and nothing else is taken for parts."""

import copy
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coding import subjects
from tvmcompress.coding import parts
from tvmcompress.errors import MissingDependencyError, UsageError

DTYPES = ["bool", "int8", "uint16", "int32", "uint64", "float16", "bfloat16", "float32", "float64", "complex64"]
CODERS = ["auto", "xz", "zstd"]


def dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def stored(row: dict, pieces: list[bytes]) -> np.ndarray:
    """The pieces as they lie in a file, and something behind them."""
    assert [n for part in row["parts"] for n in part["pieces"]] == list(map(len, pieces))
    return np.frombuffer(b"".join(pieces) + b"next", np.uint8)


def back(row: dict, pieces: list[bytes], like: np.ndarray, pool) -> np.ndarray:
    place = np.empty(like.shape, like.dtype)
    assert parts.check(row, like.nbytes, like.dtype.itemsize) == sum(map(len, pieces))
    parts.unpacking(row, stored(row, pieces), place, pool)()
    return place


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("storage", CODERS)
@pytest.mark.parametrize("name", subjects.ARRAYS)
def test_arrays_come_back(name, storage, pool):
    if storage == "zstd":
        pytest.importorskip("zstandard")
    array = subjects.ARRAYS[name]()
    made = parts.coded(array, storage, pool)
    if made:
        assert same_bits(back(*made, array, pool), array)
        assert parts.coded(array, storage, pool) == made  # equal bytes, whatever the threads did


@given(st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.sampled_from(["zeros", "few", "any"]), st.booleans())
def test_every_bit_of_every_dtype(pool, name, seed, kind, turned):
    """NaN with any payload, infinities, -0.0 and denormals among them."""
    random = np.random.default_rng(seed)
    width = dtype(name).itemsize
    raw = random.integers(0, 256, (random.integers(0, 3000) // 4 * 4, width)).astype(np.uint8)
    if name == "bool":
        raw &= 1
    if kind == "few":
        raw = raw[random.integers(0, min(5, len(raw)), len(raw))] if len(raw) else raw
    if kind == "zeros":
        raw[random.random(len(raw)) < 0.8] = 0
    array = raw.reshape(-1).view(dtype(name)).reshape(2, -1)
    array = array.T if turned else array
    made = parts.coded(array, "xz", pool)
    assert made is None or same_bits(back(*made, array, pool), array)


@pytest.mark.parametrize("array", [np.zeros((0, 4), np.float32), np.float32(3), np.zeros(1000, np.float32)])
@pytest.mark.parametrize("storage", ["auto", "xz"])
def test_what_is_small_is_left_alone(array, storage, pool):
    assert parts.coded(np.asarray(array), storage, pool) is None


@pytest.mark.parametrize(
    ("name", "most"),  # of its bytes
    [
        ("float32, 90% zeros", 0.11),
        ("float32, 90% zeros, 16 values", 0.028),
        ("float32, 16 values", 0.1252),
        ("float32, not zeros", 1.0),
        ("int8, 90% zeros", 0.16),
        ("float16, 90% zeros", 0.13),
        ("places that ascend", 0.35),
        ("the same in 32 bits", 0.18),
        ("packed places", 1.0),
        ("zeros", 0.001),
    ],
)
def test_how_small_arrays_become(name, most, pool):
    array = subjects.ARRAYS[name]()
    made = parts.coded(array, "auto", pool)
    assert (sum(map(len, made[1])) if made else array.nbytes) <= most * array.nbytes


def test_a_sparse_layer_in_a_kernels_own_form(pool):
    """Values, places within rows and where rows start: 90% zeros, of the dense float32 weight."""
    values, places = subjects.ARRAYS["float32, not zeros"](), subjects.ascending()
    starts = np.searchsorted(np.flatnonzero(subjects.mask()), np.arange(0, subjects.SIZE, 2000)).astype(np.int32)
    dense, total = 4 * subjects.SIZE, 0
    for array in (values, places, starts):
        made = parts.coded(array, "auto", pool)
        total += sum(map(len, made[1])) if made else array.nbytes
    assert total < 0.12 * dense
    few = subjects.clustered()[subjects.mask()]  # and clustered
    made = parts.coded(few, "auto", pool)
    assert sum(map(len, made[1])) < 0.0135 * dense


@pytest.mark.parametrize("name", ["float32", "int8", "bfloat16", "float32, not zeros", "packed places"])
def test_ordinary_weights_stay_mapped(name, pool):
    assert parts.coded(subjects.ARRAYS[name](), "auto", pool) is None


def test_storage_says_how_much_must_be_gained(pool):
    bfloat16 = subjects.ARRAYS["bfloat16"]()
    assert parts.coded(bfloat16, "plain", pool) is None
    (row, pieces) = parts.coded(bfloat16, "xz", pool)
    assert row["steps"] == ["shuffle"] and sum(map(len, pieces)) < 0.9 * bfloat16.nbytes
    assert {part["coder"] for part in row["parts"]} == {"plain", "xz"}  # mantissas are noise: they are only copied


def test_large_arrays_are_packed_in_pieces(pool):
    array = np.zeros(3 * parts.PIECE, np.uint8)
    array[::7] = 3
    row, pieces = parts.coded(array, "auto", pool)
    assert same_bits(back(row, pieces, array, pool), array)
    wide = np.where(subjects.mask(0.5), subjects.normal(), 0).astype(np.float32)
    wide = np.tile(wide, 12)
    row, pieces = parts.coded(wide, "auto", pool)
    assert max(len(part["pieces"]) for part in row["parts"]) > 1
    assert same_bits(back(row, pieces, wide, pool), wide)


def test_an_unknown_storage():
    with pytest.raises(UsageError, match="storage 'zst' is unknown; did you mean 'zstd'"):
        parts.check_storage("zst")
    with pytest.raises(UsageError, match="storage 'q' is unknown; wanted one of auto, plain, xz, zstd"):
        parts.check_storage("q")


def test_zstd_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tvmcompress\[zstd\]'"):
        parts.check_storage("zstd")


@pytest.fixture(scope="module")
def sparse():
    return subjects.ARRAYS["float32, 90% zeros"]()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(steps="mask"), "its coding is not one"),
        (lambda c: c.update(steps=["sort"]), "steps that this version does not have"),
        (lambda c: c.update(steps=[["mask"]]), "steps that this version does not have"),
        (lambda c: c.update(steps=["delta"] * 5), "steps that this version does not have"),
        (lambda c: c.update(parts=[]), "has no parts"),
        (lambda c: c.update(parts={}), "has no parts"),
        (lambda c: c["parts"].append(7), "has no pieces"),
        (lambda c: c["parts"][0].pop("pieces"), "has no pieces"),
        (lambda c: c["parts"][0].update(coder="rar"), "does not have its coder 'rar'"),
        (lambda c: c["parts"][0].update(coder=None), "does not have its coder"),
        (lambda c: c["parts"][0].update(size=-1), "a size that is none"),
        (lambda c: c["parts"][0].update(size=True), "a size that is none"),
        (lambda c: c["parts"][0].update(size=1.5), "a size that is none"),
        (lambda c: c["parts"][0].update(pieces=[-5]), "a size that is none"),
        (lambda c: c["parts"][0].update(pieces=["x"]), "a size that is none"),
        (lambda c: c["parts"][0].update(pieces=[5, 5]), "has 2 pieces"),
        (lambda c: c["parts"][0].update(size=1 << 40), "has 1 pieces"),
        (lambda c: c["parts"].extend([{"coder": "xz", "size": parts.PIECE, "pieces": [60]}] * 9), "unpack to"),
    ],
)
def test_rows_that_are_never_written_are_refused(sparse, pool, change, message):
    row, _ = parts.coded(sparse, "auto", pool)
    row = copy.deepcopy(row)
    change(row)
    with pytest.raises(ValueError, match=message):
        parts.check(row, sparse.nbytes, 4)


@pytest.mark.parametrize("coding", [None, 5, [], "mask", {}])
def test_what_is_no_coding_at_all(coding):
    with pytest.raises(ValueError, match="its coding is not one"):
        parts.check(coding, 100, 4)


def test_no_element_of_sixteen_bytes():
    with pytest.raises(ValueError, match="its coding is not one"):
        parts.check({"steps": [], "parts": [{"coder": "plain", "size": 1, "pieces": [1]}]}, 160, 16)


def test_damaged_pieces_are_value_errors(sparse, pool):
    row, pieces = parts.coded(sparse, "auto", pool)
    random = np.random.default_rng(0)
    whole = stored(row, pieces).copy()
    for _ in range(60):
        damaged = whole.copy()
        damaged[random.integers(0, damaged.size, 3)] ^= 255
        try:
            parts.unpacking(row, damaged, np.empty_like(sparse), pool)()
        except ValueError as error:
            assert "\n" not in str(error)
