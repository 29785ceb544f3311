"""Arrays one after the other in a member of a package; each has a row in the manifest: name, dtype, shape, offset.

A row with `coding` says how the array is stored smaller than it is (see `coding`); all others lie there as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from tvmcompress import cpu
from tvmcompress.coding import parts
from tvmcompress.spec import numpy_dtype

ALIGNMENT = 64  # bytes; of each array inside its member, which itself starts on a page
Array = np.ndarray | Callable[[], np.ndarray]


def write(file: BinaryIO, arrays: Iterable[tuple[str, Array]], storage: str = "plain") -> tuple[list[dict], dict]:
    """Write arrays one after the other, each at a multiple of ALIGNMENT; where each lies, and the member's row.

    storage: of `coding.parts.STORAGE`, which arrays are stored smaller.
    """
    digest, start, rows = hashlib.sha256(), file.tell(), []

    def put(data: Any) -> None:
        file.write(data)
        digest.update(data)

    with ThreadPoolExecutor(cpu.usable()) as pool:
        for name, array in arrays:
            data = np.asarray(array() if callable(array) else array)
            put(bytes(-(file.tell() - start) % ALIGNMENT))
            row = {"name": name, "dtype": data.dtype.name, "shape": list(data.shape), "offset": file.tell() - start}
            coded = parts.coded(data, storage, pool)
            for piece in coded[1] if coded else [np.ascontiguousarray(data).reshape(-1).view(np.uint8).data]:
                put(piece)
            rows.append({**row, "coding": coded[0]} if coded else row)
    size = file.tell() - start
    return rows, {"size": size, "sha256": digest.hexdigest(), "unpacked": size}


def read(whole: np.ndarray, rows: Sequence[dict], place: Callable[..., np.ndarray]) -> list[np.ndarray]:
    """The arrays of rows that `stored` took, within the bytes of their member where they lie there as they are.

    The others are unpacked, by as many threads as there are CPUs, each into `place(shape, dtype)`. Raises ValueError,
    naming the array, when the bytes are not what its row says.
    """
    found: list[np.ndarray] = []
    unpacking: list[tuple[dict, Callable[[], None]]] = []
    with ThreadPoolExecutor(cpu.usable()) as pool:
        for row in rows:
            if "coding" not in row:
                found.append(view(whole, row))
                continue
            found.append(place(row["shape"], numpy_dtype(row["dtype"])))
            unpacking.append((row, parts.unpacking(row["coding"], whole[row["offset"] :], found[-1], pool)))
        for row, finish in unpacking:
            try:
                finish()
            except ValueError as error:
                raise ValueError(f"weight '{row['name']}' cannot be unpacked: {error}") from error
    return found


def nbytes(row: dict) -> int:
    """Bytes of an array in memory, by its row. Raises ValueError or TypeError when it has no valid dtype and shape."""
    if any(not isinstance(d, int) or d < 0 for d in row["shape"]):
        raise ValueError("shape")
    dtype = numpy_dtype(row["dtype"])
    if dtype.hasobject or dtype.kind in "SUM":
        raise ValueError("dtype")
    return int(np.prod(row["shape"], dtype=object)) * dtype.itemsize


def stored(row: dict) -> int:
    """Bytes of an array in its member, by a row for which `nbytes` holds. Raises ValueError."""
    if "coding" not in row:
        return nbytes(row)
    return parts.check(row["coding"], nbytes(row), numpy_dtype(row["dtype"]).itemsize)


def how(row: dict) -> str:
    """How an array is stored, in words: `as it is`, or its steps and coders."""
    if "coding" not in row:
        return "as it is"
    coders = dict.fromkeys(part["coder"] for part in row["coding"]["parts"] if part["coder"] != "plain")
    return " ".join([*row["coding"]["steps"], *coders])


def view(whole: np.ndarray, row: dict) -> np.ndarray:
    """The array of a row, within the bytes of its member."""
    return whole[row["offset"] : row["offset"] + nbytes(row)].view(numpy_dtype(row["dtype"])).reshape(row["shape"])
