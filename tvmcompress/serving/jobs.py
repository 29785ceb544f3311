"""Jobs: candidates that are loaded, run once and timed in a session, in a handful of requests.

A client could ask for all of it by TVM's own functions. But each tensor, function and argument would be a trip to the
board and back, and over a slow link trips are what a measurement takes.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PUT, LOAD, TIMES = (f"tvmcompress.job.{what}" for what in ("put", "load", "times"))
CPU, POOLED = 1, 2  # of TVM: a device, an allocator
FEW, AGAIN = 3, 2  # runs before it is known how many are wanted, and how often


def offer(ffi: Any, folder: Path) -> None:
    """Registers in this process what a job wants, for files in `folder`.

    `put(name, data)` writes a file, or adds to it. `load(number, how)` loads `{number}.so`, gives it the arrays in the
    files `inputs` and `{number}.weights`, and runs it once; it returns the bytes of all results, if they are wanted.
    `how` is JSON: `threads`, `prepares` (whether weights go through the program's `prepare`), `results` (whether they
    are wanted), `inputs` and `weights` (dtype and shape of each). `times(number, seconds, samples)` runs it so often
    that a sample takes so many seconds, and returns the seconds of a run of each sample, as doubles.
    """
    machines: dict[int, Any] = {}

    @ffi.register_global_func(PUT, override=True)
    def put(name: str, data: bytes) -> None:
        with (folder / Path(str(name)).name).open("ab") as file:
            file.write(data)

    @ffi.register_global_func(LOAD, override=True)
    def load(number: int, how: str) -> bytes:
        told = json.loads(str(how))
        inputs = tensors(ffi, folder / "inputs", told["inputs"])
        weights = tensors(ffi, folder / f"{number}.weights", told["weights"])
        module = ffi.load_module(str(folder / f"{number}.so"))
        module.get_function("use_threads", True)(told["threads"])
        machine = module["vm_load_executable"]()
        machine["vm_initialization"](CPU, 0, POOLED)
        if told["prepares"]:
            machine["set_input"]("prepare", *weights)
            machine["invoke_stateful"]("prepare")
            weights = [machine["get_output"]("prepare", i) for i in range(machine["get_output_arity"]("prepare"))]
        machine["set_input"]("main", *inputs, *weights)
        machine["invoke_stateful"]("main")
        machines[number] = machine
        return results(ffi, machine) if told["results"] else b""

    @ffi.register_global_func(TIMES, override=True)
    def times(number: int, seconds: float, samples: int) -> bytes:
        first = min(memoryview(timed(ffi, machines[number], FEW, AGAIN)).cast("d"))
        return timed(ffi, machines[number], max(int(seconds / max(first, 1e-7)), 1), samples)


def tensors(ffi: Any, path: Path, told: Sequence[tuple[str, Sequence[int]]]) -> list[Any]:
    """Those that lie in a file one behind the other, of these dtypes and shapes."""
    call = ffi.get_global_func
    allocate, copy = call("runtime.TVMTensorAllocWithScope"), call("runtime.TVMTensorCopyFromBytes")
    made = [allocate(ffi.Shape(shape), ffi.dtype(dtype), ffi.device(CPU, 0), None) for dtype, shape in told]
    place = 0
    with mapped(path) as address:
        for tensor in made:
            size = size_of(tensor)
            if size:
                copy(tensor, ctypes.c_void_p(address() + place), size)
            place += size
    return made


class mapped:
    """The memory of a file; an empty one, or none, has no address that may be asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Callable[[], int]:
        self.map: mmap.mmap | None = None
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return lambda: ctypes.addressof(ctypes.c_char.from_buffer(self.map))  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        if self.map is not None:
            self.map.close()


def results(ffi: Any, machine: Any) -> bytes:
    """All of them, one behind the other."""
    count = machine["get_output_arity"]("main")
    copy, found = ffi.get_global_func("runtime.TVMTensorCopyToBytes"), bytearray()
    for place in [()] if count == -1 else [(i,) for i in range(count)]:
        tensor = machine["get_output"]("main", *place)
        part = ctypes.create_string_buffer(size_of(tensor))
        if len(part):
            copy(tensor, ctypes.cast(part, ctypes.c_void_p), len(part))
        found += part.raw
    return bytes(found)


def size_of(tensor: Any) -> int:
    """Bytes."""
    size = tensor.dtype.itemsize
    for dim in tensor.shape:
        size *= int(dim)
    return size


def timed(ffi: Any, machine: Any, number: int, repeat: int) -> bytes:
    """Seconds of a run, `repeat` times the mean of `number`: doubles."""
    make = ffi.get_global_func("runtime.RPCTimeEvaluator")
    return bytes(make(machine, "invoke_stateful", CPU, 0, number, repeat, 0, 0, 0, 1, 0, "")("main"))
