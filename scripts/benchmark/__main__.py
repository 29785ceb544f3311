"""Measures the figures that README quotes, interleaved with what they are compared to, each runtime in its own process.

    scripts/bench                        all of it, about half an hour
    scripts/bench --networks resnet18    some networks
    scripts/bench --times                only latencies, of more networks, against the other runtimes
    scripts/bench --kernels              single convolutions, as shares of the processor's peak
    scripts/bench --sparse-layers        single layers with a tenth of their weights, as multiples of the dense peak
    scripts/bench --compressed           recipes side by side: size, speed and error of each
    scripts/bench --memory               also loading, compressing and compiling a model of 400 MB
    scripts/bench --readme               write the tables into README.md
    scripts/bench --from build/bench.json --readme    measure nothing, write it all from figures that are there

Networks are those of tests/networks.py, and as light_NAME those that the onnx package carries: real shapes, seeded
weights. Beside the JSON lie the same as Markdown, and charts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.benchmark import compressed, layers, memory, network, sparse_layers, tables
from scripts.benchmark.subjects import MORE, USUAL
from tvmcompress import cpu

ROOT = Path(__file__).parents[2]
MARKERS = ("<!-- figures: written by scripts/bench -->", "<!-- end of figures -->")
RECIPES = ("<!-- recipes: written by scripts/bench --compressed -->", "<!-- end of recipes -->")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("scripts/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--networks", help=f"default: {USUAL}; with --kernels: {layers.NETWORKS}")
    made.add_argument("--times", action="store_true", help=f"only latencies; default networks also {MORE}")
    made.add_argument("--kernels", action="store_true", help="only single convolutions")
    made.add_argument("--sparse-layers", action="store_true", help="only single 1x1 convolutions and products, pruned")
    made.add_argument("--recipe", default="prune90", help="with --sparse-layers")
    made.add_argument("--compressed", action="store_true", help="only recipes side by side")
    made.add_argument("--recipes", default=compressed.RECIPES, help="with --compressed")
    made.add_argument("--ours", action="store_true", help="with --compressed: without the other runtimes")
    made.add_argument("--seconds", type=float, default=8.0, help="of timing for each network")
    made.add_argument("--stock", default="resnet18,mobilenet_v2", help="networks also compiled by TVM's default")
    made.add_argument("--memory", action="store_true", help="also peak memory of compiling")
    made.add_argument("--readme", action="store_true", help="write the tables into README.md")
    made.add_argument("--from", type=Path, dest="stored", metavar="JSON", help="figures measured before")
    made.add_argument("--json", type=Path, help="default: build/bench.json; with --kernels: build/kernels.json")
    return made


def measure(options: argparse.Namespace) -> dict:
    """Everything that was asked for; each row is printed as soon as it is there."""
    result: dict = {"machine": cpu.model_name(), "threads": cpu.usable(), "commit": commit()}
    with tempfile.TemporaryDirectory(prefix="tvmcompress-bench-") as folder:
        if options.kernels:
            names = (options.networks or layers.NETWORKS).split(",")
            result["layers"] = layers.measure(Path(folder), names, show)
            return result
        if options.sparse_layers:
            names = (options.networks or sparse_layers.NETWORKS).split(",")
            result["recipe"] = options.recipe
            result["sparse_layers"] = sparse_layers.measure(Path(folder), names, options.recipe, show)
            return result
        if options.compressed:
            result["compressed"] = []
            for name in (options.networks or compressed.NETWORKS).split(","):
                recipes, peers = options.recipes.split(","), not options.ours
                row = compressed.measure(name, Path(folder), options.seconds, recipes, peers)
                print(compressed.one(row), file=sys.stderr, flush=True)
                result["compressed"].append(row)
            return result
        result["networks"] = []
        for name in (options.networks or (f"{USUAL},{MORE}" if options.times else USUAL)).split(","):
            stock = name in options.stock.split(",") and not options.times
            result["networks"].append(network.measure(name, Path(folder), options.seconds, stock, options.times))
            show(result["networks"][-1])
        if options.memory:
            result["memory"] = memory.memory(Path(folder))
    return result


def commit() -> str:
    """Which one is measured, and whether something was changed since."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def show(row: dict) -> None:
    print(json.dumps(without(row, ("profile", "rounds"))), file=sys.stderr, flush=True)


def without(value: object, keys: tuple[str, ...]) -> object:
    if not isinstance(value, dict):
        return value
    return {key: without(inner, keys) for key, inner in value.items() if key not in keys}


def write_readme(text: str, markers: tuple[str, str]) -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(markers[0], 1)
    after = rest.split(markers[1], 1)[1] if markers[1] in rest else rest
    readme.write_text(before + markers[0] + "\n" + text + "\n" + markers[1] + after)


def draw(result: dict, path: Path) -> None:
    """Charts beside the JSON at `path`."""
    from scripts.benchmark import chart

    if "compressed" in result or "sparse_layers" in result:
        return
    if "layers" in result:
        chart.layers(result, path.with_suffix(".png"))
        return
    chart.ratios(result, path.with_suffix(".png"))
    if all("profile" in row for row in result["networks"]):
        chart.shares(result, path.with_name(f"{path.stem}-shares.png"))


def text_of(result: dict) -> str:
    if "compressed" in result:
        return compressed.table(result)
    if "sparse_layers" in result:
        return sparse_layers.table(result)
    return tables.layers(result) if "layers" in result else tables.table(result)


def main() -> None:
    options = parser().parse_args()
    result = json.loads(options.stored.read_text()) if options.stored else measure(options)
    kinds = {"layers": "kernels", "sparse_layers": "sparse-layers", "compressed": "compressed"}
    kind = next((name for key, name in kinds.items() if key in result), "bench")
    single = kind != "bench"
    path = options.json or options.stored or ROOT / "build" / f"{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    text = text_of(result)
    print(text)
    whole = text if single else f"{text}\n\n{tables.kernels(result)}".rstrip()
    path.with_suffix(".md").write_text(whole + "\n")
    draw(result, path)
    if options.readme and kind in ("bench", "compressed"):
        write_readme(text, RECIPES if single else MARKERS)


if __name__ == "__main__":
    main()
