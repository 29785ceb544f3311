"""Samples: a stream of dicts of arrays, one dict for each run of the model, checked against the model's inputs.

A source is a `.npz` or `.npy` file, a folder of them, or any iterable of dicts or (for a single input) arrays. An array
may be one run's input, the same without a leading dimension of 1, or many of them stacked in front: a file with
`x (500, 3, 224, 224)` is 500 samples of a model with input `x (1, 3, 224, 224)`. Files are read piece by piece, so
memory does not grow with the number of samples.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmcompress.errors import SampleError, did_you_mean
from tvmcompress.spec import TensorSpec, numpy_dtype

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
LABELS = "labels"  # a key beside the inputs: one integer for each row of the output


class Samples:
    """Iterate as often as you like (if the source allows); each item is {input name: array of the input's shape}."""

    def __init__(self, source: Any, specs: Sequence[TensorSpec], limit: int | None = None):
        self.specs = tuple(specs)
        self.source = source
        self.limit = limit
        if isinstance(source, str | os.PathLike) and not Path(source).exists():
            raise SampleError(f"samples: no file or folder '{source}'")

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        count = 0
        for item in self._items():
            for sample in split(item, self.specs, f"sample {count}"):
                if self.limit is not None and count >= self.limit:
                    return
                check_values(sample, f"sample {count}")
                yield sample
                count += 1
        if not count:
            raise SampleError("samples: there are none")

    def count(self) -> int | None:
        """How many there are, when that is known without reading them."""
        try:
            if isinstance(self.source, str | os.PathLike):
                total = sum(_count_file(f, self.specs) for f in _files(Path(self.source)))
            else:
                total = len(self.source)
        except (TypeError, SampleError):
            return None
        return total if self.limit is None else min(total, self.limit)

    def labels(self) -> np.ndarray | None:
        """The array `labels` of a .npz source, if it has one."""
        if isinstance(self.source, str | os.PathLike) and str(self.source).endswith(".npz"):
            with _open_npz(Path(self.source)) as archive:
                if LABELS in archive.files:
                    return archive[LABELS].reshape(-1)
        return None

    def _items(self) -> Iterator[Any]:
        if isinstance(self.source, str | os.PathLike):
            for file in _files(Path(self.source)):
                yield from _read_file(file, self.specs)
        elif isinstance(self.source, Mapping | np.ndarray):
            yield self.source
        else:
            yield from self.source


def split(item: Any, specs: Sequence[TensorSpec], where: str) -> Iterator[dict[str, np.ndarray]]:
    """One item of a source as samples of exactly the inputs' shapes. Raises SampleError."""
    if not isinstance(item, Mapping):
        item = [item] if not isinstance(item, tuple | list) else item
        if len(item) != len(specs):
            wanted = ", ".join(f"'{s.name}'" for s in specs)
            raise SampleError(f"{where}: wanted a dict with {wanted}, got {len(item)} array(s) without names")
        item = {spec.name: array for spec, array in zip(specs, item)}
    check_names(item, specs, where)
    parts = {spec.name: _stack(np.asarray(item[spec.name]), spec, where) for spec in specs}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"'{name}' {n}" for name, n in counts.items())
        raise SampleError(f"{where}: the inputs hold different numbers of samples: {told}")
    for index in range(next(iter(counts.values()), 0)):
        yield {name: part[index] for name, part in parts.items()}


def check(inputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], where: str = "inputs") -> None:
    """Raises SampleError unless names, dtypes and shapes are exactly those of `specs`."""
    check_names(inputs, specs, where)
    for spec in specs:
        array = inputs[spec.name]
        if not isinstance(array, np.ndarray):
            raise SampleError(f"{where}: '{spec.name}': wanted a NumPy array, got {type(array).__name__}")
        if array.dtype != numpy_dtype(spec.dtype):
            raise SampleError(f"{where}: '{spec.name}': wanted dtype {spec.dtype}, got {array.dtype}")
        if not _fits(array.shape, spec.shape):
            raise SampleError(f"{where}: '{spec.name}': wanted shape {_text(spec.shape)}, got {_text(array.shape)}")


def check_names(given: Mapping[str, Any], specs: Sequence[TensorSpec], where: str) -> None:
    names = [spec.name for spec in specs]
    for name in names:
        if name not in given:
            near = did_you_mean(name, given)
            raise SampleError(
                f"{where}: input '{name}' is missing; got {', '.join(map(repr, given)) or 'nothing'}{near}"
            )
    for name in given:
        if name not in names and name != LABELS:
            near = did_you_mean(name, names)
            raise SampleError(f"{where}: the model has no input '{name}'; it has {', '.join(map(repr, names))}{near}")


def check_values(sample: Mapping[str, np.ndarray], where: str) -> None:
    """Raises SampleError for a NaN or an infinity."""
    for name, array in sample.items():
        if (
            array.dtype.kind in "fV"
            and not np.isfinite(array.astype(np.float32) if array.itemsize < 4 else array).all()
        ):
            raise SampleError(f"{where}: '{name}' holds NaN or infinite values")


