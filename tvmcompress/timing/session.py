"""A measurement in a board's session, with TVM's runtime alone: what runs it starts in milliseconds.

It does what `bench.Side` does here, by the functions of TVM's RPC and of its virtual machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcompress.bindings import ffi
from tvmcompress.serving.programs import PREPARE, SET_INPUT

SAMPLES = 9  # times of a candidate
SAMPLE_S = 0.003  # of running, at least
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # of the greatest magnitude
CPU, POOLED, MASK = 1, 2, 128  # of TVM: a device, an allocator, what tells sessions apart


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


def measured(work: Work) -> list[list[float]]:
    """Times in ms of each form, in turns. Raises WrongResult, and what TVM raises when a session ends."""
    board = Board(work)
    timers = [board.timer(form) for form in work.forms]
    times: list[list[float]] = [[] for _ in work.forms]
    for _ in range(work.rounds):
        for found, timer in zip(times, timers):
            found += timer()
    return times


class Board:
    """A session, and what was loaded in it."""

    def __init__(self, work: Work) -> None:
        self.work, self.count = work, 0
        self.ffi = ffi()
        call = self.ffi.get_global_func
        self.alloc, self.put, self.get = (
            call(f"runtime.TVMTensor{what}") for what in ("AllocWithScope", "CopyFromBytes", "CopyToBytes")
        )
        self.evaluator, self.load = call("runtime.RPCTimeEvaluator"), call("rpc.LoadRemoteModule")
        key = f"{work.key} -timeout={work.seconds}"
        self.session = call("rpc.Connect")(work.host, work.port, key, False)
        self.device = self.ffi.device(CPU + (call("rpc.SessTableIndex")(self.session) + 1) * MASK, 0)
        self.inputs = [self.tensor(array) for array in work.inputs]

    def function(self, name: str) -> Any:
        return self.session.get_function(name)

    def tensor(self, array: np.ndarray) -> Any:
        made = self.alloc(self.ffi.Shape(array.shape), self.ffi.dtype(array.dtype.name), self.device, None)
        array = np.ascontiguousarray(array)
        if array.size:
            self.put(made, self.ffi_pointer(array), array.nbytes)
        return made

    def array(self, tensor: Any) -> np.ndarray:
        made = np.empty(tuple(tensor.shape), np_dtype(str(tensor.dtype)))
        if made.size:
            self.get(tensor, self.ffi_pointer(made), made.nbytes)
        return made

    @staticmethod
    def ffi_pointer(array: np.ndarray) -> Any:
        import ctypes

        return ctypes.c_void_p(array.ctypes.data)

    def timer(self, form: Form) -> Callable[[], list[float]]:
        """Loads a candidate, runs it once and compares, and returns what times it."""
        self.count += 1
        name = f"{self.count}.so"
        self.function("tvm.rpc.server.upload")(name, bytearray(Path(form.folder, "library.so").read_bytes()))
        module = self.load(self.session, name)
        module.get_function("use_threads", True)(self.work.threads)
        machine = module["vm_load_executable"]()
        machine["vm_initialization"](CPU, 0, POOLED)
        weights = [
            self.tensor(np.load(Path(form.folder, f"{i}.npy")).view(np_dtype(dtype)).reshape(shape))
            for i, (dtype, shape) in enumerate(form.weights)
        ]
        if form.prepares:
            machine["set_input"]("prepare", *weights)
            number = self.function(PREPARE)(machine)
            self.function(SET_INPUT)(machine, number, *self.inputs)
        else:
            machine["set_input"]("main", *self.inputs, *weights)
        machine["invoke_stateful"]("main")
        if self.work.reference is not None:
            count = machine["get_output_arity"]("main")
            places = [()] if count == -1 else [(i,) for i in range(count)]
            compare([self.array(machine["get_output"]("main", *place)) for place in places], self.work.reference)
        first = min(self.seconds(machine, 3, 2))
        number = max(int(SAMPLE_S / max(first, 1e-7)), 1)
        return lambda: [seconds * 1e3 for seconds in self.seconds(machine, number, SAMPLES)]

    def seconds(self, machine: Any, number: int, repeat: int) -> list[float]:
        """Of a run, by the board's clock: `repeat` times the mean of `number`."""
        kind = self.device.dlpack_device_type()
        timer = self.evaluator(machine, "invoke_stateful", kind, 0, number, repeat, 0, 0, 0, 1, 0, "")
        return list(struct.unpack(f"@{repeat}d", timer("main")))


def compare(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    """Integers bit by bit, floats within TOLERANCE; raises WrongResult."""
    for a, b in zip(got, wanted, strict=True):
        if str(a.dtype) not in TOLERANCE:
            if not np.array_equal(a, b):
                raise WrongResult(f"{np.mean(a != b):.1%} of the integers differ")
            continue
        a, b, tolerance = a.astype(np.float64), b.astype(np.float64), TOLERANCE[str(a.dtype)]
        limit = tolerance * max(float(np.abs(b).max(initial=0)), 1e-6)
        worst = float(np.abs(a - b).max(initial=0)) if np.isfinite(a).all() else float("inf")
        if not worst <= limit:
            raise WrongResult(f"off by {worst:.3g}, where {limit:.3g} is allowed")


def np_dtype(name: str) -> np.dtype:
    """Also those that NumPy alone does not know."""
    import ml_dtypes  # registers them

    return np.dtype(getattr(ml_dtypes, name, name))
