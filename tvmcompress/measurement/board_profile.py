"""Where the time of a package goes on a board: each kernel called by itself, timed by the board's own clock.

A kernel that is called again and again finds its operands in the cache, which it may not within a run: so the times of
all kernels together may be less than a run takes. The peak is read in between, on all of the board's threads at once.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T

from tvmcompress import linking, threads
from tvmcompress.device import Device
from tvmcompress.errors import TvmcompressError
from tvmcompress.isa import isa_of
from tvmcompress.measurement.apart import Kernels
from tvmcompress.measurement.peak import loop, memory_size, step
from tvmcompress.remote import FAILURES
from tvmcompress.target import Target

TURN_MS = 3  # of one reading, at least
TRIES = 8  # of a reading of the peak, which is the best of them: others may have been interrupted
LEAST = 3  # rounds
BUILDING = threading.Lock()  # several boards may be profiled at once, but TVM compiles for one at a time

# Every thread has a row of memory of its own, a cache line apart from its neighbours at least.
ENTRY = """
@T.prim_func(s_tir=True)
def {name}(memory: T.Buffer(({threads}, {size}), "int32"), count: T.int64):
    T.func_attr({{"global_symbol": "{name}"}})
    T.attr(0, "pragma_import_llvm", CODE)
    for i in T.parallel({threads}):
        T.evaluate(T.call_extern("int32", "tvmcompress_peak", T.address_of(memory[i, 0]), count))
"""


class Peak:
    """Readings of one kind of arithmetic on a board, on so many threads at once."""

    def __init__(self, arithmetic: str, target: Target, device: Device, count: int, folder: Path) -> None:
        machine = target.to_tvm()
        isa = isa_of(machine)
        made = step(arithmetic, isa)
        accumulators = max(1, min(16, isa.registers - 4))
        size = memory_size(accumulators)
        source = ENTRY.format(name="peak", threads=count, size=size)
        entry = tvm.script.from_source(source, {"T": T, "CODE": loop(made, accumulators)})
        path = folder / f"{folder.name}-{arithmetic}.so"
        built = tvm.compile(tvm.IRModule({"peak": entry}), target=machine)
        built.export_library(str(path), fcompile=linking.linker(target), workspace_dir=str(folder))
        self.instruction = made.instruction
        self._place = device.tvm_device()
        self._module = device.load_module(device.upload(path))
        threads.use(self._module, count)
        self._memory = tvm.runtime.tensor(np.full((count, size), 0x3F003F00, np.int32), self._place)
        self._work, self._turns = made.macs * accumulators * count, 1000
        while (seconds := self._seconds()) * 1e3 < TURN_MS:
            self._turns = int(self._turns * min(max(1.2 * TURN_MS / 1e3 / seconds, 1.5), 10))

    def gmacs(self) -> float:
        """One reading: 10^9 multiply-accumulates a second, of all threads together."""
        return self._turns * self._work / self._seconds() / 1e9

    def _seconds(self) -> float:
        timer = self._module.time_evaluator("peak", self._place, number=1, repeat=TRIES)
        return timer(self._memory, self._turns).min


def profile(kernels: Kernels, work: Sequence[Mapping[str, Any]], device: Device, count: int, seconds: float) -> dict:
    """Medians over rounds, for the build that runs on `device` with `count` threads.

    {"kernels": [{"name", "calls", "ms" of all calls together, "bytes", "result", "of_peak" in the same round, where it
    multiplies}], "peaks": {arithmetic: {"instruction", "gmacs"}}, "rounds"}. `work`: the manifest's rows of kernels.
    Raises TvmcompressError when the board fails.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
            return _profile(kernels, {row["name"]: row for row in work}, device, count, seconds, Path(folder))
    except FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TvmcompressError(f"device {device.address}: {lines[-1][:200]}") from error


def _profile(
    kernels: Kernels, work: Mapping[str, Mapping], device: Device, count: int, seconds: float, folder: Path
) -> dict:
    place = device.tvm_device()
    kinds = sorted({"float32"} | {row["arithmetic"] for row in work.values()})
    with BUILDING:
        library = kernels.library(folder)
        peaks = {kind: Peak(kind, kernels.target, device, count, folder) for kind in kinds}
    module = device.load_module(device.upload(library))
    threads.use(module, count)
    spent: dict[str, list[float]] = {call.name: [] for call in kernels.calls}
    gmacs: list[dict[str, float]] = []
    start = time.monotonic()
    while len(gmacs) < LEAST or time.monotonic() - start < seconds:
        for call in kernels.calls:
            # Sent anew: a board with little memory need not hold the operands of all kernels at once.
            arguments = [tvm.runtime.tensor(array, place) for array in call.arrays()]
            timer = module.time_evaluator(call.name, place, number=1, repeat=2, min_repeat_ms=TURN_MS)
            spent[call.name].append(timer(*arguments).min * 1e3 * call.calls)
        gmacs.append({kind: peak.gmacs() for kind, peak in peaks.items()})
    rows = []
    for call in kernels.calls:
        ms = np.maximum(spent[call.name], 1e-6)
        row = {"name": call.name, "calls": call.calls, "ms": float(np.median(ms)), "bytes": call.bytes}
        row["result"] = list(call.arguments[-1][0]) if call.arguments else []
        if call.name in work:
            known = work[call.name]
            most = np.array([reading[known["arithmetic"]] for reading in gmacs]) * ms * 1e6
            row["of_peak"] = float(np.median(known["macs"] * call.calls / most))
        rows.append(row)
    readings = {kind: float(np.median([reading[kind] for reading in gmacs])) for kind in peaks}
    found = {kind: {"instruction": peak.instruction, "gmacs": readings[kind]} for kind, peak in peaks.items()}
    return {"kernels": rows, "peaks": found, "rounds": len(gmacs)}
