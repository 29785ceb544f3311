import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from tests import standin
from tvmcompress import energy
from tvmcompress.deployment import deploy
from tvmcompress.errors import InputError, ModelError, SampleError, TvmcompressError, UsageError
from tvmcompress.measurement.measure import layers
from tvmcompress.measurement.quality import Quality
from tvmcompress.measurement.race import Racer, race
from tvmcompress.report import Report, bytes_text, ms_text

X = np.random.default_rng(1).normal(size=(3, *standin.SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return standin.package(standin.library(tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="module")
def deployment(package):
    return deploy(package)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "stand-in.onnx"
    standin.save_onnx(path)
    return path


@pytest.fixture(scope="module")
def report(deployment, onnx_file):
    return deployment.measure(X, reference=onnx_file, repeats=20, cold_starts=1, labels=[0, 1, 2, 3, 4, 0])


def text_of(report):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    return console.export_text()


def test_snr_is_ten_log_signal_over_noise():
    quality = Quality()
    wanted, got = np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])  # signal 25, noise 0.25: a hundred times, 20 dB
    quality.add({"y": got}, {"y": wanted})
    row = quality.summary()["overall"]
    assert math.isclose(row["snr_db"], 20.0) and row["max_error"] == 0.5 and row["mean_error"] == 0.25
    assert math.isclose(row["cosine"], (9 + 18) / (5 * math.sqrt(9 + 20.25)))
    assert row["top1_agreement"] == 1.0 and row["equal"] == 0.5 and not row["exact"]


def test_quality_adds_up_over_samples_and_outputs():
    random = np.random.default_rng(0)
    wanted = {"a": random.normal(size=(10, 4)), "b": random.normal(size=(10, 2, 2))}
    got = {name: array + random.normal(size=array.shape) * 0.1 for name, array in wanted.items()}
    quality = Quality()
    for i in range(10):
        quality.add({n: a[i : i + 1] for n, a in got.items()}, {n: a[i : i + 1] for n, a in wanted.items()})
    summary = quality.summary()
    signal = sum((a**2).sum() for a in wanted.values())
    noise = sum(((got[n] - wanted[n]) ** 2).sum() for n in wanted)
    assert math.isclose(summary["overall"]["snr_db"], 10 * math.log10(signal / noise))
    assert summary["outputs"][0]["top1_agreement"] == (got["a"].argmax(1) == wanted["a"].argmax(1)).mean()
    assert summary["outputs"][1]["top1_agreement"] is None and summary["samples"] == 10


def test_equal_outputs_are_exact_and_nan_is_counted():
    quality = Quality()
    quality.add(
        {"y": np.ones((1, 2)), "z": np.array([np.nan, 1, 2])}, {"y": np.ones((1, 2)), "z": np.array([0.0, 1, 2])}
    )
    exact, broken = quality.summary()["outputs"]
    assert exact["exact"] and exact["snr_db"] is None and exact["max_error"] == 0
    assert broken["not_finite"] == 1 and not broken["exact"]


def test_accuracy_of_both_sides():
    quality = Quality(np.array([0, 1, 1]))
    quality.add({"y": np.array([[9, 1], [1, 9], [9, 1]])}, {"y": np.array([[9, 1], [1, 9], [1, 9]])})
    assert quality.summary()["accuracy"] == {"rows": 3, "package": 2 / 3, "reference": 1.0}


@pytest.mark.parametrize(
    ("labels", "got", "wanted", "message"),
    [
        ([1], {"y": np.ones((2, 3))}, None, "there are 1, fewer than the samples' rows"),
        ([1], {"y": np.ones((2, 3, 4))}, None, "no output holds class scores"),
        (None, {"y": np.ones(3)}, {"z": np.ones(3)}, "the reference has no output 'y'; it has 'z'"),
        (None, {"y": np.ones(3)}, {"y": np.ones(4)}, "shape"),
    ],
)
def test_what_cannot_be_compared(labels, got, wanted, message):
    with pytest.raises(SampleError, match=message):
        Quality(None if labels is None else np.array(labels)).add(got, wanted)


def test_a_report_has_all_its_figures(report, package, onnx_file):
    assert report.quality["samples"] == 3 and report.quality["overall"]["snr_db"] > 100
    assert report.quality["accuracy"]["rows"] == 6
    assert (
        report.size["package"] == package.path.stat().st_size and report.size["reference"] == onnx_file.stat().st_size
    )
    for side in ("package", "reference"):
        row = report.latency[side]
        assert 0 < row["min"] <= row["median"] <= row["p90"] <= row["p99"] and row["runs"] == 20
        assert row["cold_start"] > row["median"] and sum(row["histogram"]["counts"]) >= 19
        assert 5e6 < report.memory[side]["above_bare"] < report.memory[side]["peak"]
    assert report.reference == {"name": "stand-in.onnx in ONNX Runtime", "kind": "onnxruntime"}
    assert report.layers == [
        {"name": "fc", "snr_db": 38.2, "kind": "matmul", "macs": 160, "bytes": 340, "integer": False}
    ]


def test_energy_is_measured_or_it_says_why(report):
    found, why_not = energy.sensors()
    if found:
        assert all(joules >= 0 for joules in report.energy["package"].values())
    else:
        assert report.energy["package"] is None and report.energy["not_measured"] == why_not != ""
        assert "Energy was not measured: " in text_of(report)


def test_json_comes_back(report, tmp_path):
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1}'])
def test_what_is_not_a_report(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match=r"r\.json"):
        Report.load(tmp_path / "r.json")


