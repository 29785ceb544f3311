"""Several builds compiled into one package: what they share, what they compute, and which is taken."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import tvmcompress as tc
from tests.lower.tools import need
from tests.small_net import expected, small_int8_model, small_net
from tvmcompress import cpu
from tvmcompress.errors import PackageError
from tvmcompress.model import Model, Source
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target

LEVELS = "x86-64-v3,x86-64-v4"


def small_float_model() -> tuple[Model, np.ndarray]:
    module, x = small_net()
    specs = (TensorSpec("x", x.shape, "float32"),), (TensorSpec("y", (1, 10), "float32"),)
    return Model(module, *specs, Source("small", "test", 0, "")), x


@pytest.fixture(scope="module")
def package():
    return tc.compile(small_int8_model()[0], LEVELS)


@pytest.fixture(scope="module")
def alone():
    """The second build in a package of its own."""
    return tc.compile(small_int8_model()[0], "x86-64-v3")


def has_only(level: str, monkeypatch) -> None:
    """This machine with the features of a level and no others."""
    needed = Target.load(level).features_needed()
    monkeypatch.setattr(cpu, "features", lambda: needed)


def test_integers_are_equal_in_all_builds(package, alone):
    need("x86-64-v4")
    x = small_int8_model()[1]
    wanted = tc.deploy(alone)({"x": x})["y"]
    for build in ("x86-64-v4", "x86-64-v3"):
        deployment = tc.deploy(package, build=build)
        assert deployment.build == build
        np.testing.assert_array_equal(deployment({"x": x})["y"], wanted)


def test_floats_agree():
    need("x86-64-v4")
    model, x = small_float_model()
    package = tc.compile(model, LEVELS)
    for build in package.builds:
        np.testing.assert_allclose(tc.deploy(build)({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-5)


def test_the_second_build_costs_its_code_alone(package, alone):
    weights = [[a.tobytes() for a in build.weights()] for build in package.builds]
    assert weights[0] == weights[1] and len(package.manifest["weights"]) == len(weights[0])
    assert package.sizes["weights"] <= alone.sizes["weights"]  # packed ones are filled up with zeros
    assert package.sizes["package"] < alone.sizes["package"] + 2 * alone.sizes["library"] + 4096


def test_the_manifest_says_of_each_build_what_differs(package):
    first, second = package.builds
    assert package.manifest["target"]["name"] == "x86-64-v4,x86-64-v3"
    assert [build["target"]["name"] for build in package.manifest["builds"]] == ["x86-64-v4", "x86-64-v3"]
    assert "needs" not in package.manifest["builds"][1] and package.manifest["needs"] == second.manifest["needs"]
    assert "avx512f" in first.manifest["needs"]["features"] and "avx512f" not in second.manifest["needs"]["features"]
    assert [row["macs"] for row in first.manifest["layers"]] == [row["macs"] for row in second.manifest["layers"]]


def test_the_machine_chooses(package, monkeypatch):
    need("x86-64-v4")
    assert tc.deploy(package).build == "x86-64-v4"
    assert [c.what for c in package.verify().checks[-2:]] == ["output 'y' of x86-64-v4", "output 'y' of x86-64-v3"]
    has_only("x86-64-v3", monkeypatch)
    assert tc.deploy(package).build == "x86-64-v3"
    verification = package.verify()
    assert verification.ok and "lacks avx512bw" in verification.not_run[0]
    has_only("x86-64-v2", monkeypatch)
    with pytest.raises(PackageError, match="is compiled for x86-64-v3; this machine lacks abm, avx, avx2"):
        tc.deploy(package)


def test_compiling_again_gives_equal_bytes(package, tmp_path):
    package.save(tmp_path / "a.tar")
    tc.compile(small_int8_model()[0], "x86-64-v4,x86-64-v3").save(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_profile_is_of_the_build_that_was_asked_for():
    """Only one of the two multiplies and adds at once."""
    need("x86-64-v3")
    package = tc.compile(small_float_model()[0], "x86-64-v3,x86-64-v2")
    found = {b: tc.deploy(package, build=b).profile(budget_s=0.1) for b in ("x86-64-v3", "x86-64-v2")}
    assert [profile.target for profile in found.values()] == [*found]
    fused = [profile.peaks["float32"]["instruction"].startswith("fused") for profile in found.values()]
    assert fused == [True, False]


def test_a_report_is_about_the_build_that_ran(package):
    """In the process that times it, too."""
    need("x86-64-v4")
    x = small_int8_model()[1]
    report = tc.deploy(package, build="x86-64-v3").measure(x, reference=package, repeats=2, cold_starts=1)
    assert report.package["target"] == "x86-64-v3"
    assert report.quality["overall"]["exact"]  # against the reference: the build that was not asked for


def test_a_board_gets_the_build_that_fits_and_no_other(package, monkeypatch):
    from tvmcompress.device import Device

    need("x86-64-v4")
    command = [sys.executable, "-m", "tvmcompress.serving", "--port", "19690"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[-1]
            with Device.open(f"rpc://{address}") as device:
                described = device.describe()
                described["cpu"]["features"] = sorted(Target.load("x86-64-v3").features_needed())
                monkeypatch.setattr(Device, "describe", lambda _: described)
                sent = []
                upload = device.upload
                monkeypatch.setattr(Device, "upload", lambda _, path: sent.append(path.stat().st_size) or upload(path))
                deployment = tc.deploy(package, device)
                with package.builds[1].library() as wanted:
                    assert sent == [wanted.stat().st_size]
                assert deployment.build == "x86-64-v3" and package.verify(device=device).ok
        finally:
            server.kill()
