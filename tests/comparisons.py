"""A comparison made up for tests: three places, of which one is emulated, and two variants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tvmcompress.comparing import results
from tvmcompress.comparison import Comparison
from tvmcompress.measurement import bootstrap, instructions

PLACES = {"native": "x86_64", "orin@10.0.0.7:9090": "aarch64", "cortex-a72@127.0.0.1:9091": "aarch64"}
VARIANTS = {"float": 8.0, "int8": 2.0}  # ms on the first place; the second is three times as slow
KERNEL = "conv2d float32 1x56x56x64 to 64, 3x3"


def rounds(ms: float, seed: int = 0, sittings: int = 3, count: int = 10, noise: float = 0.02) -> list[list[float]]:
    """Medians of rounds about `ms`."""
    random = np.random.default_rng(seed)
    return (ms * (1 + noise * random.standard_normal((sittings, count)))).tolist()


def latency(ms: float, seed: int = 0) -> dict[str, Any]:
    given = rounds(ms, seed)
    found = bootstrap.median(given)
    more = {"p90": ms * 1.1, "p99": ms * 1.3, "min": ms * 0.9, "mean": ms, "spread": 0.1, "runs": 300}
    return {"median": found.value, "low": found.low, "high": found.high, "rounds": given, **more}


def result(place: str, variant: str, seed: int) -> dict[str, Any]:
    emulated = "127.0.0.1" in place
    ms = VARIANTS[variant] * (3 if "orin" in place else 1)
    exact = variant == "float"
    overall = {"snr_db": None if exact else 31.5, "exact": exact, "max_error": 0.0 if exact else 0.02}
    overall |= {"mean_error": 0.0, "cosine": 1.0, "equal": 1.0, "not_finite": 0, "top1_agreement": 1.0}
    size = 47_000_000 if exact else 12_000_000
    return {
        "place": place, "variant": variant, "emulated": emulated, "error": "", "build": place.split("@")[0],
        "size": {"package": size, "weights": size - 1000, "library": 900, "golden": 50, "manifest": 50},
        "macs": {"total": 10**9, "integer": 0 if exact else 10**9}, "plan": {"weights": size, "arena": 10**6},
        "quality": {"samples": 4, "outputs": [], "overall": overall, "accuracy": {"rows": 4, "package": 0.75}},
        "latency": None if emulated else latency(ms, seed), "memory": None, "energy": None,
    }  # fmt: skip


def table(place: str, variant: str, found: dict[str, Any]) -> dict[str, Any]:
    emulated, mix = found["emulated"], instructions.nothing()
    mix["all"] |= {"multiply-add": 80, "memory": 40, "scalar": 30}
    mix["inner"] |= {"multiply-add": 72, "memory": 20, "scalar": 4}
    rows = []
    for i, share in enumerate((0.6, 0.3)):
        ms = None if emulated else share * found["latency"]["median"]
        timed = {"ms": ms, "share": share, "gmacs": 100.0, "gflops": 200.0, "of_peak": 0.8}
        known = {"family": "tile", "macs": 5 * 10**8, "arithmetic": "float32", "key": KERNEL if not i else ""}
        given = timed if not emulated else dict.fromkeys(timed)
        row = {"name": f"fused_conv2d_{i}", "calls": 2, "result": [1, 56, 56, 64], **given, **known}
        rows.append({**row, "decisions": {"tile": {"pixels": 6 + i}, "unroll": 1}, "mix": mix})
    peaks = {} if emulated else {"float32": {"instruction": "fused multiply-add", "gmacs": 125.0}}
    overhead = None if emulated else 0.1 * found["latency"]["median"]
    return {
        "place": place, "variant": variant, "emulated": emulated, "apart": "orin" in place, "ms": None, "rounds": 5,
        "overhead_ms": overhead, "of_peak": 0.8, "threads": 2, "peaks": peaks, "rows": rows,
        "mix": instructions.added([mix, mix]),
    }  # fmt: skip


def cell(of: str, on: str, ratio: float | None, emulated: bool = False) -> dict[str, Any]:
    limits = {"low": ratio and ratio * 0.98, "high": ratio and ratio * 1.02}
    quality = {"exact": True, "snr_db": None}
    return {"variant": "float", "of": of, "on": on, "kernels": 12, "shared": 10, "carried": 7, "emulated": emulated,
            "same_code": False, "ratio": ratio, **limits, "quality": quality, "error": ""}  # fmt: skip


def comparison(**changes: Any) -> Comparison:
    rows = [result(place, v, i) for i, place in enumerate(PLACES) for v in VARIANTS]
    names, machine = list(PLACES), {"model": "a processor", "cores": 2, "l1d": 0, "l2": 0, "l3": 0}
    places = [
        {"name": name, "target": name.split("@")[0], "triple": f"{arch}-linux-gnu", "cpu": "", "address": "local",
         "machine_of": name if "orin" in name else "this machine", "machine": {**machine, "architecture": arch},
         "board": f"a {arch}", "emulated": "127.0.0.1" in name, "reached": True, "error": "", "energy": "no sensor"}
        for name, arch in PLACES.items()
    ]  # fmt: skip
    made = Comparison(
        model={"name": "resnet.onnx", "format": "onnx", "bytes": 46_000_000, "sha256": "ab" * 32, "inputs": []},
        places=places,
        variants=[{"name": "float", "applied": []}, {"name": "int8", "applied": ["QuantizeStatic()"]}],
        results=rows,
        ratios=results.ratios(places, rows),
        kernels=[table(row["place"], row["variant"], row) for row in rows],
        decisions=[{"variant": "float", "kernel": KERNEL, "decision": "tile.pixels",
                    "values": dict(zip(names, (6, 4, 4)))}],
        matrix=[cell(a, b, None if "127" in b else 1.2, "127" in b) for a in names for b in names if a != b],
        gate=None,
        how={"when": "2026-01-01T00:00:00+00:00", "system": "Linux", "versions": {"tvmcompress": "0"}, "samples": 4,
             "example_inputs": False, "threads": None, "budget_s": 3.0, "sittings": 3, "load_before": 0.1, "cores": 2},
    )  # fmt: skip
    return replace(made, **changes)
