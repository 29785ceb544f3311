"""Measures the figures that README quotes, interleaved with what they are compared to, each runtime in its own process.

    scripts/bench                        all of it, about half an hour
    scripts/bench --networks resnet18    some networks
    scripts/bench --times                only latencies, of more networks, against the other runtimes
    scripts/bench --memory               also loading, compressing and compiling a model of 400 MB
    scripts/bench --readme               write the table into README.md

Networks are those of tests/networks.py, and as light_NAME those that the onnx package carries: real shapes, seeded
weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import tvmcompress as tc  # noqa: E402
from tests import networks  # noqa: E402
from tvmcompress import cpu  # noqa: E402
from tvmcompress.measurement import race  # noqa: E402

MARKERS = ("<!-- figures: written by scripts/bench -->", "<!-- end of figures -->")


def snr_db(got: np.ndarray, wanted: np.ndarray) -> float:
    noise = float(((got.astype(np.float64) - wanted) ** 2).sum())
    return 10 * float(np.log10((wanted.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


Sample = dict[str, np.ndarray]
USUAL = "resnet18,resnet50,mobilenet_v2,efficientnet,vision_transformer,keyword_spotter,recurrent"
MORE = (
    "encoder,detector,unet,squeeze,shuffle,light_bvlc_alexnet,light_densenet121,light_inception_v1,light_inception_v2,"
    "light_resnet50,light_shufflenet,light_squeezenet,light_vgg19,light_zfnet512"
)
# Larger than in the tests, where small ones do.
LARGER: dict[str, dict] = {"unet": {"size": 128, "width": 32}, "detector": {"size": 256}}
LARGER |= {name: {"size": 224} for name in ("squeeze", "shuffle")}


def network(name: str) -> onnx.ModelProto:
    if name.startswith("light_"):
        return networks.light(name.removeprefix("light_"))
    return getattr(networks, name)(**LARGER.get(name, {}))


def random_samples(model: tc.Model, count: int, seed: int = 0) -> list[Sample]:
    """Normal numbers, or for integers numbers of words."""
    rng = np.random.default_rng(seed)

    def values(spec) -> np.ndarray:
        if spec.dtype.startswith("int"):
            return rng.integers(0, 1000, spec.shape).astype(spec.dtype)
        return rng.standard_normal(spec.shape).astype(spec.dtype)

    return [{spec.name: values(spec) for spec in model.inputs} for _ in range(count)]


def stock_package(model: tc.Model, proto: onnx.ModelProto, folder: Path) -> tc.Package:
    """TVM's own default: its importer, its pipeline, no schedules, in the same package format."""
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    from tvmcompress import golden, linking
    from tvmcompress.ir import graph

    target = tc.Target.load("native")
    module = graph.rewrite(from_onnx(proto), lambda *_: None)
    library = folder / "stock.so"
    tvm.compile(module, target=target.to_tvm()).export_library(str(library), fcompile=linking.linker(target))
    inputs = golden.example_inputs(model.inputs)
    contents = tc.compile(model, target).manifest
    kept = {k: contents[k] for k in ("name", "target", "needs", "inputs", "outputs", "source", "applied", "notes")}
    manifest = {**kept, "layers": [], "entry": {"prepare": False}}
    return tc.Package.build(library=library, weights=[], manifest=manifest, golden_inputs=inputs, golden_outputs={})


