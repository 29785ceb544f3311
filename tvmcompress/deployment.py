"""deploy(package) -> Deployment: a package loaded where it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvmcompress import remote, samples
from tvmcompress.errors import ModelError, UsageError
from tvmcompress.measurement import onnx_reference
from tvmcompress.measurement.measure import Measurement, Side
from tvmcompress.measurement.profile import Profile, profile
from tvmcompress.package import Package
from tvmcompress.remote import RemoteProgram
from tvmcompress.report import Report
from tvmcompress.runtime import Program

Compile = Callable[[Any, dict], Package]  # (Model or the path of one, a target as JSON) -> Package


class Deployment:
    """Call it with {input name: array}; it gives {output name: array}. Made by `deploy`.

    Arrays that are contiguous, writable and 64-byte aligned (`tvmcompress.runtime.aligned`) are read where they lie,
    others are copied once; outputs on a CPU are not copied. Calls from several threads take turns.
    """

    def __init__(self, package: Package, program: Program | RemoteProgram, device: Any, compile: Compile | None = None):
        self.package = package  # the build that runs
        self.threads = program.threads
        self.load_ms = program.load_ms  # to load it; of that to unpack weights, and to bring them into kernels' form
        self._program = program
        self._device = device
        self._compile = compile

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises SampleError for a wrong name, dtype or shape."""
        samples.check(inputs, self.package.inputs)
        results = self._program([inputs[spec.name] for spec in self.package.inputs])
        return {spec.name: result for spec, result in zip(self.package.outputs, results)}

    @property
    def build(self) -> str:
        """The name of what the code that runs was compiled for: of a package of several builds, the one that runs."""
        return self.package.target

    def measure(self, data: Any, reference: Any = None, labels: Any = None, **options: Any) -> Report:
        """A Report: sizes, quality over all of `data` (see `samples`), latency, memory and energy.

        `reference` is what to compare with: a Model, a Package, a Deployment, the path of a model or package (an ONNX
        file is run by ONNX Runtime where that is installed), or any function from inputs to outputs. `labels` are
        class numbers, one for each row of the first output of scores. `options` are those of `Measurement`.
        """
        return Measurement(**options).run(self._side(), self._reference(reference), data, labels)

    def profile(self, inputs: Mapping[str, np.ndarray] | None = None, budget_s: float = 3.0) -> Profile:
        """A Profile: each kernel's share of the time, and how near it comes to the peak of this machine.

        `inputs` are the package's golden ones unless given. Raises UsageError on another device and for GPU code.
        """
        if isinstance(self._program, RemoteProgram):
            raise UsageError("profile: a board is profiled on the board itself; install this project there")
        if self.package.manifest["needs"]["gpu"]:
            raise UsageError("profile: only kernels for CPUs are timed one by one, and this package is for a GPU")
        if inputs is not None:
            samples.check(inputs, self.package.inputs)
        return profile(self.package, self.threads, inputs, budget_s)

    def _side(self) -> Side:
        program = self._program
        if isinstance(program, RemoteProgram):
            specs = self.package.inputs
            return Side(
                self.package.name,
                "tvmcompress",
                self,
                self.threads,
                package=self.package,
                times=lambda inputs, runs: program.times([inputs[spec.name] for spec in specs], runs),
                machine=program.described,
                load_ms=program.load_ms,
            )
        order = {"kind": "package", "path": str(self.package.path), "threads": self.threads}
        order["build"] = self.build
        return Side(self.package.name, "tvmcompress", self, self.threads, order, self.package)

    def _reference(self, given: Any) -> Side | None:
        if given is None or isinstance(given, Side):
            return given
        if isinstance(given, Deployment):
            return given._side()
        if isinstance(given, Package):
            return deploy(given, self._device, self.threads)._side()
        if isinstance(given, str | os.PathLike):
            return self._reference_file(Path(given))
        if callable(given):
            return Side(getattr(given, "__name__", "function"), "function", given)
        return self._compiled(given)

    def _reference_file(self, path: Path) -> Side:
        if not path.exists():
            raise ModelError(f"reference: no file '{path}'")
        if path.suffix == ".tar":
            return deploy(path, self._device, self.threads)._side()
        if path.suffix == ".onnx" and onnx_reference.installed():
            order = {"kind": "onnx", "path": str(path), "threads": self.threads}
            run = onnx_reference.runner(str(path), self.threads)
            return Side(f"{path.name} in ONNX Runtime", "onnxruntime", run, self.threads, order)
        return self._compiled(path)

    def _compiled(self, model: Any) -> Side:
        if self._compile is None:
            raise UsageError("reference: a model must be compiled to be compared with; pass the package made of it")
        return deploy(self._compile(model, self.package.manifest["target"]), self._device, self.threads)._side()


def deploy(
    package: Package | str | os.PathLike,
    device: Any = None,
    threads: int | None = None,
    *,
    build: str | None = None,
    compile: Compile | None = None,
) -> Deployment:
    """Load a package where it is to run: this machine, or `device` (see `tvmcompress.device`).

    `threads` is all the CPUs that this process may use unless given. Of several builds the first that can run there is
    taken, or the one named `build`. `compile` serves `measure(reference=a Model)`. Raises PackageError when the package
    is damaged or for other hardware.
    """
    if not isinstance(package, Package):
        package = Package.load(package)
    package = package.pick(remote.machine(device), build)
    return Deployment(package, remote.open_program(package, device, threads), device, compile)