def test_the_table_shows_both_sides(report):
    text = text_of(report)
    assert "stand-in on native" in text and "stand-in.onnx in ONNX Runtime" in text
    for what in ("package file", "median", "cold start", "peak of the process", "signal to noise", "accuracy", "fc"):
        assert what in text


def test_pruned_layers_have_a_table(report):
    from dataclasses import replace

    row = {"name": "conv_7", "pruned": True, "macs": 250, "macs_before": 1000, "outputs": 32, "outputs_before": 64}
    text = text_of(replace(report, layers=[row, {**row, "name": "kept", "pruned": False}]))
    (line,) = [line for line in text.splitlines() if "conv_7" in line]
    assert line.split() == ["conv_7", "all", "64", "→", "32", "25%"] and "kept" not in text


def test_layers_with_zeros_have_a_table(report):
    dense = {"density": 0.5, "format": "dense", "kept": False, "dense_bytes": 4000, "bytes": 4000}
    sparse = {"density": 0.125, "format": "rows", "kept": True, "dense_bytes": 4000, "bytes": 1000, "estimate": 0.25}
    layers = [
        {"name": "full", "macs": 1},
        {"name": "conv_1", "sparse": {**sparse, "whole": 0.4}},
        {"name": "conv_2", "sparse": {**dense, "estimate": 1.3, "why": "rows would take 1.30 times as long"}},
        {"name": "<conv_3>", "sparse": {**dense, "why": "grouped"}},
    ]
    told = dataclasses.replace(report, layers=layers)
    text, page = text_of(told), told.html()
    assert "Layers with zeros: 1 of 3 in sparse kernels" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if "conv_" in line}
    assert lines["conv_1"][1:] == ["rows", "12.5%", "0.25", "0.25", "yes"]
    assert lines["conv_2"][1:6] == ["dense", "50.0%", "1.30", "1.00", "no:"]
    assert lines["<conv_3>"][1:] == ["dense", "50.0%", "–", "1.00", "no:", "grouped"]
    assert "<td class=text>rows</td><td>12.5%</td><td>0.25</td><td>0.25</td>" in page and "&lt;conv_3&gt;" in page
    for shown in (text, page):
        assert "takes 0.40 of the time that it takes with dense kernels" in shown
    assert "Layers with zeros" not in report.html() + text_of(report)


def test_layers_with_shared_values_have_one_of_their_own(report):
    row = {"density": 0.9, "format": "16 values looked up", "kept": True, "dense_bytes": 400, "bytes": 400}
    looked = {"name": "fc", "shared": {**row, "estimate": 0.25, "whole": 0.6}}
    unpacked = {"name": "conv", "shared": {**row, "format": "unpacked", "kept": False, "why": "20 rows"}}
    told = dataclasses.replace(report, layers=[looked, unpacked])
    text, page = text_of(told), told.html()
    assert "Layers with shared values: 1 of 2 looked up as they are used" in text and "Layers with zeros" not in text
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["fc"]]
    assert line.split()[1:] == ["16", "values", "looked", "up", "90.0%", "0.25", "1.00", "yes"]
    for shown in (text, page):
        assert "takes 0.60 of the time that it takes with unpacked weights" in shown and "20 rows" in shown


def test_a_program_that_was_timed_and_stays_dense_says_so(report):
    zeros = {"density": 0.5, "format": "dense", "kept": False, "dense_bytes": 4, "bytes": 4, "why": "measured: slower"}
    told = dataclasses.replace(report, layers=[{"name": "conv", "sparse": {**zeros, "whole": 1.25}}])
    assert "with sparse kernels the whole program takes 1.25 of its time, so it stays dense" in told.html()


