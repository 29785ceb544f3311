"""Recipes side by side: size, speed and error against the same network uncompressed, and against other runtimes.

Weights are those of `subjects`: real sizes, seeded values. So speed and size mean what they say; errors are those of
weights that no training made robust, and are there to be compared with each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import tvmcompress as tc
from scripts.benchmark.network import race_all, snr_db, timed
from scripts.benchmark.others import quantized_by_openvino
from scripts.benchmark.subjects import network, random_samples
from scripts.benchmark.tables import where
from tvmcompress import cpu

NETWORKS = "resnet50,mobilenet_v2,encoder"
FLOAT = "uncompressed"
# Names of recipes that ship, or those of this file.
RECIPES = "int8,prune90,prune90-blocks,prune50-int8,prune80-blocks-int8,channels50,cluster16,lowrank,deep-compression"
OWN = {
    "prune90-blocks": "[fold_batch_norm]\n[fold_constants]\n[prune_blocks]\nblock = [16, 1]\ndensity = 0.1\n",
}
PEERS = ("onnxruntime float32", "openvino float32", "openvino default", "openvino int8")


def recipe(name: str) -> tc.Recipe:
    return tc.Recipe.from_toml(OWN[name], name) if name in OWN else tc.Recipe.load(name)


def measure(name: str, folder: Path, seconds: float, recipes: list[str], peers: bool = True) -> dict:
    """A row of JSON values: for each recipe ms, bytes, seconds to compile, error, and what became of its layers.

    Without `peers` nothing but our own packages is raced.
    """
    proto, path, threads = network(name), folder / f"{name}.onnx", cpu.usable()
    onnx.save(proto, path)
    model = tc.load(path)
    calibration, fresh = random_samples(model, 16), random_samples(model, 1, 99)[0]
    row: dict = {"name": name, "onnx": path.stat().st_size, "recipes": {}}
    orders, wanted = {}, None
    for key in [FLOAT, *recipes]:
        source = model if key == FLOAT else tc.compress(model, recipe(key), samples=calibration)
        package, spent = timed(tc.compile, source, "native")
        saved = folder / f"{name}-{key}.tar"
        package.save(saved)
        got = next(iter(tc.deploy(package)(fresh).values()))
        wanted = got if wanted is None else wanted
        zeros = [layer["sparse"] for layer in package.manifest["layers"] if layer.get("sparse")]
        row["recipes"][key] = {
            "bytes": package.sizes["package"], "compile_s": spent, "snr_db": snr_db(got, wanted),
            "sparse": sum(zero["kept"] for zero in zeros), "with_zeros": len(zeros),
        }  # fmt: skip
        orders[key] = {"kind": "package", "path": str(saved), "threads": threads}
    if not peers:
        row["ms"] = race_all(orders, fresh, seconds, None)
        return row
    orders["onnxruntime float32"] = {"kind": "onnx", "path": str(path), "threads": threads}
    quantized = quantized_by_openvino(path, calibration, folder)
    for key, file, precision in (("float32", path, "f32"), ("default", path, ""), ("int8", quantized, "")):
        orders[f"openvino {key}"] = {"kind": "openvino", "path": str(file), "threads": threads, "precision": precision}
    row["ms"] = race_all(orders, fresh, seconds, None)
    return row


def table(result: dict) -> str:
    """Markdown: a table for each network."""
    how = f"{where(result)}, no tuning; medians, ± as above."
    return "\n\n".join([how, *(one(row) for row in result["compressed"])])


def one(row: dict) -> str:
    ms = {key: value["median"] for key, value in row["ms"].items()}
    floats = [ms[peer] for peer in PEERS[:2] if peer in ms]
    told = "".join(f"; {peer} {ms[peer]:.3g} ms" for peer in PEERS if peer in ms)
    lines = [
        f"**{row['name']}** ({row['onnx'] / 1e6:.1f} MB as ONNX{told})", "",
        "| recipe | size | ms | faster than the best float32 peer | than OpenVINO's default | than OpenVINO int8 "
        "| than ours uncompressed | SNR | sparse kernels | compile |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for key, found in row["recipes"].items():
        time, spread = ms[key], rel_spread(row["ms"][key])
        against = [min(floats, default=None), ms.get("openvino default"), ms.get("openvino int8"), ms[FLOAT]]
        cells = [
            key, f"{found['bytes'] / row['onnx']:.3f}", f"{time:.3g} ±{spread:.0%}",
            *(f"{other / time:.2f} times" if other else "" for other in against),
            "" if key == FLOAT else f"{found['snr_db']:.1f} dB",
            f"{found['sparse']} of {found['with_zeros']}" if found["with_zeros"] else "", f"{found['compile_s']:.0f} s",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rel_spread(figures: dict) -> float:
    return float(np.divide(figures["p90"] - figures["p10"], 2 * figures["median"]))
