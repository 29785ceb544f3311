"""Running a package on a board: its library and weights go there once, inputs and outputs with each call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcompress.errors import PackageError, TvmcompressError
from tvmcompress.runtime import Program, open_package, since
from tvmcompress.serving.programs import PREPARE, SET_INPUT
from tvmcompress.threads import count as thread_count
from tvmcompress.threads import use as use_threads

if TYPE_CHECKING:
    from tvmcompress.device import Device
    from tvmcompress.package import Package

FAILURES = (RuntimeError, AttributeError)  # what TVM's RPC raises when the board, the network or the library fails


def machine(device: Device | None) -> dict | None:
    """The board's `cpu.describe()`, None for this machine."""
    return None if device is None or device.is_local else device.describe()["cpu"]


def open_program(package: Package, device: Device | None, threads: int | None = None) -> Program | RemoteProgram:
    """The program of a package on this machine or on a board."""
    if device is None or device.is_local:
        return open_package(package, threads)
    return RemoteProgram(package, device, threads)


class RemoteProgram:
    """As `runtime.Program`, at the other end of `device`; `load_ms` includes the way there.

    Raises PackageError when the board cannot run the package.
    """

    def __init__(self, package: Package, device: Device, threads: int | None = None):
        from tvm import relax

        told = device.describe()
        described = told["cpu"]
        self.described = {**described, "emulated": told["emulated"]}
        package = package.pick(described)
        if package.manifest["needs"]["gpu"]:
            raise PackageError(f"{package.name} needs a GPU, and packages for GPUs run on this machine only")
        self.threads = thread_count(threads) if threads else described["cores"]
        self._name = device.address
        self._place = device.tvm_device()
        try:
            with package.library() as library:
                module = device.load_module(device.upload(library))
            use_threads(module, self.threads)
            self._machine = relax.VirtualMachine(module, self._place)
            start = time.perf_counter()
            stored = package.weights()  # unpacked here: a board needs no library for it
            unpacked = since(start)
            self._weights = [self._send(w) for w in stored]
            sent = time.perf_counter()
            self._prepared: int | None = None
            if package.manifest["entry"]["prepare"]:
                self._machine.set_input("prepare", *self._weights)
                self._prepared = device.function(PREPARE)(self._machine.module)
                self._set = device.function(SET_INPUT)
                self._weights = []
            self.load_ms = {"unpack": unpacked, "prepare": since(sent), "load": since(start)}
        except FAILURES as error:
            raise self._failed(error) from error

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once. Raises TvmcompressError when the board fails or goes away."""
        try:
            self._set_inputs(inputs)
            self._machine.invoke_stateful("main")
            results = self._machine.get_outputs("main")
            return [result.numpy() for result in (results if isinstance(results, tuple) else [results])]
        except FAILURES as error:
            raise self._failed(error) from error

    def times(self, inputs: Sequence[np.ndarray], runs: int) -> list[float]:
        """How long each of `runs` runs takes, in ms, by the board's own clock: the network is not in it."""
        try:
            self._set_inputs(inputs)
            timer = self._machine.time_evaluator("invoke_stateful", self._place, number=1, repeat=runs)
            return [seconds * 1e3 for seconds in timer("main").results]
        except FAILURES as error:
            raise self._failed(error) from error

    def _set_inputs(self, inputs: Sequence[np.ndarray]) -> None:
        sent = [self._send(array) for array in inputs]
        if self._prepared is None:
            self._machine.set_input("main", *sent, *self._weights)
        else:
            self._set(self._machine.module, self._prepared, *sent)

    def _send(self, array: np.ndarray) -> Any:
        import tvm

        return tvm.runtime.tensor(np.ascontiguousarray(array), self._place)

    def _failed(self, error: Exception) -> TvmcompressError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return TvmcompressError(f"device {self._name}: {lines[-1][:200]}")
