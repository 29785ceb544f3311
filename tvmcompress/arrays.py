"""Arrays one after the other in a member of a package; each has a row in the manifest: name, dtype, shape, offset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from tvmcompress.spec import numpy_dtype

ALIGNMENT = 64  # bytes; of each array inside its member, which itself starts on a page
Array = np.ndarray | Callable[[], np.ndarray]


def write(file: BinaryIO, arrays: Iterable[tuple[str, Array]]) -> tuple[list[dict], dict]:
    """Write arrays one after the other, each at a multiple of ALIGNMENT; where each lies, and the member's row."""
    digest, start, rows = hashlib.sha256(), file.tell(), []

    def put(data: Any) -> None:
        file.write(data)
        digest.update(data)

    for name, array in arrays:
        data = np.asarray(array() if callable(array) else array)
        put(bytes(-(file.tell() - start) % ALIGNMENT))
        rows.append({"name": name, "dtype": data.dtype.name, "shape": list(data.shape), "offset": file.tell() - start})
        put(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    size = file.tell() - start
    return rows, {"size": size, "sha256": digest.hexdigest(), "unpacked": size}


def nbytes(row: dict) -> int:
    """Bytes of an array, by its row. Raises ValueError or TypeError when it has no valid dtype and shape."""
    if any(not isinstance(d, int) or d < 0 for d in row["shape"]):
        raise ValueError("shape")
    dtype = numpy_dtype(row["dtype"])
    if dtype.hasobject or dtype.kind in "SUM":
        raise ValueError("dtype")
    return int(np.prod(row["shape"], dtype=object)) * dtype.itemsize


def view(whole: np.ndarray, row: dict) -> np.ndarray:
    """The array of a row, within the bytes of its member."""
    return whole[row["offset"] : row["offset"] + nbytes(row)].view(numpy_dtype(row["dtype"])).reshape(row["shape"])
