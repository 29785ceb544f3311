"""What is done at one place: outputs compared with those of the float model, then, where time is real, times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmcompress import energy, threads
from tvmcompress.comparing.places import Place, leased
from tvmcompress.device import Device
from tvmcompress.errors import PackageError, TvmcompressError, UsageError
from tvmcompress.measurement import board_profile
from tvmcompress.measurement.apart import Kernels
from tvmcompress.measurement.profile import of, profile
from tvmcompress.measurement.quality import Quality
from tvmcompress.measurement.race import Racer, as_cold, latency, race
from tvmcompress.package import Package
from tvmcompress.remote import RemoteProgram, open_program
from tvmcompress.runtime import Program

SITTINGS = 3  # on this machine each in fresh processes: a program's times also depend on where it came to lie in memory
PROFILE_S = 0.5  # of a package, without its rounds' least

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[int, int | None, str], None]


@dataclass
class Entry:
    """A package to run at a place: a variant, made with its own decisions or (`made_for`) with another place's.

    What the visit finds: why it does not run there, quality, times by sitting, and a profile.
    """

    variant: str
    package: Package
    kernels: Mapping[str, Kernels] = field(default_factory=dict)  # by build
    made_for: str = ""
    error: str = ""
    build: Package | None = None
    quality: dict = field(default_factory=dict)
    first: Arrays = field(default_factory=dict)
    rounds: list[list[float]] = field(default_factory=list)
    latency: dict | None = None
    memory: dict | None = None
    joules: dict | None = None
    profile: dict | None = None


@dataclass
class Task:
    """What all visits have in common. `samples` may be iterated again and again; `wanted` are the float model's outputs
    for each."""

    samples: Iterable[Arrays]
    wanted: Sequence[Arrays]
    labels: np.ndarray | None
    threads: int | None
    budget_s: float
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)

    def tell(self, done: int, total: int | None, text: str) -> None:
        if self.stop.is_set():
            raise TvmcompressError("stopped")
        self.progress(done, total, text)


@dataclass
class Visit:
    """A place, its entries, and once it was seen what it says of itself; `error` when it could not be reached."""

    place: Place
    entries: list[Entry]
    machine: str = ""  # see `places.machine`
    described: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    energy: str = ""  # why there is none

    @property
    def emulated(self) -> bool:
        return bool(self.described.get("emulated"))

    def make(self, task: Task) -> None:
        """Fills in all of it. A board that fails is noted, not raised."""
        try:
            with leased(self.place) as (device, self.described):
                self._check(device, task)
                if not self.emulated:
                    self._time(device, task)
                    self._profile(device, task)
        except UsageError:
            raise
        except TvmcompressError as error:
            self.error = str(error).splitlines()[0]

    # Outputs ----------------------------------------------------------------------------------------------------------

    def _check(self, device: Device, task: Task) -> None:
        for entry in self.entries:
            if entry.package.manifest["needs"]["gpu"] and not self.place.is_local:
                entry.error = "packages for GPUs run on this machine only"
                continue
            try:
                entry.build = entry.package.pick(None if self.place.is_local else self.described["cpu"])
            except PackageError as error:
                entry.error = str(error)
        for entry in self.running():
            # Only one program is open at a time: on this machine none is left when times are taken.
            try:
                program = open_program(self.build(entry), device, task.threads)
            except PackageError as error:
                entry.error = str(error)
                continue
            if entry.made_for:
                self._check_crossed(entry, program, task)
            else:
                self._check_own(entry, program, task)

    def _check_own(self, entry: Entry, program: Program | RemoteProgram, task: Task) -> None:
        quality, total = Quality(task.labels), len(task.wanted)
        for i, (sample, wanted) in enumerate(zip(task.samples, task.wanted)):
            got = outputs(self.build(entry), program, sample)
            entry.first = entry.first or got
            quality.add(got, wanted)
            task.tell(i + 1, total, f"{self.place.name}: {entry.variant}: comparing outputs")
        entry.quality = quality.summary()

    def _check_crossed(self, entry: Entry, program: Program | RemoteProgram, task: Task) -> None:
        """Other decisions give the same numbers: those of the same variant, made with its own."""
        own = next(e for e in self.entries if e.variant == entry.variant and not e.made_for)
        if own.error:
            entry.error = own.error
            return
        quality = Quality()
        quality.add(outputs(self.build(entry), program, next(iter(task.samples))), own.first)
        entry.quality = quality.summary()

    # Times ------------------------------------------------------------------------------------------------------------

    def _time(self, device: Device, task: Task) -> None:
        """All of them in turns, in several sittings; the first sample is what they run on."""
        entries, first = self.running(), next(iter(task.samples))
        if not entries:
            return
        found, self.energy = energy.sensors() if self.place.is_local else ([], "no sensor that can be read from here")
        sittings = SITTINGS if self.place.is_local else 1
        racers: list[list[Racer]] = []
        try:
            for sitting in range(sittings):
                racers.append([self._racer(entry, device, task) for entry in entries])
                race(
                    racers[-1],
                    first,
                    budget_s=task.budget_s * len(entries) / sittings,
                    repeats=None,
                    cold_starts=1,
                    sensors=found,
                    progress=lambda share, done=sitting: task.tell(  # type: ignore[misc]
                        round(100 * (done + share) / sittings), 100, f"{self.place.name}: timing"
                    ),
                )
        finally:
            for sensor in found:
                sensor.close()
        for entry, own in zip(entries, zip(*racers)):
            whole = Racer(entry.variant, ms=[ms for racer in own for ms in racer.ms], cold=own[0].cold)
            entry.rounds = [racer.rounds for racer in own]
            entry.latency = latency(whole)
            if peak := max(racer.peak for racer in own):
                entry.memory = {"peak": peak, "above_bare": peak - own[0].bare}
            if own[0].joules:
                runs = len(whole.ms)
                entry.joules = {name: sum(racer.joules[name] for racer in own) / runs for name in own[0].joules}

    def _racer(self, entry: Entry, device: Device, task: Task) -> Racer:
        build = self.build(entry)
        if self.place.is_local:
            order = {"kind": "package", "path": str(build.path), "build": build.target, "threads": task.threads}
            return Racer(entry.variant, order)
        program = RemoteProgram(build, device, task.threads)
        names = [spec.name for spec in build.inputs]
        return Racer(
            entry.variant,
            timer=lambda inputs, runs: program.times([inputs[n] for n in names], runs),
            cold=[as_cold(program.load_ms)],
        )

    def _profile(self, device: Device, task: Task) -> None:
        own = [entry for entry in self.running() if not entry.made_for]
        for i, entry in enumerate(own):
            task.tell(i, len(own), f"{self.place.name}: kernels one by one")
            build = self.build(entry)
            if build.manifest["needs"]["gpu"]:
                continue
            if self.place.is_local:
                entry.profile = profile(build, threads.count(task.threads), None, PROFILE_S).json()
            else:
                work, count = build.manifest.get("kernels", []), task.threads or self.described["cpu"]["cores"]
                found = board_profile.profile(entry.kernels[build.target], work, device, count, PROFILE_S)
                entry.profile = of_board(build, count, found, entry.latency, self.described["cpu"]["model"])

    # Entries ----------------------------------------------------------------------------------------------------------

    def running(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.error]

    @staticmethod
    def build(entry: Entry) -> Package:
        """The build of the entry's package that runs here."""
        assert entry.build is not None
        return entry.build


def outputs(package: Package, program: Program | RemoteProgram, sample: Arrays) -> dict[str, np.ndarray]:
    results = program([sample[spec.name] for spec in package.inputs])
    return {spec.name: np.array(result) for spec, result in zip(package.outputs, results)}


def of_board(package: Package, count: int, found: dict, whole: dict | None, machine: str) -> dict:
    """A profile as `measurement.profile` has it; on a board memory is not copied to see how fast that is."""
    inside = sum(row["ms"] for row in found["kernels"])
    ms = whole["median"] if whole else inside
    complete = {**found, "ms": ms, "overhead_ms": max(ms - inside, 0.0), "copy_gbs": 0.0}
    made = of(package, count, complete).json()
    return {**made, "machine": machine, "copy_gbs": None, "apart": True}
