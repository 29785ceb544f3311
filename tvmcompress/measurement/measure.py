"""One measurement of a deployment: quality, then the race, then everything put into a Report."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from tvmcompress import conditions, cpu, energy
from tvmcompress.errors import SampleError
from tvmcompress.measurement.quality import Quality
from tvmcompress.measurement.race import Racer, as_cold, latency, race
from tvmcompress.package import Package
from tvmcompress.report import Report
from tvmcompress.samples import Samples

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Progress = Callable[[int, int | None, str], None]  # (done, total when known, what is being done)


@dataclass(frozen=True)
class Side:
    """What takes part: how to run it here for its outputs, and what a worker process loads (None: it runs here)."""

    name: str
    kind: str  # "tvmcompress", "onnxruntime" or "function"
    run: Run
    threads: int | None = None
    order: dict | None = None
    package: Package | None = None
    times: Callable[[Mapping[str, np.ndarray], int], list[float]] | None = None  # a board that times its own runs
    machine: dict | None = None  # that board, as `cpu.describe()` says it there
    load_ms: dict | None = None  # what it took to load it there


@dataclass(frozen=True)
class Measurement:
    """Options: `repeats` runs of each side, or as many as fit in `budget_s` seconds; processes started cold."""

    budget_s: float = 6.0
    repeats: int | None = None
    cold_starts: int = 3
    limit: int | None = None  # samples at most
    progress: Progress = lambda done, total, text: None

    def run(self, ours: Side, reference: Side | None, data: Any, labels: Any = None) -> Report:
        assert ours.package is not None
        package = ours.package
        samples = Samples(data, package.inputs, self.limit)
        labels = _labels(labels, samples)
        stream = iter(samples)
        first = next(stream)
        quality = self._quality(ours.run, reference, chain([first], stream), samples.count(), labels)
        racers = [_racer(side) for side in (ours, reference) if side is not None]
        found, why_not = (
            energy.sensors() if ours.machine is None else ([], "the device has no sensor that can be read from here")
        )
        try:
            race(
                racers,
                first,
                budget_s=self.budget_s,
                repeats=self.repeats,
                cold_starts=self.cold_starts,
                sensors=found,
                progress=lambda share: self.progress(round(share * 100), 100, "timing"),
            )
        finally:
            for sensor in found:
                sensor.close()
        us, them = racers[0], racers[1] if reference else None
        return Report(
            package=_about(package),
            reference={"name": reference.name, "kind": reference.kind} if reference else None,
            size=_size(package, reference),
            quality=quality,
            latency=_latency(us, them),
            memory=_memory(us, them) | {"plan": package.manifest.get("memory")},
            energy=_energy(us, them, why_not),
            layers=layers(package.manifest),
            how=_how(ours, reference, self.repeats, self.budget_s),
        )

    def _quality(
        self, ours: Run, reference: Side | None, data: Iterable[dict], total: int | None, labels: np.ndarray | None
    ) -> dict:
        quality = Quality(labels)
        for count, sample in enumerate(data, 1):
            quality.add(ours(sample), reference.run(sample) if reference else None)
            self.progress(count, total, "comparing outputs")
        return quality.summary()


def layers(manifest: Mapping[str, Any]) -> list[dict]:
    """The manifest's layers, each with what the passes' notes say of a layer of that name."""
    notes: dict[str, dict] = {}
    for note in manifest["notes"]:
        if name := str(note.get("layer", "")).replace(".", "_"):
            notes[name] = merged(notes.get(name, {}), {k: v for k, v in note.items() if k != "layer"})
    rows = [{**notes.pop(row["name"].replace(".", "_"), {}), **row} for row in manifest["layers"]]
    rows += [{"name": name, **note} for name, note in notes.items()]
    return [{key: None if is_unbounded(value) else value for key, value in row.items()} for row in rows]


def did_something(note: dict) -> bool:
    """Whether a pass changed the layer."""
    return any(note.get(done) for done in ("pruned", "factorized", "clustered", "quantized"))


def merged(before: dict, note: dict) -> dict:
    """What passes before said of a layer and what one more says: those that did something to it have the word."""
    if not did_something(before):
        return {**before, **note}
    if not did_something(note):
        return {**note, **before}
    return {**before, **note, "pass": ", ".join(filter(None, (before.get("pass"), note.get("pass"))))}


def is_unbounded(value: Any) -> bool:
    """An infinity (the SNR of a layer without error) or NaN: JSON has neither."""
    return isinstance(value, float) and not math.isfinite(value)


def _labels(given: Any, samples: Samples) -> np.ndarray | None:
    labels = samples.labels() if given is None else np.asarray(given).reshape(-1)
    if labels is not None and labels.dtype.kind not in "iu":
        raise SampleError(f"labels: wanted integers, got {labels.dtype.name}")
    return labels


def _racer(side: Side) -> Racer:
    return Racer(side.name, side.order, side.run, side.times, cold=[as_cold(side.load_ms)] if side.load_ms else [])


def _about(package: Package) -> dict:
    said = package.manifest
    about = {"name": package.name, "target": said["target"].get("name", ""), "macs": said.get("macs")}
    return {**about, "source": said["source"], "applied": said["applied"], "versions": said["versions"]}


def _size(package: Package, reference: Side | None) -> dict:
    source = package.manifest["source"]["bytes"]
    row = {**package.sizes, "source": source, "ratio": package.sizes["package"] / source if source else None}
    if reference and reference.package:
        row["reference"] = reference.package.sizes["package"]
    elif reference and reference.order:
        row["reference"] = os.path.getsize(reference.order["path"])
    return row


def _latency(ours: Racer, reference: Racer | None) -> dict:
    row: dict[str, Any] = {"package": latency(ours), "reference": latency(reference) if reference else None}
    row["speedup"] = row["reference"]["median"] / row["package"]["median"] if reference else None
    return row


def _memory(ours: Racer, reference: Racer | None) -> dict:
    def one(racer: Racer | None) -> dict | None:
        return {"peak": racer.peak, "above_bare": racer.peak - racer.bare} if racer and racer.peak else None

    return {"package": one(ours), "reference": one(reference)}


def _energy(ours: Racer, reference: Racer | None, why_not: str) -> dict:
    def one(racer: Racer | None) -> dict | None:
        return {n: j / len(racer.ms) for n, j in racer.joules.items()} if racer and racer.joules else None

    return {"package": one(ours), "reference": one(reference), "unit": "J per inference", "not_measured": why_not}


def _how(ours: Side, reference: Side | None, repeats: int | None, budget_s: float) -> dict:
    machine = ours.machine or cpu.describe()
    ran = "on the device, by its clock" if ours.machine else "in a process of its own"
    if reference:
        ran += ", the reference too, in turns" if reference.order or reference.times else ", the reference in this one"
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {key: machine[key] for key in ("architecture", "model", "cores", "l1d", "l2", "l3")},
        "emulated": bool(machine.get("emulated", conditions.emulated() if not ours.machine else False)),
        "system": platform.platform(),
        "threads": ours.threads,
        "load_before": os.getloadavg()[0],
        "repeats": repeats,
        "budget_s": budget_s,
        "processes": ran,
    }
