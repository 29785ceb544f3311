"""Our own tuning of a network of the tests."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import tvmcompress as tc
from tests import networks
from tvmcompress.measurement import bootstrap

SITTINGS = 8


def model_of(folder: Path, network: str, recipe: str) -> tuple[tc.Model, Path]:
    path = folder / f"{network}.onnx"
    if not path.exists():
        onnx.save(getattr(networks, network)(), path)
    model = tc.load(path)
    if recipe:
        rng = np.random.default_rng(0)
        samples = [{s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in model.inputs} for _ in range(8)]
        model = tc.compress(model, recipe, samples=samples)
    return model, path


class Watch:
    """What happened, and when."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.curve: list[tuple[int, float, float]] = []  # trials, seconds, ms of all kernels
        self.untuned = 0.0
        self.done: dict[str, Any] = {}
        self.statuses: dict[str, int] = {}

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        if name == "progress":
            self.untuned = facts["untuned_ms"]
            self.curve.append((facts["trials"], time.monotonic() - self.begun, facts["ms"]))
        if name == "trial":
            self.statuses[facts["status"]] = self.statuses.get(facts["status"], 0) + 1
        if name == "done":
            self.done = dict(facts)


def run(folder: Path, network: str, recipe: str, seconds: float) -> dict:
    """Tunes for so long; the model's time untuned and tuned, in turns."""
    model, _ = model_of(folder, network, recipe)
    watch, log = Watch(), folder / "ours.db"
    tc.tune(model, "native", log=log, trials=10**6, budget_s=seconds, events=watch).close()
    spent = watch.done["seconds"]
    packages = {"untuned": tc.compile(model, "native"), "tuned": tc.compile(model, "native", log=log)}
    times = race(packages)
    return {
        "trials": watch.done["trials"],
        "failures": watch.done["failures"],
        "trials_per_minute": 60 * watch.done["trials"] / spent["all"],
        "seconds": spent,
        "outside": 1 - (spent["building"] + spent["measuring"]) / spent["all"],
        "ms": times,
        "gain": times["untuned"] / times["tuned"],
    }


def gain(folder: Path, network: str, recipe: str, trials: int, few: int = 150) -> dict:
    """End to end, in turns: untuned, after `few` trials, and after all of them, in the same run gone on with.

    What is compared are ratios within a round, for a machine that gets slower does so for all three; in several
    processes, in each of which they lie elsewhere in memory. `changed`: kernels whose decisions are others than
    untuned. `share_of_gain` is None where the gain of all trials may be none.
    """
    model, _ = model_of(folder, network, recipe)
    log, packages, found = folder / "ours.db", {"untuned": tc.compile(model, "native")}, dict[str, Any]()
    for count in (few, trials):
        watch = Watch()
        tc.tune(model, "native", log=log, trials=count, events=watch).close()
        packages[str(count)] = tc.compile(model, "native", log=log)
        found[str(count)] = {name: watch.done[name] for name in ("trials", "new", "failures", "seconds", "model_ms")}
    made = {name: decisions_of(package) for name, package in packages.items()}
    for name, package in packages.items():
        package.save(folder / f"{name}.tar")
    sat = [in_a_process(folder, list(packages), number) for number in range(SITTINGS)]
    ratios = {name: [list(1 - one[name] / one["untuned"]) for one in sat] for name in (str(few), str(trials))}
    gains = {name: bootstrap.median(rows) for name, rows in ratios.items()}
    first, last = gains[str(few)], gains[str(trials)]
    return {
        "runs": found,
        "ms": {name: float(np.median([one[name] for one in sat])) for name in packages},
        "changed": {name: sum(made[name][k] != made["untuned"].get(k) for k in made[name]) for name in gains},
        "gain": {name: one.json() for name, one in gains.items()},
        "share_of_gain": first.value / last.value if last.low > 0 else None,
    }


def in_a_process(folder: Path, names: list[str], first: int) -> dict[str, np.ndarray]:
    """ms of each package in each round, in a process of its own that loads another one first."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        order = names[first % len(names) :] + names[: first % len(names)]
        return {name: np.array(times) for name, times in pool.apply(rounds_of_saved, (folder, order)).items()}


def rounds_of_saved(folder: Path, names: list[str]) -> dict[str, list[float]]:
    return rounds_of({name: tc.Package.load(folder / f"{name}.tar") for name in names}, 80 // SITTINGS)


def decisions_of(package: tc.Package) -> dict[str, Any]:
    return {row["key"]: row["decisions"] for row in package.manifest["kernels"] if row["key"]}


def race(packages: Mapping[str, tc.Package], rounds: int = 15) -> dict[str, float]:
    """Median ms of each, in turns."""
    return {name: float(np.median(found)) for name, found in rounds_of(packages, rounds).items()}


def rounds_of(packages: Mapping[str, tc.Package], rounds: int = 15) -> dict[str, list[float]]:
    """ms of a run in each round, in turns."""
    deployments = {name: tc.deploy(package) for name, package in packages.items()}
    inputs, _ = next(iter(packages.values())).golden()
    times: dict[str, list[float]] = {name: [] for name in packages}
    for number in range(rounds):
        for name, deployment in list(deployments.items())[:: 1 if number % 2 else -1]:
            deployment(inputs)
            begun = time.perf_counter()
            for _ in range(10):
                deployment(inputs)
            times[name].append((time.perf_counter() - begun) * 100)
    return times