def test_the_page_needs_nothing_else(report):
    page = report.html()
    assert "<script" not in page and not re.search(r"(src|href)=|url\(|@import|https?://", page)
    assert page.count("<svg") == 4 and "stand-in.onnx in ONNX Runtime" in page and "38.2 dB" in page


def test_names_cannot_break_the_page(report):
    from dataclasses import replace

    evil = "<img src=x onerror=alert(1)>"
    layer = {**report.layers[0], "name": evil, "why": evil}
    page = replace(report, package={**report.package, "name": evil}, layers=[layer]).html()
    assert "<img" not in page and page.count("&lt;img") >= 4


@pytest.mark.parametrize(("load", "busy"), [(0.1, False), (5000.0, True)])
def test_a_busy_machine_is_told(report, load, busy):
    from dataclasses import replace

    told = replace(report, how={**report.how, "load_before": load})
    assert ("The machine was busy" in text_of(told)) is busy
    assert ("The machine was busy" in told.html()) is busy


def test_a_function_and_a_package_can_be_the_reference(deployment, package):
    report = deployment.measure(
        X, reference=lambda inputs: {"y": deployment(inputs)["y"] * 2}, repeats=10, cold_starts=1
    )
    assert math.isclose(report.quality["overall"]["snr_db"], 10 * math.log10(4), rel_tol=1e-6)
    assert report.latency["reference"]["cold_start"] is None
    report = deployment.measure(X, reference=package, repeats=10, cold_starts=1)
    assert report.quality["overall"]["exact"] and report.latency["reference"]["cold_start"] > 0


def test_without_a_reference(deployment):
    report = deployment.measure(X, repeats=10, cold_starts=1)
    assert report.reference is None and report.latency["speedup"] is None and report.quality["overall"] is None
    assert "median" in text_of(report) and "reference" not in report.html().split("How it was")[0].split("</style>")[1]


def test_a_model_needs_a_compiler(deployment, tmp_path):
    with pytest.raises(UsageError, match="must be compiled"):
        deployment.measure(X, reference=object())
    with pytest.raises(ModelError, match="no file"):
        deployment.measure(X, reference=tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load it"):
        deployment.measure(X, reference=tmp_path / "bad.onnx")


def test_a_model_is_compiled_for_the_packages_target(package):
    asked = []

    def compile(model, target):
        asked.append((model, target))
        return package

    model = object()
    report = deploy(package, compile=compile).measure(X, reference=model, repeats=10, cold_starts=1)
    assert asked == [(model, {"name": "native"})] and report.quality["overall"]["exact"]


def test_a_worker_that_dies_is_an_error_of_one_line(tmp_path):
    racer = Racer("nothing", {"kind": "package", "path": str(tmp_path / "none.tar"), "threads": 1})
    with pytest.raises(TvmcompressError, match=r"measuring nothing: .*No such file"):
        race([racer], {"x": X[0]}, budget_s=1, repeats=1, cold_starts=1, sensors=[])


def test_the_budget_is_kept(deployment):
    report = deployment.measure(X, budget_s=0.2, cold_starts=1)
    assert report.latency["package"]["runs"] >= 10 and report.how["budget_s"] == 0.2


def test_progress_is_told(deployment):
    told = []
    deployment.measure(X, repeats=10, cold_starts=1, progress=lambda *row: told.append(row))
    assert told[:3] == [(1, 3, "comparing outputs"), (2, 3, "comparing outputs"), (3, 3, "comparing outputs")]
    assert told[-1] == (100, 100, "timing")


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 B"), (1000, "1 kB"), (11_690_000, "11.7 MB"), (2.5e9, "2.5 GB"), (999_600, "1,000 kB")],
)
def test_bytes(value, text):
    assert bytes_text(value) == text


def test_ms():
    assert (ms_text(0.01234), ms_text(12.34), ms_text(1234.5), ms_text(None)) == (
        "0.0123 ms",
        "12.3 ms",
        "1,234 ms",
        "–",
    )


# Energy ---------------------------------------------------------------------------------------------------------------


