"""One network: compressed and compiled, raced against the other runtimes, profiled, and compared in quality."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

import tvmcompress as tc
from scripts.benchmark.others import quantized_by_onnxruntime, quantized_by_openvino, run_onnx, stock_package
from scripts.benchmark.subjects import Sample, network, random_samples
from tvmcompress import cpu
from tvmcompress.measurement import race

PRECISIONS = ("float32", "bf16", "int8")
PROFILE_S = 2.0


def measure(name: str, folder: Path, seconds: float, stock: bool, times: bool) -> dict:
    """A row of JSON values. `times`: only latencies; `stock`: also what TVM's default makes of it."""
    proto = network(name)
    path = folder / f"{name}.onnx"
    onnx.save(proto, path)
    model = tc.load(path)
    calibration, fresh = random_samples(model, 16), random_samples(model, 4, 99)
    native = tc.Target.load("native")
    packages, row = {}, {"name": name, "bytes": {"onnx": path.stat().st_size}, "compile_s": {}}
    sources = {"float32": model, "int8": tc.compress(model, "int8", samples=calibration)}
    for key in ("bf16",) if times else ("int4-weights", "bf16"):
        sources[key] = tc.compress(model, key)
    for key, source in sources.items():
        packages[key], row["compile_s"][key] = timed(tc.compile, source, native)
        packages[key].save(folder / f"{name}-{key}.tar")
        row["bytes"][key] = packages[key].sizes["package"]
    row["integer_share"] = packages["int8"].manifest["macs"]["integer"] / packages["int8"].manifest["macs"]["total"]
    row["fallbacks"] = {key: package.manifest["fallbacks"] for key, package in packages.items()}
    theirs = quantized_by_onnxruntime(proto, calibration, folder)
    if not times:
        row["snr_db"] = quality(path, theirs, packages, fresh)
    threads = cpu.usable()
    orders = {
        key: {"kind": "package", "path": str(folder / f"{name}-{key}.tar"), "threads": threads} for key in PRECISIONS
    }
    orders["onnxruntime float32"] = {"kind": "onnx", "path": str(path), "threads": threads}
    orders["onnxruntime int8"] = {"kind": "onnx", "path": str(theirs), "threads": threads}
    for key, file, precision in (
        ("float32", path, "f32"),
        ("default", path, ""),
        ("int8", quantized_by_openvino(path, calibration, folder), ""),
    ):
        order = {"kind": "openvino", "path": str(file), "threads": threads, "precision": precision}
        orders[f"openvino {key}"] = order
    row["ms"] = race_all(orders, fresh[0], seconds, None)
    if not times:
        row["threads"] = scaling(folder / f"{name}-float32.tar", fresh[0])
        saved = {key: tc.Package.load(folder / f"{name}-{key}.tar") for key in PRECISIONS}
        row["profile"] = {key: profiles(package, fresh[0]) for key, package in saved.items()}
    if stock:
        package = stock_package(model, proto, folder)
        package.save(folder / "stock.tar")
        pair = {"stock": {"kind": "package", "path": str(folder / "stock.tar"), "threads": cpu.usable()}}
        pair["float32"] = orders["float32"]
        row["ms_stock"] = race_all(pair, fresh[0], seconds, 3)
    return row


def profiles(package: tc.Package, sample: Sample) -> dict[str, dict]:
    """{number of threads: profile}: with one, and with all that there are."""
    counts = sorted({1, cpu.usable()})
    return {str(count): tc.deploy(package, threads=count).profile(sample, PROFILE_S).json() for count in counts}


def race_all(orders: dict[str, dict], inputs: dict, seconds: float, repeats: int | None) -> dict:
    racers = [race.Racer(name, order) for name, order in orders.items()]
    race.race(racers, inputs, budget_s=seconds, repeats=repeats, cold_starts=1, sensors=())
    return {r.name: figures(r) for r in racers}


def figures(racer: race.Racer) -> dict:
    """In ms: percentiles of single runs, and the median of each round."""
    row = {key: race.latency(racer)[key] for key in ("median", "min", "p90", "runs")}
    return {**row, "p10": float(np.percentile(racer.ms, 10)), "rounds": racer.rounds}


def scaling(path: Path, sample: Sample, rounds: int = 12) -> dict:
    """How much faster two threads are than one, over the rounds in which this machine had two CPUs to give.

    A virtual machine's two CPUs are at times two halves of one core. So each round also runs two one-thread programs at
    once, which have nothing to do with each other: a round counts when these do at least 1.8 times the work of one.
    """
    from tvmcompress import runtime
    from tvmcompress.package import Package

    package = Package.load(path)
    one, other, two = (runtime.open_package(package, count) for count in (1, 1, 2))
    arrays = []
    for spec in package.inputs:
        arrays.append(runtime.aligned(spec.shape, np.dtype(spec.dtype)))
        np.copyto(arrays[-1], sample[spec.name])

    def fastest(program) -> float:
        return min(timed(program, arrays)[1] for _ in range(5))

    found = []
    for _ in range(rounds):
        alone, both = fastest(one), fastest(two)
        with ThreadPoolExecutor(2) as pool:
            at_once = max(pool.map(fastest, (one, other)))
        found.append({"gain": alone / both, "possible": 2 * alone / at_once})
    counted = [f["gain"] for f in found if f["possible"] >= 1.8]
    return {"gain": float(np.median(counted)) if counted else None, "counted": len(counted), "rounds": found}


def quality(path: Path, theirs: Path, packages: dict[str, tc.Package], samples: list[Sample]) -> dict[str, float]:
    """Medians of signal-to-noise ratios in dB against ONNX Runtime on the float file, or on `theirs` for that file."""
    same_file = tc.deploy(tc.compile(tc.load(theirs), tc.Target.load("native")))
    deployed = {key: tc.deploy(packages[key]) for key in ("int8", "float32", "int4-weights")}
    found: dict[str, list[float]] = {}
    for sample in samples:
        wanted, other = run_onnx(path, sample), run_onnx(theirs, sample)
        for key, run in deployed.items():
            found.setdefault(key, []).append(snr_db(next(iter(run(sample).values())), wanted))
        found.setdefault("onnxruntime_int8", []).append(snr_db(other, wanted))
        found.setdefault("same_qdq_file", []).append(snr_db(next(iter(same_file(sample).values())), other))
    return {key: float(np.median(values)) for key, values in found.items()}


def snr_db(got: np.ndarray, wanted: np.ndarray) -> float:
    noise = float(((got.astype(np.float64) - wanted) ** 2).sum())
    return 10 * float(np.log10((wanted.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start
