"""A measurement in a board's session, with TVM's runtime alone: what runs it starts in milliseconds.

It does what `bench.timer_of` does here, by what the board's server offers for it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tvmcompress.bindings import ffi
from tvmcompress.serving.jobs import LOAD, PUT, TIMES

SAMPLES = 9  # times of a candidate
SAMPLE_S = 0.003  # of running, at least
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # of the greatest magnitude
TIES = 1e-4  # of integers that are rounded from floats, that may fall on the other side
PIECE = 4 << 20  # bytes that are sent at once


class WrongResult(Exception):
    """A candidate's results are not those of the reference."""


@dataclass(frozen=True)
class Form:
    """A candidate in a folder: `library.so`, and weights `0.npy` … as bytes, of these dtypes and shapes."""

    folder: str
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    prepares: bool


@dataclass(frozen=True)
class Work:
    """What is to be measured, complete in itself; `key` and `name` are the session's."""

    host: str
    port: int
    key: str
    threads: int
    seconds: float
    forms: tuple[Form, ...]
    inputs: tuple[np.ndarray, ...]
    reference: tuple[np.ndarray, ...] | None
    rounds: int
    exact: bool  # whether integers are computed as such: see `compare`


def measured(work: Work) -> list[list[float]]:
    """Times in ms of each form, in turns. Raises WrongResult, and what TVM raises when a session ends."""
    board = Board(work)
    for number, form in enumerate(work.forms):
        board.load(number, form)
    times: list[list[float]] = [[] for _ in work.forms]
    for number in turns(len(times), work.rounds):
        times[number] += board.times(number)
    return times


def turns(count: int, rounds: int) -> Iterator[int]:
    """So many forms one after the other, round by round; every second one backwards, for it may matter who is first."""
    for number in range(rounds):
        yield from range(count) if number % 2 == 0 else reversed(range(count))


class Board:
    """A session, and what was loaded in it: see `serving.jobs`."""

    def __init__(self, work: Work) -> None:
        self.work = work
        connect = ffi().get_global_func("rpc.Connect")
        session = connect(work.host, work.port, f"{work.key} -timeout={work.seconds}", False)
        self.put, self.run, self.time = (session.get_function(name) for name in (PUT, LOAD, TIMES))
        self.send("inputs", [array.tobytes() for array in work.inputs])

    def send(self, name: str, parts: Iterable[Any]) -> None:
        """A file, in pieces that a small board has memory for."""
        data = memoryview(b"".join(parts))
        for start in range(0, len(data), PIECE):
            self.put(name, bytes(data[start : start + PIECE]))

    def load(self, number: int, form: Form) -> None:
        """Loads a candidate, runs it once and compares."""
        folder, wanted = Path(form.folder), self.work.reference
        self.send(f"{number}.so", [(folder / "library.so").read_bytes()])
        self.send(f"{number}.weights", (np.load(folder / f"{i}.npy").data for i in range(len(form.weights))))
        inputs = [(array.dtype.name, array.shape) for array in self.work.inputs]
        how = {"threads": self.work.threads, "prepares": form.prepares, "results": wanted is not None}
        got = bytes(self.run(number, json.dumps({**how, "inputs": inputs, "weights": form.weights})))
        if wanted is not None:
            compare(arrays_like(wanted, got), wanted, self.work.exact)

    def times(self, number: int) -> list[float]:
        """In ms, by the board's clock."""
        found = self.time(number, SAMPLE_S, SAMPLES)
        return [seconds * 1e3 for seconds in struct.unpack(f"{SAMPLES}d", found)]


def arrays_like(wanted: Sequence[np.ndarray], data: bytes) -> list[np.ndarray]:
    """Results as they came, one behind the other; raises WrongResult for another number of bytes."""
    if len(data) != sum(array.nbytes for array in wanted):
        raise WrongResult(f"{len(data)} bytes, where {sum(array.nbytes for array in wanted)} are right")
    found, place = [], 0
    for array in wanted:
        found.append(np.frombuffer(data, array.dtype, array.size, place).reshape(array.shape))
        place += array.nbytes
    return found


def compare(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], exact: bool = True) -> None:
    """Integers bit by bit, floats within TOLERANCE; raises WrongResult.

    Not `exact`: the integers are rounded from floats, whose last bit depends on whether products and sums were one
    instruction. Then a few (TIES, or one of a small tensor) may be the neighbour.
    """
    for a, b in zip(got, wanted, strict=True):
        if str(a.dtype) not in TOLERANCE:
            off = np.abs(a.astype(np.int64) - b.astype(np.int64))
            if off.any() and (exact or off.max() > 1 or np.count_nonzero(off) > max(TIES * off.size, 1)):
                raise WrongResult(f"{np.count_nonzero(off)} of {off.size} integers differ, by {off.max()} at most")
            continue
        a, b, tolerance = a.astype(np.float64), b.astype(np.float64), TOLERANCE[str(a.dtype)]
        limit = tolerance * max(float(np.abs(b).max(initial=0)), 1e-6)
        worst = float(np.abs(a - b).max(initial=0)) if np.isfinite(a).all() else float("inf")
        if not worst <= limit:
            raise WrongResult(f"off by {worst:.3g}, where {limit:.3g} is allowed")


def np_dtype(name: str) -> np.dtype:
    """Also those that NumPy alone does not know."""
    return np.dtype(getattr(ml_dtypes, name, name))