def file(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def rapl(root, joules, most=1000):
    file(root / "powercap/intel-rapl:0/name", "package-0\n")
    file(root / "powercap/intel-rapl:0/energy_uj", int(joules * 1e6))
    file(root / "powercap/intel-rapl:0/max_energy_range_uj", most * 1_000_000)
    file(root / "powercap/intel-rapl:0:0/name", "core")  # a part of package-0: not counted twice
    file(root / "powercap/intel-rapl:0:0/energy_uj", 1)
    file(root / "powercap/intel-rapl:0:0/max_energy_range_uj", 1)


def test_rapl(tmp_path):
    rapl(tmp_path, 10)
    found, why_not = energy.sensors(tmp_path)
    assert [s.name for s in found if "RAPL" in s.name] == ["RAPL package-0"] and why_not == ""
    before = energy.read(found[:1])
    rapl(tmp_path, 12.5)
    assert energy.since(before, found[:1]) == {"RAPL package-0": 2.5}


def test_rapl_starts_again_at_its_end(tmp_path):
    rapl(tmp_path, 999)
    found, _ = energy.sensors(tmp_path)
    before = energy.read(found[:1])
    rapl(tmp_path, 1)
    assert energy.since(before, found[:1]) == {"RAPL package-0": 2.0}


@pytest.mark.alone
def test_hwmon_counts_joules_or_sums_up_watts(tmp_path):
    file(tmp_path / "hwmon/hwmon0/name", "board")
    file(tmp_path / "hwmon/hwmon0/energy1_input", 3_000_000)
    file(tmp_path / "hwmon/hwmon1/name", "ina219")
    file(tmp_path / "hwmon/hwmon1/power1_input", 5_000_000)  # 5 W
    found, _ = energy.sensors(tmp_path)
    by_name = {sensor.name: sensor for sensor in found}
    assert by_name["board energy1_input"].read() == 3.0
    import time

    sensor = by_name["ina219 power1_input"]
    start, before = time.monotonic(), sensor.read()
    time.sleep(0.2)
    joules, seconds = sensor.read() - before, time.monotonic() - start
    sensor.close()
    assert 0.8 * 5 * 0.2 < joules <= 5 * seconds * 1.05


def test_no_sensor_has_a_reason(tmp_path):
    found, why_not = energy.sensors(tmp_path)
    if not any("NVML" in sensor.name for sensor in found):
        assert found == [] and why_not.startswith("no RAPL counters; no hwmon power sensors; ")


def test_the_worker_imports_neither_compiler_nor_torch():
    program = (
        "import sys, tvmcompress.measurement.worker as w; print([m for m in ('tvm', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_several_passes_say_of_a_layer():
    """Those that did something to it have the word, the last first; a reason stays where nothing was done."""
    taken = {"layer": "a", "pass": "prune", "pruned": True, "why": "", "zeros": 0.5}
    said = [
        taken,
        {"layer": "a", "pass": "quantize_static", "quantized": True, "why": "", "snr_db": 30.0},
        {"layer": "a", "pass": "cluster_weights", "clustered": False, "why": "too small"},
        {"layer": "b", "pass": "prune", "pruned": False, "why": "skipped"},
        {"layer": "b", "pass": "cluster_weights", "clustered": True, "why": "", "values": 16},
        {"pass": "quantize_static", "calibration": "reused"},
    ]
    both, one = layers({"notes": said, "layers": [{"name": "a", "macs": 7}, {"name": "b", "macs": 8}]})
    assert both["pass"] == "prune, quantize_static" and both["why"] == "" and both["zeros"] == 0.5
    assert both["quantized"] and both["clustered"] is False and both["macs"] == 7
    assert one == {"pass": "cluster_weights", "pruned": False, "clustered": True, "why": "", "values": 16} | {
        "name": "b",
        "macs": 8,
    }


def test_layers_that_share_values_or_were_divided_are_listed(report):
    sizes = {"bytes_before": 4000, "bytes_after": 564, "weights_snr_db": 20.25}
    work = {"macs_before": 1000, "macs_after": 250}
    rows = [
        {"name": "shared", "values": 16, "why": "", **sizes},
        {"name": "divided", "method": "svd", "ranks": "32", "why": "", **sizes, **work},
        {"name": "left", "why": "smaller than min_size = 1024"},
    ]
    listed = text_of(dataclasses.replace(report, layers=rows)).split("Compressed layers")[1].splitlines()
    assert next(line for line in listed if "shared" in line).split() == [
        "shared",
        "16",
        "values",
        "14.10%",
        "–",
        "20.2",
        "dB",
    ]
    assert "svd of rank 32" in next(line for line in listed if "divided" in line)
    assert "25.00%" in next(line for line in listed if "divided" in line) and not any("left" in line for line in listed)