def _stack(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """`array` as (samples, *spec.shape)."""
    if array.dtype.name != spec.dtype:
        raise SampleError(f"{where}: '{spec.name}': wanted dtype {spec.dtype}, got {array.dtype.name}")
    stacked = _stacked_shape(array.shape, spec)
    if stacked is None:
        wanted = _text(spec.shape)
        raise SampleError(
            f"{where}: '{spec.name}': wanted shape {wanted}, or many in a stack, got {_text(array.shape)}"
        )
    return array.reshape(stacked)


def _stacked_shape(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...] | None:
    wanted = tuple(d or 0 for d in spec.shape)
    if shape == wanted:
        return (1, *wanted)
    if len(shape) == len(wanted) + 1 and shape[1:] == wanted:
        return shape
    if wanted and len(shape) == len(wanted) and shape[1:] == wanted[1:] and wanted[0] and shape[0] % wanted[0] == 0:
        return (shape[0] // wanted[0], *wanted)
    if wanted and wanted[0] == 1 and shape == wanted[1:]:
        return (1, *wanted)
    return None


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == d for d, w in zip(shape, wanted))


def _text(shape: Sequence[int | None]) -> str:
    return "x".join("?" if d is None else str(d) for d in shape) or "()"


# Files ------------------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix in (".npz", ".npy"))
    if not files:
        raise SampleError(f"samples: no .npz or .npy files in '{path}'")
    return files


def _why(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _open_npz(path: Path) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise SampleError(f"{path}: not a file of NumPy arrays: {_why(error)}") from error
    if not hasattr(archive, "files"):
        raise SampleError(f"{path}: wanted a .npz file, got a single array; rename it to .npy")
    return archive


def load_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a small file at once. Raises SampleError."""
    try:
        with _open_npz(Path(path)) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise SampleError(f"{path}: not a file of NumPy arrays: {_why(error)}") from error


def save_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz; unlike with `numpy.savez`, any name will do for an array, and `path` is taken as it is."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def load_array(path: str | os.PathLike) -> np.ndarray:
    """A .npy file. Raises SampleError."""
    try:
        array = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise SampleError(f"{path}: not a NumPy array: {_why(error)}") from error
    if not isinstance(array, np.ndarray):
        raise SampleError(f"{path}: wanted a .npy file with one array, got a .npz")
    return array


def _map_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise SampleError(f"{path}: not a NumPy array: {_why(error)}") from error
    if not isinstance(array, np.ndarray):
        raise SampleError(f"{path}: holds several arrays; rename it to .npz")
    return array


def _read_file(path: Path, specs: Sequence[TensorSpec]) -> Iterator[Any]:
    if path.suffix == ".npy":
        yield [_map_npy(path)]
        return
    with _open_npz(path) as archive:
        names = [name for name in archive.files if name != LABELS]
        check_names(dict.fromkeys(names), specs, str(path))
        streams = [_Member(path, spec) for spec in specs]
        counts = {s.spec.name: s.count for s in streams}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"'{name}' {n}" for name, n in counts.items())
            raise SampleError(f"{path}: the inputs hold different numbers of samples: {told}")
        for _ in range(next(iter(counts.values()), 0)):
            yield {stream.spec.name: stream.next() for stream in streams}


def _count_file(path: Path, specs: Sequence[TensorSpec]) -> int:
    if path.suffix == ".npy":
        shape = _stacked_shape(_map_npy(path).shape, specs[0])
        return shape[0] if shape else 0
    return _Member(path, specs[0]).count if specs else 0


class _Member:
    """One array of a .npz file, read sample by sample."""

    def __init__(self, path: Path, spec: TensorSpec):
        self.path, self.spec = path, spec
        try:
            self._file = zipfile.ZipFile(path).open(f"{spec.name}.npy")  # noqa: SIM115  # closed with the object
            version = np.lib.format.read_magic(self._file)
            header: Callable = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = header(self._file)
        except UNREADABLE as error:
            raise SampleError(f"{path}: '{spec.name}' is not a NumPy array: {_why(error)}") from error
        empty = np.broadcast_to(np.zeros((), dtype), shape)  # for the checks only: no memory behind it
        if dtype.name != spec.dtype:
            _stack(empty, spec, str(path))
        stacked = _stacked_shape(shape, spec)
        if stacked is None:
            _stack(empty, spec, str(path))
            raise AssertionError("unreachable")
        if fortran and len(shape) > 1:
            raise SampleError(f"{path}: '{spec.name}' is stored column by column; save np.ascontiguousarray of it")
        self.count, self._shape, self._dtype = stacked[0], stacked[1:], numpy_dtype(spec.dtype)

    def next(self) -> np.ndarray:
        size = int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize
        try:
            data = self._file.read(size)
        except UNREADABLE as error:
            raise SampleError(f"{self.path}: '{self.spec.name}' is damaged: {_why(error)}") from error
        if len(data) != size:
            raise SampleError(f"{self.path}: '{self.spec.name}' is cut short")
        return np.frombuffer(data, self._dtype).reshape(self._shape)
