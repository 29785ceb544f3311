"""Where a package's time goes: each kernel's share of a run, with readings of the processor's peak in between.

This runs in the worker's process; `profile.Profile` is what is made of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

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
    """Medians over rounds of plain runs, watched runs, and readings of each kind of peak.

    {"ms": of a plain run, "overhead_ms": of a run outside kernels, "kernels": [{"name", "calls", "ms" of all calls
    together, "bytes" of all tensors of a call, "result": a shape, "of_peak" in the same round, where it multiplies}],
    "peaks": {arithmetic: {"instruction", "gmacs"}}, "copy_gbs", "rounds"}. Raises TvmcompressError for a program that
    calls something else each time.
    """
    target = Target.load(json.dumps(package.manifest["target"]))
    work = {row["name"]: row for row in package.manifest.get("kernels", [])}
    called, events = calls(program, lambda: program(arrays))
    first = {c.name: c for c in reversed(called)}
    names = list(dict.fromkeys(c.name for c in called))
    rows = np.array([names.index(c.name) for c in called], np.int64)
    before, after = (np.array([getattr(c, which) for c in called], np.int64) for which in ("before", "after"))
    counts = np.bincount(rows, minlength=len(names))
    peaks = {
        k: Peak(k, target, program.threads) for k in sorted({"float32"} | {w["arithmetic"] for w in work.values()})
    }
    copy, stamps = Bandwidth(program.threads), Stamps(target.to_tvm())
    plain, spent, gmacs, gbs = list[float](), list[np.ndarray](), list[dict[str, float]](), list[float]()

    def watched_run() -> np.ndarray:
        """What is spent in kernels, and in the last place what is spent elsewhere; without what watching costs."""
        whole, times = timed(program, arrays), stamps.take()
        if len(times) != events:
            return np.full(len(names) + 1, np.nan)
        cost = np.diff(times).min(initial=np.inf) if events else 0.0
        inside = np.bincount(rows, times[after] - times[before] - cost, len(names))
        return np.append(inside, whole - inside.sum() - events * cost)

    start = time.monotonic()
    while len(gmacs) < LEAST or time.monotonic() - start < seconds:
        plain += turn(lambda: timed(program, arrays))
        program.watch(stamps.function)
        try:
            spent.append(np.median(turn(watched_run), axis=0))
        finally:
            program.watch(None)
        time.sleep(PAUSE_S)
        gmacs.append({kind: peak.gmacs() for kind, peak in peaks.items()})
        gbs.append(copy.gbs())
    if np.isnan(spent).any():
        raise TvmcompressError("profile: what this program calls depends on data, so its calls cannot be told apart")
    kernels: list[dict] = []
    for column, (name, count) in enumerate(zip(names, counts)):
        ms = np.maximum([times[column] for times in spent], 1e-6)
        row = {"name": name, "calls": int(count), "ms": float(np.median(ms)), "bytes": first[name].bytes}
        kernels.append({**row, "result": first[name].result})
        if name in work:
            most = np.array([reading[work[name]["arithmetic"]] for reading in gmacs]) * ms * 1e6
            kernels[-1]["of_peak"] = float(np.median(work[name]["macs"] * count / most))
    # Between its calls a watched run takes longer, and a plain one is the more often interrupted: the less is true.
    whole, inside = float(np.median(plain)), sum(row["ms"] for row in kernels)
    outside = float(np.median([times[-1] for times in spent]))
    return {
        "ms": whole,
        "overhead_ms": max(min(outside, whole - inside), 0.0),
        "kernels": kernels,
        "peaks": {
            kind: {"instruction": peak.instruction, "gmacs": float(np.median([reading[kind] for reading in gmacs]))}
            for kind, peak in peaks.items()
        },
        "copy_gbs": float(np.median(gbs)),
        "rounds": len(gmacs),
    }


def timed(program: Program, arrays: Sequence[np.ndarray]) -> float:
    start = time.perf_counter()
    program(arrays)
    return (time.perf_counter() - start) * 1e3


def turn(run: Callable[[], Any]) -> list:
    """What `run` gives, again and again for a while."""
    start, found = time.monotonic(), list[Any]()
    while not found or time.monotonic() - start < TURN_S:
        found.append(run())
    return found
