"""Single layers with few weights left: every distinct 1x1 convolution and matrix product of some networks, dense and
pruned, as a share of the processor's dense peak. The products counted are those of the dense layer. Times are those of
the kernels alone, and of the model of the layer alone: channels first, as ONNX has them. Beside each the share that it
would have if it took as long as an activation of as many bytes, of which half are written: no bound, for a product of
few rows writes less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import onnx

import tvmcompress as tc
from scripts.benchmark.layers import PROFILE_S, Layer, layers_of, shapes_of
from scripts.benchmark.subjects import network
from scripts.benchmark.tables import where
from tests import networks
from tvmcompress import cpu
from tvmcompress.measurement.profile import Profile

NETWORKS = "resnet50,mobilenet_v2,encoder"
BAR = 3.0  # times the dense peak
TURNS = 2


@dataclass(frozen=True, order=True)
class Product:
    """`rows` x `depth` times constant `depth` x `out`."""

    rows: int
    depth: int
    out: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.depth} to {self.out}"

    @property
    def macs(self) -> int:
        return self.rows * self.depth * self.out

    def model(self) -> onnx.ModelProto:
        net = networks.Net()
        weight = net.rng.standard_normal((self.depth, self.out)).astype(np.float32) / np.float32(np.sqrt(self.depth))
        y = net.node("MatMul", ["input", net.weight(weight)])
        return net.model((self.rows, self.depth), y, (self.rows, self.out))


def products_of(proto: onnx.ModelProto) -> set[Product]:
    """Those with constant right sides; shapes are inferred."""
    shapes, weights = shapes_of(proto)
    found = set()
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "Gemm") and len(weights.get(node.input[1], ())) == 2:
            *rows, depth = shapes[node.input[0]]
            found.add(Product(int(np.prod(rows)), depth, int(np.prod(weights[node.input[1]])) // depth))
    return found


def measure(folder: Path, names: list[str], recipe: str, told: Callable[[dict], None]) -> list[dict]:
    """A row for each layer; `told` gets it as soon as it is there."""
    users: dict[Layer | Product, list[str]] = {}
    for name in names:
        proto = network(name)
        for layer in [*(one for one in layers_of(proto, 1) if one.kernel == 1), *products_of(proto)]:
            users.setdefault(layer, []).append(name)
    rows = []
    for layer in sorted(users, key=lambda one: (type(one).__name__, astuple(one))):
        rows.append({"layer": str(layer), "networks": users[layer], **one(layer, recipe, folder)})
        told(rows[-1])
    return rows


def one(layer: Layer | Product, recipe: str, folder: Path) -> dict:
    """ms of the kernel dense and pruned, and of the whole model of this one layer; what became of it, and its share of
    the dense peak, and that which an activation of its bytes would have. All are measured in turns."""
    path = folder / "layer.onnx"
    onnx.save(layer.model(), path)
    model, native, sessions = tc.load(path), tc.Target.load("native"), {}
    steps = tc.Recipe.load(recipe)  # which would leave dense what reads the model's input, and small layers
    every = {"skip_first": False, "min_size": 0}
    passes = (replace(p, **{k: v for k, v in every.items() if hasattr(p, k)}) for p in steps.passes)
    pruned = tc.compress(model, replace(steps, passes=tuple(passes)))
    for key, source in (("dense", model), ("sparse", pruned)):
        tc.compile(source, native).save(folder / f"{key}.tar")
        sessions[key] = tc.deploy(folder / f"{key}.tar", threads=cpu.usable())
    size = kernel_of(sessions["sparse"].profile(budget_s=PROFILE_S / TURNS))["bytes"]
    sessions["moved"] = tc.deploy(moving(size, path), threads=cpu.usable())
    profiles: dict[str, list[Profile]] = {key: [] for key in sessions}
    for _ in range(TURNS):
        for key, session in sessions.items():
            profiles[key].append(session.profile(budget_s=PROFILE_S / TURNS))
    moved = float(np.median([sum(row["ms"] for row in profile.kernels) for profile in profiles.pop("moved")]))
    kernels = {key: [kernel_of(profile) for profile in found] for key, found in profiles.items()}
    ms = {key: float(np.median([row["ms"] for row in rows])) for key, rows in kernels.items()}
    whole = {key: float(np.median([profile.ms for profile in found])) for key, found in profiles.items()}
    peak = float(np.median([profile.peaks["float32"]["gmacs"] for found in profiles.values() for profile in found]))
    family, (share, most) = kernels["sparse"][0]["family"], (layer.macs / t / 1e6 / peak for t in (ms["sparse"], moved))
    return {"ms": ms, "model_ms": whole, "family": family, "of_peak": share, "most": most, "peak_gmacs": peak}


def moving(size: int, path: Path) -> tc.Package:
    """Reads and writes so many bytes together, and does next to nothing else."""
    net, shape = networks.Net(), (1, max(size // 8, 1))
    onnx.save(net.model(shape, net.node("Relu", ["input"]), shape), path)
    return tc.compile(tc.load(path), "native")


def kernel_of(profile: Profile) -> dict:
    (row,) = (kernel for kernel in profile.kernels if "macs" in kernel)
    return row


def table(result: dict) -> str:
    rows = result["sparse_layers"]
    lines = [
        f"{where(result)}, float32; {result['recipe']}.",
        "",
        "| layer | dense ms | sparse ms | faster | as a model | dense MACs, of the dense peak | as an activation "
        "| kernel | networks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        dense, sparse = row["ms"]["dense"], row["ms"]["sparse"]
        whole = row["model_ms"]["dense"] / row["model_ms"]["sparse"]
        lines.append(
            f"| {row['layer']} | {dense:.4f} | {sparse:.4f} | {dense / sparse:.2f} | {whole:.2f} | "
            f"{row['of_peak']:.2f} | {row['most']:.2f} | "
            f"{row['family']} | {', '.join(row['networks'])} |"
        )
    shares = [row["of_peak"] for row in rows]
    met = sum(share >= BAR for share in shares)
    mean = float(np.exp(np.mean(np.log(shares))))
    bound = sum(row["of_peak"] < BAR and row["most"] < BAR for row in rows)
    of_rest = f"of the rest {bound} have bytes for which an activation takes longer, too"
    told = f"{met} of {len(rows)} reach {BAR:g} times the peak; {of_rest}; geometric mean {mean:.2f}."
    return "\n".join([*lines, "", told])
