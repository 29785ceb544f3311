"""Profiles: what is made of times, and a small package profiled."""

from types import SimpleNamespace

import numpy as np
import pytest

import tvmcompress as tc
from tests.small_net import small_int8_model
from tvmcompress import remote, runtime
from tvmcompress.errors import UsageError
from tvmcompress.measurement import profile, stamps
from tvmcompress.measurement.peak import Bandwidth, Peak, build

FOUND = {
    "ms": 5.0,
    "overhead_ms": 1.0,
    "kernels": [
        {"name": "copy", "calls": 2, "ms": 1.0, "bytes": 500_000, "result": [8]},
        {"name": "conv", "calls": 3, "ms": 2.0, "bytes": 2_000_000, "result": [1, 4], "of_peak": 0.75},
        {"name": "dense", "calls": 1, "ms": 1.0, "bytes": 1_000_000, "result": [1, 10], "of_peak": 0.25},
    ],
    "peaks": {
        "float32": {"instruction": "fused multiply-add", "gmacs": 100.0},
        "int8": {"instruction": "vpdpbusd", "gmacs": 400.0},
    },
    "copy_gbs": 30.0,
    "rounds": 4,
}
KERNELS = [
    {"name": "conv", "family": "tile", "macs": 200_000_000, "arithmetic": "int8"},
    {"name": "dense", "family": "tile", "macs": 25_000_000, "arithmetic": "float32"},
    {"name": "in_prepare", "family": "tile", "macs": 7, "arithmetic": "float32"},
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    model, _ = small_int8_model()
    path = tmp_path_factory.mktemp("package") / "small.tar"
    tc.compile(model, tc.Target.load("native")).save(path)
    return tc.Package.load(path)


def test_shares_and_rates():
    package = SimpleNamespace(name="net", manifest={"kernels": KERNELS, "target": {"name": "znver5"}})
    found = profile.of(package, 2, FOUND)
    conv, *rest = found.kernels
    assert [k["name"] for k in found.kernels] == ["conv", "copy", "dense"]
    assert (conv["share"], conv["gmacs"], conv["gbs"]) == pytest.approx((0.4, 300, 3.0))
    assert "macs" not in rest[0] and rest[0]["gbs"] == pytest.approx(1.0)
    assert rest[1]["gmacs"] == pytest.approx(25)
    # 1.5 and 0.25 ms of 3 at the peak.
    assert found.of_peak == pytest.approx(1.75 / 3)
    assert found.notes()[0] == "a run takes 5 ms; 1 ms are outside kernels (20.0%); all products together reach 58% of the peak"  # fmt: skip  # noqa: E501


def test_a_package_without_rows_for_kernels():
    package = SimpleNamespace(name="net", manifest={"target": {}})
    found = profile.of(package, 1, FOUND)
    assert found.of_peak is None and all("macs" not in k for k in found.kernels)
    assert found.table()


def test_the_manifest_counts_every_product(package):
    kernels = package.manifest["kernels"]
    assert sum(k["macs"] for k in kernels) == package.manifest["macs"]["total"] == 16 * 8 * 9 * 64 + 1024 * 10
    assert {k["arithmetic"] for k in kernels} == {"int8"} and {k["family"] for k in kernels} == {"tile"}


@pytest.mark.alone
def test_a_package_is_profiled(package):
    found = tc.deploy(package, threads=1).profile(budget_s=0.1)
    assert {k["name"] for k in package.manifest["kernels"]} <= {k["name"] for k in found.kernels}
    assert all(k["ms"] > 0 and k["calls"] == 1 and k["bytes"] > 0 for k in found.kernels)
    inside = sum(k["ms"] for k in found.kernels)
    assert sum(k["share"] for k in found.kernels) == pytest.approx(inside / (inside + found.overhead_ms))
    assert 0 < inside < 3 * found.ms  # other programs may run meanwhile
    assert all(0 < k["of_peak"] < 2 for k in found.kernels if "macs" in k)
    assert set(found.peaks) == {"float32", "int8"} and found.rounds >= 3
    assert found.table() and found.json()["kernels"] == found.kernels


def test_gpu_code_is_refused(package, monkeypatch):
    monkeypatch.setitem(package.manifest, "needs", {**package.manifest["needs"], "gpu": "sm_80"})
    monkeypatch.setattr(remote, "open_package", lambda *_: SimpleNamespace(threads=1, load_ms={}))
    monkeypatch.setattr(tc.Package, "pick", lambda package, *_: package)  # as on a machine with a GPU
    with pytest.raises(UsageError, match="GPU"):
        tc.deploy(package).profile()


def test_what_is_watched_is_what_python_sees(package):
    program = runtime.open_package(package, 1)
    x = np.zeros(package.inputs[0].shape, np.float32)
    wanted = program([x])[0]
    called, events = stamps.calls(program, lambda: program([x]))
    clock = stamps.Stamps(tc.Target.load("native").to_tvm())
    program.watch(clock.function)
    np.testing.assert_array_equal(program([x])[0], wanted)
    times = clock.take()
    program.watch(None)
    program([x])
    assert len(times) == events and len(clock.take()) == 0
    assert (np.diff(times) >= 0).all()
    assert called[0].before < called[0].after < called[1].before and called[-1].result == [1, 10]


def test_peaks_of_this_machine():
    target = tc.Target.load("native")
    one, two = Peak("float32", target, 1), Peak("float32", target, 2)
    assert one.gmacs() > 0.1 and two.gmacs() > 0.1
    assert Bandwidth(1).gbs() > 0.01


@pytest.mark.parametrize(
    "target, arithmetic, instruction",
    [
        ("znver4", "float32", "vfmadd"),
        ("znver4", "int8", "vpdpbusd"),
        ("znver4", "bfloat16", "vdpbf16ps"),
        ("alderlake", "int8", "vpdpbusd"),
        ("alderlake", "bfloat16", "vfmadd"),
        ("x86-64-v3", "int8", "vpmaddwd"),
        ("x86-64-v2", "int8", "pmaddwd"),
        ("x86-64-v2", "float32", "mulps"),
        ("rpi5", "int8", "sdot"),
        ("cortex-a510", "int8", "smmla"),
        ("cortex-a510", "bfloat16", "bfmmla"),
        ("cortex-a510", "float16", "fmlal"),
        ("rpi4", "int8", "smlal"),
        ("rpi4", "float32", "fmla"),
        ("generic-armv7", "int8", "vmlal"),
        ("riscv64", "float32", "fm"),
        ("riscv64-v", "int8", "vwm"),
    ],
)
def test_the_loop_is_made_of_that_instruction(target: str, arithmetic: str, instruction: str):
    library, _, accumulators = build(arithmetic, tc.Target.load(target))
    assert library.mod.inspect_source("asm").count(f"\t{instruction}") >= accumulators
