"""Where a package's time goes: each kernel's share of a run, with readings of the processor's peak in between.

This runs in the worker's process; `profile.Profile` is what is made of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np

from tvmcompress.errors import TvmcompressError
from tvmcompress.measurement.peak import Bandwidth, Peak
from tvmcompress.measurement.stamps import Stamps, calls
from tvmcompress.package import Package
from tvmcompress.runtime import Program
from tvmcompress.target import Target

TURN_S = 0.06  # of runs, then of runs that are watched
PAUSE_S = 0.02  # until the library's threads have stopped spinning
LEAST = 3  # rounds


def profile(package: Package, program: Program, arrays: Sequence[np.ndarray], seconds: float) -> dict:
    """Medians over rounds of: plain runs, watched runs, each kind of peak.

    {"ms": of a plain run, "overhead_ms": of a watched one outside kernels, "kernels": [{"name", "calls", "ms" of all
    calls together, "bytes" of all tensors of a call, "result": a shape}], "peaks": {arithmetic: {"instruction",
    "gmacs"}}, "copy_gbs", "rounds"}. Raises TvmcompressError for a program that calls something else each time.
    """
    target = Target.load(json.dumps(package.manifest["target"]))
    called, events = calls(program, lambda: program(arrays))
    names = list(dict.fromkeys(c.name for c in called))
    rows = np.array([names.index(c.name) for c in called], np.int64)
    before, after = (np.array([getattr(c, which) for c in called], np.int64) for which in ("before", "after"))
    kinds = sorted({"float32"} | {row["arithmetic"] for row in package.manifest.get("kernels", [])})
    peaks = {kind: Peak(kind, target, program.threads) for kind in kinds}
    copy, stamps = Bandwidth(program.threads), Stamps(target.to_tvm())
    plain, outside, inside = list[float](), list[float](), list[np.ndarray]()
    gmacs: dict[str, list[float]] = {kind: [] for kind in kinds}
    gbs: list[float] = []

    def plain_run() -> None:
        start = time.perf_counter()
        program(arrays)
        plain.append((time.perf_counter() - start) * 1e3)

    def watched_run() -> None:
        start = time.perf_counter()
        program(arrays)
        whole = (time.perf_counter() - start) * 1e3
        times = stamps.take()
        if len(times) == events:
            spent = times[after] - times[before]
            inside.append(np.bincount(rows, spent, len(names)))
            outside.append(whole - spent.sum())

    start, rounds = time.monotonic(), 0
    while rounds < LEAST or time.monotonic() - start < seconds:
        turn(plain_run)
        program.watch(stamps.function)
        try:
            turn(watched_run)
        finally:
            program.watch(None)
        time.sleep(PAUSE_S)
        for kind, peak in peaks.items():
            gmacs[kind].append(peak.gmacs())
        gbs.append(copy.gbs())
        rounds += 1
    if not inside:
        raise TvmcompressError("profile: what this program calls depends on data, so its calls cannot be told apart")
    spent = np.median(inside, axis=0)
    first = {c.name: c for c in reversed(called)}
    kernels = [
        {"name": n, "calls": int(k), "ms": float(ms), "bytes": first[n].bytes, "result": first[n].result}
        for n, k, ms in zip(names, np.bincount(rows, minlength=len(names)), spent)
    ]
    return {
        "ms": float(np.median(plain)),
        "overhead_ms": float(np.median(outside)),
        "kernels": kernels,
        "peaks": {k: {"instruction": p.instruction, "gmacs": float(np.median(gmacs[k]))} for k, p in peaks.items()},
        "copy_gbs": float(np.median(gbs)),
        "rounds": rounds,
    }


def turn(run) -> None:
    start = time.monotonic()
    while time.monotonic() - start < TURN_S:
        run()
