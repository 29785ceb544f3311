"""An array to its coded parts, and back: what `coding` says of their row in the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from tvmcompress.coding import choice
from tvmcompress.coding.coders import CODERS, zstandard
from tvmcompress.coding.steps import MOST, STEPS, WIDTHS, join, split
from tvmcompress.errors import UsageError, did_you_mean

PIECE = 1 << 20  # bytes that are packed by themselves
SAVED = 4096  # the fewest bytes that are worth it
# storage: its coder, and the least share of an array's bytes that it must save
STORAGE = {"auto": ("deflate", 0.2), "plain": ("", 1.0), "xz": ("xz", 0.1), "zstd": ("zstd", 0.1)}


def check_storage(storage: str) -> None:
    """Raises UsageError for an unknown one, MissingDependencyError when its library is not installed."""
    if storage not in STORAGE:
        near = did_you_mean(storage, STORAGE) or f"; wanted one of {', '.join(STORAGE)}"
        raise UsageError(f"storage '{storage}' is unknown{near}")
    if storage == "zstd":
        zstandard()


def coded(array: np.ndarray, storage: str, pool: Executor) -> tuple[dict, list[bytes]] | None:
    """The row of an array and its pieces, or None where it is to be stored as it is."""
    coder, least = STORAGE[storage]
    if storage == "plain" or array.nbytes < SAVED or array.dtype.itemsize not in WIDTHS:
        return None
    values = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    steps, streams = divided(values, array.dtype.kind in "iu", storage, least)
    parts, pieces = [], []
    for stream in streams:
        name, packed = packed_stream(stream, coder, pool)
        parts.append({"coder": name, "size": stream.size, "pieces": [len(piece) for piece in packed]})
        pieces += packed
    saved = array.nbytes - sum(map(len, pieces))
    return ({"steps": steps, "parts": parts}, pieces) if parts and saved >= max(SAVED, least * array.nbytes) else None


def expected(array: np.ndarray, storage: str) -> float:
    """About the bytes that `coded`, and with it a package, makes of an array: from a sample, in a hundredth of the
    time."""
    _, least = STORAGE[storage]
    if storage == "plain" or array.nbytes < SAVED or array.dtype.itemsize not in WIDTHS:
        return array.nbytes
    values = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    steps, share = choice.ranked(values, array.dtype.kind in "iu")[0]
    saved = (1 - share) * array.nbytes
    pays = saved >= max(SAVED, least * array.nbytes) and not (storage == "auto" and steps == ("shuffle",))
    return array.nbytes - saved if pays else array.nbytes


def divided(values: np.ndarray, integers: bool, storage: str, least: float) -> tuple[list[str], list[np.ndarray]]:
    """The steps to take and the streams that they make; no stream where nothing pays.

    What gains by nothing but `shuffle`, exponents that are alike, are ordinary floats: `auto` leaves them mapped.
    """
    for steps, share in choice.ranked(values, integers):
        if share > 1 - least or (storage == "auto" and steps == ("shuffle",)):
            break
        streams = split(values, steps)  # what fits a sample need not fit the whole
        if streams is not None:
            return list(steps), streams
    return [], []


def packed_stream(stream: np.ndarray, coder: str, pool: Executor) -> tuple[str, list[bytes]]:
    """The coder that a stream is stored with, and its pieces."""
    pieces = [stream[start : start + PIECE].tobytes() for start in range(0, stream.size, PIECE)]
    if choice.packed_bytes(stream) < stream.size:
        packed = list(pool.map(CODERS[coder].pack, pieces))
        if sum(map(len, packed)) <= (1 - choice.PAYS / 2) * stream.size:
            return coder, packed
    return "plain", pieces


def check(coding: Any, nbytes: int, width: int) -> int:
    """The stored bytes of an array of `nbytes`, by its row. Raises ValueError for what `coded` never writes."""
    if not isinstance(coding, dict) or not isinstance(coding.get("steps"), list) or width not in WIDTHS:
        raise ValueError("its coding is not one")
    if any(not isinstance(step, str) or step not in STEPS for step in coding["steps"]) or len(coding["steps"]) > 4:
        raise ValueError(f"it wants steps that this version does not have ({str(coding['steps'])[:80]})")
    if not isinstance(coding.get("parts"), list) or not coding["parts"]:
        raise ValueError("its coding has no parts")
    stored = unpacked = 0
    for part in coding["parts"]:
        check_part(part)
        stored, unpacked = stored + sum(part["pieces"]), unpacked + part["size"]
    if unpacked > 2 * nbytes + MOST * width:
        raise ValueError(f"its parts unpack to {unpacked:,} bytes, the array has {nbytes:,}")
    return stored


def check_part(part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("pieces"), list):
        raise ValueError("a part of it has no pieces")
    if not isinstance(part.get("coder"), str) or part["coder"] not in CODERS:
        raise ValueError(f"this version does not have its coder '{str(part.get('coder'))[:40]}'")
    if any(type(number) is not int or number < 0 for number in (part.get("size"), *part["pieces"])):
        raise ValueError("a part of it has a size that is none")
    if len(part["pieces"]) != -(-part["size"] // PIECE):
        raise ValueError(f"a part of {part['size']:,} bytes has {len(part['pieces']):,} pieces")


def unpacking(coding: dict, stored: np.ndarray, place: np.ndarray, pool: Executor) -> Callable[[], None]:
    """Begins to unpack an array whose row has passed `check`; call what is returned to have it in `place`.

    That raises ValueError when the stored bytes do not hold what the row says, MissingDependencyError.
    """
    begun: list[list[Future]] = []
    start = 0
    for part in coding["parts"]:
        pieces: list[Future] = []
        for size, nbytes in zip(piece_sizes(part["size"]), part["pieces"]):
            pieces.append(pool.submit(CODERS[part["coder"]].unpack, stored[start : start + nbytes].tobytes(), size))
            start += nbytes
        begun.append(pieces)

    def finish() -> None:
        streams = [np.frombuffer(b"".join(p.result() for p in pieces), np.uint8) for pieces in begun]
        begun.clear()
        bits = place.reshape(-1).view(f"u{place.dtype.itemsize}")
        np.copyto(bits, join(streams, coding["steps"], bits.size, bits.itemsize))

    return finish


def piece_sizes(size: int) -> Iterator[int]:
    """The bytes of each piece of a part, unpacked."""
    return (min(PIECE, size - start) for start in range(0, size, PIECE))