def quantized_by_onnxruntime(proto: onnx.ModelProto, samples: list[Sample], folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict | None:
            return next(self.rest, None)

    source, out = folder / "model.onnx", folder / "ort-int8.onnx"
    onnx.save(proto, source)
    quantize_static(
        source, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def quantized_by_openvino(path: Path, samples: list[Sample], folder: Path) -> Path:
    import nncf
    import openvino

    out = folder / "openvino-int8.xml"
    calibration = nncf.Dataset(samples)
    quantized = nncf.quantize(openvino.convert_model(str(path)), calibration, subset_size=len(samples))
    openvino.save_model(quantized, str(out))
    return out


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


def run_onnx(path: Path, sample: Sample) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, sample)[0]


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def measure(name: str, folder: Path, seconds: float, stock: bool, times: bool) -> dict:
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
        key: {"kind": "package", "path": str(folder / f"{name}-{key}.tar"), "threads": threads}
        for key in ("float32", "int8", "bf16")
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
    if stock:
        package = stock_package(model, proto, folder)
        package.save(folder / "stock.tar")
        pair = {"stock": {"kind": "package", "path": str(folder / "stock.tar"), "threads": cpu.usable()}}
        pair["float32"] = orders["float32"]
        row["ms_stock"] = race_all(pair, fresh[0], seconds, 3)
    return row


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


def race_all(orders: dict[str, dict], inputs: dict, seconds: float, repeats: int | None) -> dict:
    racers = [race.Racer(name, order) for name, order in orders.items()]
    race.race(racers, inputs, budget_s=seconds, repeats=repeats, cold_starts=1, sensors=())
    return {r.name: {k: race.latency(r)[k] for k in ("median", "min", "p90", "runs")} for r in racers}


def memory(folder: Path, megabytes: int = 400) -> dict:
    """Peak memory of a process that loads, compresses and compiles a model of that size, against its file."""
    path = folder / "large.onnx"
    onnx.save(large(megabytes), path)
    found = {"file": path.stat().st_size}
    for recipe in ("float32", "int8", "int4-weights"):
        code = (
            "import numpy as np, tvmcompress as tc\n"
            f"model = tc.load({str(path)!r})\n"
            f"samples = [np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype('float32')]\n"
            + (f"model = tc.compress(model, {recipe!r}, samples=samples)\n" if recipe != "float32" else "")
            + f"tc.compile(model, tc.Target.load('native')).save({str(folder / 'large.tar')!r})\n"
            "status = open('/proc/self/status').read()\n"
            "print(int(status.split('VmHWM:')[1].split()[0]) * 1024)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        found[recipe] = int(done.stdout.split()[-1]) if done.returncode == 0 else done.stderr[-300:]
    return found


def large(megabytes: int) -> onnx.ModelProto:
    net = networks.Net()
    width, x = 2048, "input"
    for _ in range(max(1, megabytes * 2**20 // (width * width * 4))):
        x = net.node("Relu", [net.linear(x, width, width)])
    return net.model((1, width), x, (1, width))


def decibels(value: float) -> str:
    return "identical" if value > 200 else f"{value:.1f} dB"


def table(result: dict) -> str:
    """Markdown: ratios first, since machines differ."""
    lines = [
        f"Machines differ, ratios less so. This one: {result['machine']}, {result['threads']} threads, batch 1, "
        "no tuning; medians of interleaved runs, each runtime in its own process.",
        "",
        "| network | float32 ms | against ONNX Runtime | against OpenVINO | bfloat16 ms | against OpenVINO's default "
        "| int8 ms | against ONNX Runtime int8 | against OpenVINO int8 | int8 against float32 | 2 threads against 1 |",
        "|---" * 11 + "|",
    ]
    for row in result["networks"]:
        ms = {key: value["median"] for key, value in row["ms"].items()}
        gain = row["threads"]["gain"] if "threads" in row else None
        lines.append(
            f"| {row['name']} | {ms['float32']:.2f} | {ms['float32'] / ms['onnxruntime float32']:.2f} "
            f"| {ms['float32'] / ms['openvino float32']:.2f} "
            f"| {ms['bf16']:.2f} | {ms['bf16'] / ms['openvino default']:.2f} "
            f"| {ms['int8']:.2f} | {ms['int8'] / ms['onnxruntime int8']:.2f} "
            f"| {ms['int8'] / ms['openvino int8']:.2f} | {ms['float32'] / ms['int8']:.2f} times faster "
            f"| {f'{gain:.2f} times faster' if gain else 'not measured'} |"
        )
    lines += ["", geometric(result["networks"])]
    if not all("snr_db" in row for row in result["networks"]):
        return "\n".join(lines)
    lines += [
        "",
        "Two threads against one: while two programs that have nothing to do with each other got two cores; the "
        "CPUs of a virtual machine are at times two halves of one core.",
    ]
    stock = [r for r in result["networks"] if "ms_stock" in r]
    if stock:
        pairs = [(r["name"], r["ms_stock"]["stock"]["median"] / r["ms_stock"]["float32"]["median"]) for r in stock]
        ratios = ", ".join(f"{name} {ratio:.0f} times" for name, ratio in pairs)
        lines += ["", f"Against TVM's own default, in float32: {ratios} faster."]
    lines += [
        "",
        "| network | float32 ONNX | int8 package | 4-bit package | MACs in integers | int8 SNR "
        "| ONNX Runtime's int8 SNR | same QDQ file, ours against ONNX Runtime | 4-bit SNR | compile int8 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["networks"]:
        size, snr = row["bytes"], row["snr_db"]
        lines.append(
            f"| {row['name']} | {size['onnx'] / 1e6:.1f} MB | {size['int8'] / size['onnx']:.3f} | "
            f"{size['int4-weights'] / size['onnx']:.3f} | {row['integer_share']:.1%} | {snr['int8']:.1f} dB | "
            f"{snr['onnxruntime_int8']:.1f} dB | {decibels(snr['same_qdq_file'])} | {snr['int4-weights']:.1f} dB | "
            f"{row['compile_s']['int8']:.0f} s |"
        )
    if "memory" in result:
        used, size = result["memory"], result["memory"]["file"]
        ratios = ", ".join(f"{k} {used[k] / size:.2f}" for k in used if k != "file" and isinstance(used[k], int))
        lines += ["", f"Peak memory of load, compress and compile over a {size / 2**20:.0f} MB model's size: {ratios}."]
    return "\n".join(lines)


RIVALS = {
    "float32": ("onnxruntime float32", "openvino float32"),
    "bf16": ("openvino default",),
    "int8": ("onnxruntime int8", "openvino int8"),
}


def geometric(rows: list[dict]) -> str:
    """The geometric mean of the ratios to the better rival, and the greatest."""
    said = []
    for key, rivals in RIVALS.items():
        ratios = {r["name"]: r["ms"][key]["median"] / min(r["ms"][v]["median"] for v in rivals) for r in rows}
        worst = max(ratios, key=lambda name: ratios[name])
        mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
        said.append(f"{key} {mean:.2f} (greatest {ratios[worst]:.2f}, {worst})")
    return "Geometric mean of our time against the better of the others: " + ", ".join(said) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", help=f"default: {USUAL}")
    parser.add_argument("--times", action="store_true", help=f"only latencies; default networks also {MORE}")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing for each network")
    parser.add_argument("--stock", default="resnet18,mobilenet_v2", help="networks also compiled by TVM's default")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    result: dict = {"machine": cpu.model_name(), "threads": cpu.usable(), "networks": []}
    with tempfile.TemporaryDirectory(prefix="tvmcompress-bench-") as folder:
        for name in (options.networks or (f"{USUAL},{MORE}" if options.times else USUAL)).split(","):
            stock = name in options.stock.split(",") and not options.times
            row = measure(name, Path(folder), options.seconds, stock, options.times)
            result["networks"].append(row)
            print(json.dumps(result["networks"][-1]), flush=True)
        if options.memory:
            result["memory"] = memory(Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1))
    text = table(result)
    print(text)
    if options.readme:
        readme = ROOT / "README.md"
        before, rest = readme.read_text().split(MARKERS[0], 1)
        after = rest.split(MARKERS[1], 1)[1] if MARKERS[1] in rest else rest
        readme.write_text(before + MARKERS[0] + "\n" + text + "\n" + MARKERS[1] + after)


if __name__ == "__main__":
    main()
