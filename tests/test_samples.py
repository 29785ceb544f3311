import itertools
import tracemalloc

import numpy as np
import pytest

from tvmcompress.errors import SampleError
from tvmcompress.samples import Samples, load_npz, save_npz
from tvmcompress.spec import TensorSpec

X = TensorSpec("x", (1, 3), "float32")
IDS = TensorSpec("ids", (1, 4), "int64")
STACK = np.arange(15, dtype=np.float32).reshape(5, 3)


def rows(samples):
    return [sample["x"].tolist() for sample in samples]


WANTED = [[row] for row in STACK.tolist()]


@pytest.mark.parametrize(
    "source",
    [
        STACK,
        STACK.reshape(5, 1, 3),
        [STACK[i : i + 1] for i in range(5)],
        list(STACK),
        [{"x": STACK[i]} for i in range(5)],
        [{"x": STACK[:2]}, {"x": STACK[2:]}],
        {"x": STACK},
        [(STACK[i],) for i in range(5)],
    ],
    ids=["rows", "stack", "list", "without the 1", "dicts", "dicts of several", "one dict", "tuples"],
)
def test_forms_of_the_same_samples(source):
    samples = Samples(source, [X])
    assert rows(samples) == WANTED
    assert rows(samples) == WANTED  # again
    assert all(sample["x"].shape == (1, 3) for sample in samples)


def test_a_generator_is_read_once_and_lazily():
    endless = ({"x": np.full((1, 3), i, np.float32)} for i in itertools.count())
    assert [s["x"][0, 0] for s in Samples(endless, [X], limit=3)] == [0, 1, 2]


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path, compressed):
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "s.npz", x=STACK, ids=np.ones((5, 4), np.int64), labels=np.arange(5))
    samples = Samples(tmp_path / "s.npz", [X, IDS])
    assert samples.count() == 5 and rows(samples) == WANTED
    assert samples.labels().tolist() == [0, 1, 2, 3, 4]
    assert Samples(tmp_path / "s.npz", [X, IDS], limit=2).count() == 2


def test_npy_and_folder(tmp_path):
    np.save(tmp_path / "a.npy", STACK[:2])
    np.savez(tmp_path / "b.npz", x=STACK[2:])
    (tmp_path / "readme.txt").write_text("not a sample")
    assert rows(Samples(tmp_path / "a.npy", [X])) == WANTED[:2]
    samples = Samples(tmp_path, [X])
    assert samples.count() == 5 and rows(samples) == WANTED


def test_memory_does_not_grow_with_the_file(tmp_path):
    spec = TensorSpec("x", (1, 64, 64), "float32")
    np.savez(tmp_path / "s.npz", x=np.zeros((2000, 64, 64), np.float32))  # 33 MB
    tracemalloc.start()
    for _ in Samples(tmp_path / "s.npz", [spec]):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_a_scalar_input():
    spec = TensorSpec("x", (), "float32")
    assert [float(s["x"]) for s in Samples(np.arange(3, dtype=np.float32), [spec])] == [0, 1, 2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"y": STACK}], "sample 0: input 'x' is missing; got 'y'"),
        ([{"x": STACK, "z": STACK}], "the model has no input 'z'"),
        ([STACK.astype(np.float64)], "'x': wanted dtype float32, got float64"),
        ([np.zeros((5, 4), np.float32)], "wanted shape 1x3, or many in a stack, got 5x4"),
        ([STACK[:1], STACK[:1] * np.nan], "sample 1: 'x' holds NaN"),
        ([np.full((1, 3), np.inf, np.float32)], "sample 0: 'x' holds NaN or infinite"),
        ([], "there are none"),
        ([(STACK, STACK)], "wanted a dict with 'x', got 2 array"),
        ("nowhere.npz", "no file or folder 'nowhere.npz'"),
    ],
)
def test_wrong_samples(source, message):
    with pytest.raises(SampleError, match=message):
        list(Samples(source, [X]))


def test_different_numbers_of_samples(tmp_path):
    np.savez(tmp_path / "s.npz", x=STACK, ids=np.ones((4, 4), np.int64))
    for source in (tmp_path / "s.npz", dict(np.load(tmp_path / "s.npz"))):
        with pytest.raises(SampleError, match="different numbers of samples: 'x' 5, 'ids' 4"):
            list(Samples(source, [X, IDS]))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 rubbish", b"\x00" * 500, b"text, not arrays"])
@pytest.mark.parametrize("name", ["s.npz", "s.npy"])
def test_files_that_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SampleError, match=name):
        list(Samples(tmp_path / name, [X]))


def test_a_truncated_npz(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.zeros((100, 3), np.float32))
    whole = (tmp_path / "s.npz").read_bytes()
    for size in (10, 100, 600, len(whole) - 5):
        (tmp_path / "s.npz").write_bytes(whole[:size])
        with pytest.raises(SampleError):
            list(Samples(tmp_path / "s.npz", [X]))


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "s.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "s.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("s.npy", "s.npz"):
        with pytest.raises(SampleError):
            list(Samples(tmp_path / name, [X]))


def test_names_that_savez_cannot_write(tmp_path):
    save_npz(tmp_path / "out", {"file": STACK, "a/b:0": STACK[0]})
    back = load_npz(tmp_path / "out")
    assert list(back) == ["file", "a/b:0"]
    np.testing.assert_array_equal(back["a/b:0"], STACK[0])
