"""Running a linked library: TVM's runtime without its compiler.

`import tvm` takes seconds and a quarter of a gigabyte, most of it for the compiler. A deployed package needs only
`libtvm_runtime.so`, which this file loads by itself unless the process already has all of TVM.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcompress import threads as placement
from tvmcompress.bindings import ffi
from tvmcompress.errors import PackageError

if TYPE_CHECKING:
    from tvmcompress.package import Package

ALIGNMENT = 64  # bytes; generated code assumes it of every tensor
POOLED = 2  # the virtual machine's allocator that keeps freed memory for the next call
CPU, CUDA = 1, 2  # DLPack's device types
CUDA_DRIVER = Path("/proc/driver/nvidia/version")


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array whose data starts at a multiple of ALIGNMENT."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def tensor(array: np.ndarray) -> Any:
    """A TVM tensor on the same memory. `array` must be contiguous and writable, and aligned for kernels to read it."""
    tvm_ffi = ffi()
    if array.dtype.isbuiltin == 1:
        return tvm_ffi.from_dlpack(array)
    # NumPy hands bfloat16 and its kin to nobody, so they travel as plain bits and are given their name on the far side.
    bits = tvm_ffi.from_dlpack(array.view(f"u{array.dtype.itemsize}"))
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(bits, tvm_ffi.Shape(array.shape), tvm_ffi.dtype(array.dtype.name), 0)


def array(value: Any) -> np.ndarray:
    """A NumPy array on the memory of a TVM tensor in main memory."""
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError):  # a dtype that NumPy does not have
        import ml_dtypes

        dtype = np.dtype(getattr(ml_dtypes, str(value.dtype)))
        view = ffi().get_global_func("runtime.TVMTensorCreateView")
        bits = view(value, ffi().Shape(value.shape), ffi().dtype(f"uint{dtype.itemsize * 8}"), 0)
        return np.from_dlpack(bits).view(dtype)


def usable(array: np.ndarray) -> bool:
    """Whether TVM can read this array where it lies."""
    flags = array.flags
    return flags.c_contiguous and flags.writeable and address(array) % ALIGNMENT == 0


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class Program:
    """A library and its weights in a virtual machine, on this computer.

    `stored` are the weights as the package keeps them. With `prepare`, the library's function of that name is run
    once and its results take their place. Calls are serialised; outputs are arrays of their own. `load_ms`: how long
    that took, and what `open_package` knows of the rest of loading.
    """

    def __init__(
        self,
        library: Path,
        stored: Sequence[np.ndarray],
        *,
        prepare: bool,
        inputs: int,
        threads: int,
        cuda: bool = False,
    ):
        self.threads = placement.count(threads)
        if cuda:
            import tvm  # noqa: F401  # loads its CUDA runtime too

            from tvmcompress import cuda_code

            cuda_code.install_loader()
        self._ffi = ffi()
        self._lock = threading.Lock()
        self._staging: dict[int, np.ndarray] = {}
        self._cuda = cuda
        try:
            # Nothing that outlives this program refers to its code: its threads end and its memory returns with it.
            module = self._ffi.load_module(str(library), keep_module_alive=False)
            placement.use(module, self.threads)
            self._machine = module["vm_load_executable"]()
            devices = [CUDA, 0, POOLED] if cuda else []
            self._machine["vm_initialization"](*devices, CPU, 0, POOLED)
            self._main = self._machine["main"]
            wanted = inputs + (len(stored) if not prepare else 0)
            arity = self._machine["get_function_arity"]("main")
        except (RuntimeError, AttributeError, OSError, ValueError) as error:
            raise PackageError(f"the package's library cannot be loaded: {_first_line(error)}") from error
        if (arity != wanted) if not prepare else (arity < wanted):
            raise PackageError(f"the package's library takes {arity} arguments, its manifest says {wanted}")
        start = time.perf_counter()
        weights = [self._to_device(self._aligned(w)) for w in stored]
        if prepare:
            weights = list(self._machine["prepare"](*weights))
        self.load_ms = {"prepare": since(start)}
        self._weights = weights
        # What a result may turn out to lie in, and must not: the caller is free to write to it.
        self._held = {w.data_ptr() for w in weights}

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once. `inputs` have the shapes and dtypes of the program's parameters, in order."""
        with self._lock:
            tensors = [self._input(i, a) for i, a in enumerate(inputs)]
            results = self._main(*tensors, *self._weights)
            return [self._output(result, tensors) for result in results]

    def watch(self, instrument: Any) -> None:
        """Call `instrument(function, name, before, result, *arguments)` before and after all that a run calls.

        None ends it.
        """
        self._machine["set_instrument"](instrument)

    def _input(self, index: int, given: np.ndarray) -> Any:
        if given.flags.c_contiguous and given.flags.writeable:
            there = self._to_device(given)
            if there.data_ptr() % ALIGNMENT == 0:
                return there
        place = self._staging.get(index)
        if place is None or place.shape != given.shape or place.dtype != given.dtype:
            place = self._staging[index] = aligned(given.shape, given.dtype)
        np.copyto(place, given)
        return self._to_device(place)

    def _to_device(self, given: np.ndarray) -> Any:
        if not self._cuda:
            return tensor(given)
        import tvm

        return tvm.runtime.tensor(given, tvm.cuda(0))

    def _output(self, result: Any, inputs: Sequence[Any]) -> np.ndarray:
        if self._cuda:
            return np.asarray(result.numpy())
        # A program may hand back an input or a constant as it is, or in another shape.
        start = result.data_ptr()
        borrowed = start in self._held or any(start == given.data_ptr() for given in inputs)
        out = array(result)
        return out.copy() if borrowed else out

    @staticmethod
    def _aligned(stored: np.ndarray) -> np.ndarray:
        if usable(stored):
            return stored
        place = aligned(stored.shape, stored.dtype)
        np.copyto(place, stored)
        return place


def open_package(package: Package, threads: int | None = None) -> Program:
    """The program of a package, on this machine. Raises PackageError before any code is loaded if it cannot run."""
    package, start = package.pick(), time.perf_counter()
    weights = package.weights()
    unpacked = since(start)
    with package.library() as library:
        program = Program(
            library,
            weights,
            prepare=package.manifest["entry"]["prepare"],
            inputs=len(package.inputs),
            threads=placement.count(threads),
            cuda=bool(package.manifest["needs"]["gpu"]),
        )
    program.load_ms |= {"unpack": unpacked, "load": since(start)}
    return program


def since(start: float) -> float:
    """ms since what `time.perf_counter` said."""
    return (time.perf_counter() - start) * 1e3


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
