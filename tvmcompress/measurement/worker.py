"""One runtime in a process of its own, run as `python -m tvmcompress.measurement.worker`.

The first line on stdin says what to load: {"kind": "package" | "onnx" | "openvino", "path", "inputs": a .npz,
"threads"}, for a package also "build" if it is to be that one, for OpenVINO also "precision": "f32", or "" for its own
choice. The answer has the time from an interpreter with NumPy to the first outputs, and of a package what unpacking and
preparing its weights took of it. Then each line {"run": n} is answered with n times in ms, {"peak": true} with the
largest memory that the process has had, and for a package {"profile": seconds} with what `profiling.profile` finds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcompress.errors import TvmcompressError

if TYPE_CHECKING:
    from tvmcompress.package import Package
    from tvmcompress.runtime import Program


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not come between the answers

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        order = json.loads(sys.stdin.readline())
        with np.load(order["inputs"], allow_pickle=False) as archive:
            inputs = {name: archive[name] for name in archive.files}
        bare = memory("VmRSS")
        start = time.perf_counter()
        run = OPEN[order["kind"]](order)
        loaded = time.perf_counter()
        call = run(inputs)
        call()
        first = time.perf_counter()
        parts = {f"{part}_ms": ms for part, ms in getattr(call, "load_ms", {}).items()}
        times_ms = {"load_ms": (loaded - start) * 1e3, "cold_start_ms": (first - start) * 1e3}
        answer({**parts, **times_ms, "bare_bytes": bare})
        for line in sys.stdin:
            order = json.loads(line)
            if "run" in order:
                answer({"ms": times(call, order["run"])})
            elif "profile" in order:
                answer(call.profile(order["profile"]))
            else:
                answer({"peak_bytes": memory("VmHWM")})
    except TvmcompressError as error:
        answer({"error": str(error)})
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    return 0


def times(call: Callable[[], Any], count: int) -> list[float]:
    """How long each of `count` runs takes, in ms."""
    found = []
    for _ in range(count):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


class PackageRun:
    """A package and its inputs."""

    def __init__(self, package: Package, program: Program, inputs: dict[str, np.ndarray]):
        from tvmcompress import runtime

        self._package, self._program = package, program
        self.load_ms = program.load_ms
        self._arrays = []
        for spec in package.inputs:
            self._arrays.append(runtime.aligned(inputs[spec.name].shape, inputs[spec.name].dtype))
            np.copyto(self._arrays[-1], inputs[spec.name])

    def __call__(self) -> list[np.ndarray]:
        return self._program(self._arrays)

    def profile(self, seconds: float) -> dict:
        from tvmcompress.measurement.profiling import profile

        return profile(self._package, self._program, self._arrays, seconds)


def open_package(order: dict) -> Callable:
    from tvmcompress import runtime
    from tvmcompress.package import Package

    package = Package.load(order["path"]).pick(build=order.get("build"))
    program = runtime.open_package(package, order["threads"])
    return lambda inputs: PackageRun(package, program, inputs)


def open_onnx(order: dict) -> Callable:
    from tvmcompress.measurement.onnx_reference import session

    opened = session(order["path"], order["threads"])
    return lambda inputs: lambda: opened.run(None, inputs)


def open_openvino(order: dict) -> Callable:
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": order["threads"], "PERFORMANCE_HINT": "LATENCY"})
    if order["precision"]:
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": order["precision"]})
    request = core.compile_model(order["path"], "CPU").create_infer_request()
    return lambda inputs: lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


OPEN = {"package": open_package, "onnx": open_onnx, "openvino": open_openvino}


def memory(field: str) -> int:
    """Bytes, from a line of /proc/self/status; 0 where there is no such file."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
