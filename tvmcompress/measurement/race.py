"""Timing two runtimes fairly: each in a process of its own, in short turns, so that drift meets both alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvmcompress import energy
from tvmcompress.errors import TvmcompressError
from tvmcompress.measurement.worker import times
from tvmcompress.samples import save_npz

TURN_MS = 60.0  # one runtime's turn lasts about this long
PAUSE_S = 0.02  # after a turn, until the pool's threads have stopped spinning
LEAST, MOST = 10, 2000  # runs of each


@dataclass
class Racer:
    """One side: what to load, or a function of this process."""

    name: str
    order: dict | None = None  # the worker's first line, without inputs
    function: Callable[[Mapping[str, np.ndarray]], Any] | None = None
    timer: Callable[[Mapping[str, np.ndarray], int], list[float]] | None = None  # what times itself, elsewhere
    ms: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)  # the median of each turn
    joules: dict[str, float] = field(default_factory=dict)
    cold: list[dict] = field(default_factory=list)
    peak: int = 0
    bare: int = 0


class Worker:
    """The process of a Racer. Use with `with`."""

    def __init__(self, racer: Racer, inputs: Path):
        # The child must find this very copy of the project, wherever it was imported from.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "tvmcompress.measurement.worker"]
        self.name = racer.name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.start = self.ask({**(racer.order or {}), "inputs": str(inputs)})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, order: dict) -> dict:
        """Send one line, wait for the answer. Raises TvmcompressError when the process fails or dies."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            error = self._process.communicate()[1].strip().splitlines()
            reason = error[-1] if error else f"exit status {self._process.returncode}"
            raise TvmcompressError(f"measuring {self.name}: its process ended: {reason}")
        answer = json.loads(line)
        if "error" in answer:
            raise TvmcompressError(f"measuring {self.name}: {answer['error']}")
        return answer


def race(
    racers: Sequence[Racer],
    inputs: Mapping[str, np.ndarray],
    *,
    budget_s: float,
    repeats: int | None,
    cold_starts: int,
    sensors: Sequence[energy.Sensor],
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Fill in each racer's figures. With `repeats`, so many runs each; else as many as fit in `budget_s`."""
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        path = Path(folder, "inputs.npz")
        save_npz(path, inputs)
        for _ in range(max(cold_starts - 1, 0)):
            for racer in racers:
                if racer.order:
                    with Worker(racer, path) as worker:
                        racer.cold.append(worker.start)
        _race(racers, path, inputs, budget_s, repeats, sensors, progress)


def _race(
    racers: Sequence[Racer],
    path: Path,
    inputs: Mapping[str, np.ndarray],
    budget_s: float,
    repeats: int | None,
    sensors: Sequence[energy.Sensor],
    progress: Callable[[float], None],
) -> None:
    workers: list[Worker | None] = []
    try:
        for racer in racers:
            workers.append(Worker(racer, path) if racer.order else None)
        turns = [_turn(racer, worker, inputs) for racer, worker in zip(racers, workers)]
        sizes = [_runs_in_a_turn(turn) for turn in turns]
        start = time.monotonic()
        while not _enough(racers, time.monotonic() - start, budget_s, repeats):
            for racer, turn, size in zip(racers, turns, sizes):
                size = size if repeats is None else min(size, repeats - len(racer.ms))
                if size > 0:
                    before = energy.read(sensors)
                    ms = turn(size)
                    racer.ms += ms
                    racer.rounds.append(statistics.median(ms))
                    for name, joules in energy.since(before, sensors).items():
                        racer.joules[name] = racer.joules.get(name, 0.0) + joules
                    time.sleep(PAUSE_S)
            done = min(len(r.ms) for r in racers) / repeats if repeats else (time.monotonic() - start) / budget_s
            progress(min(done, 1.0))
        for racer, worker in zip(racers, workers):
            if worker:
                racer.cold.append(worker.start)
                racer.peak = worker.ask({"peak": True})["peak_bytes"]
                racer.bare = worker.start["bare_bytes"]
    finally:
        for worker in workers:
            if worker:
                worker.__exit__()


def _turn(racer: Racer, worker: Worker | None, inputs: Mapping[str, np.ndarray]) -> Callable[[int], list[float]]:
    if worker is not None:
        return lambda count: worker.ask({"run": count})["ms"]
    if racer.timer is not None:
        timer = racer.timer
        return lambda count: timer(inputs, count)
    function = racer.function
    assert function is not None
    return lambda count: times(lambda: function(inputs), count)


def _runs_in_a_turn(turn: Callable[[int], list[float]]) -> int:
    turn(2)  # warm: caches, memory pools, the frequency of the cores
    return max(1, min(200, round(TURN_MS / max(min(turn(3)), 1e-3))))


def _enough(racers: Sequence[Racer], seconds: float, budget_s: float, repeats: int | None) -> bool:
    fewest = min(len(racer.ms) for racer in racers)
    if repeats is not None:
        return fewest >= repeats
    return fewest >= MOST or (fewest >= LEAST and seconds >= budget_s)


def as_cold(load_ms: Mapping[str, float]) -> dict:
    """A program's `load_ms` as a fresh process would tell it."""
    return {f"{part}_ms": ms for part, ms in load_ms.items()}


def latency(racer: Racer) -> dict:
    """Percentiles in ms; and the cold start, loading and what is known of its parts as medians of fresh processes."""
    ms = np.asarray(racer.ms)
    row: dict[str, Any] = {"runs": len(ms), "min": float(ms.min()), "mean": float(ms.mean())}
    for name, share in (("median", 50), ("p90", 90), ("p99", 99)):
        row[name] = float(np.percentile(ms, share))
    for name in ("cold_start", "load", "unpack", "prepare"):
        known = [cold[f"{name}_ms"] for cold in racer.cold if f"{name}_ms" in cold]
        row[name] = float(np.median(known)) if known else None
    edges = np.percentile(ms, [0, 99])
    counts, bounds = np.histogram(ms, bins=24, range=(edges[0], max(edges[1], edges[0] * 1.001)))
    row["histogram"] = {"from": float(bounds[0]), "to": float(bounds[-1]), "counts": counts.tolist()}
    return row
