"""Packages whose weights are stored smaller than they are: as exact, as safe, and nobody who runs them notices."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tvm import relax

import tvmcompress as tc
from tests import standin
from tests.boards import board
from tests.cli.files import quick
from tests.coding import subjects
from tests.test_package import members_of, with_manifest
from tvmcompress import manifest
from tvmcompress.device import Device
from tvmcompress.errors import MissingDependencyError, PackageError, UsageError
from tvmcompress.ir import graph
from tvmcompress.model import Model, Source
from tvmcompress.package import Limits, Package
from tvmcompress.spec import TensorSpec

STORAGE = ["auto", "xz", "zstd"]
NAMES = [*subjects.ARRAYS]


def available(storage: str) -> str:
    if storage == "zstd":
        pytest.importorskip("zstandard")
    return storage


def sparse_network() -> Model:
    """A convolution of 90% zeros and a matrix product of 16 values: float32 (1, 3, 8, 8) to (1, 16)."""
    random = np.random.default_rng(7)
    first = random.standard_normal((32, 3, 3, 3), np.float32) * 0.2
    second = random.standard_normal((64, 32, 3, 3), np.float32) * (random.random((64, 32, 3, 3)) < 0.1)
    shared = (random.integers(-8, 8, (4096, 16)) / 80).astype(np.float32)

    def body(r, x):
        y = r.emit(relax.op.nn.relu(r.emit(relax.op.nn.conv2d(x, graph.const(first), padding=1))))
        y = r.emit(relax.op.nn.relu(r.emit(relax.op.nn.conv2d(y, graph.const(second), padding=1))))
        return [r.emit(relax.op.matmul(r.emit(relax.op.reshape(y, (1, 4096))), graph.const(shared)))]

    module = graph.program([("x", (1, 3, 8, 8), "float32")], body)
    specs = (TensorSpec("x", (1, 3, 8, 8), "float32"),), (TensorSpec("y", (1, 16), "float32"),)
    return Model(module, *specs, Source("sparse", "test", 0, ""))


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return standin.library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def network():
    return sparse_network()


@pytest.fixture(scope="module")
def plain(network):
    return tc.compile(network, "native", storage="plain", keep="never")


@pytest.fixture(scope="module")
def coded(network):
    return tc.compile(network, "native", keep="never")


@pytest.fixture(scope="module")
def saved(coded, tmp_path_factory):
    path = tmp_path_factory.mktemp("coded") / "p.tar"
    coded.save(path)
    return path


X = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)}


def of_every_kind(code, storage: str) -> Package:
    """A package that only stores: all subjects, and some that are empty or single numbers in between."""
    few = [("none", np.zeros((0, 3), np.float32)), ("one", np.float32(2.5))]
    weights = [*few, *((name, subjects.ARRAYS[name]) for name in NAMES)]
    return Package.build(
        library=code,
        weights=weights,
        manifest=standin.manifest(),
        golden_inputs={},
        golden_outputs={},
        storage=available(storage),
    )


def rows_of(package: Package) -> list[dict]:
    return [row["coding"] for row in package.manifest["weights"] if "coding" in row]


@pytest.mark.parametrize("storage", STORAGE)
def test_every_array_comes_back_bit_by_bit(code, storage, tmp_path):
    of_every_kind(code, storage).save(tmp_path / "p.tar")
    package = Package.load(tmp_path / "p.tar")
    stored = package.weights()
    for got, name in zip(stored[2:], NAMES, strict=True):
        wanted = subjects.ARRAYS[name]()
        assert got.dtype == wanted.dtype and got.shape == wanted.shape, name
        assert got.tobytes() == wanted.tobytes(), name
        assert got.ctypes.data % 64 == 0 and got.flags.c_contiguous and got.flags.writeable
    assert stored[0].shape == (0, 3) and stored[1] == np.float32(2.5)
    assert package.sizes["unpacked"] == sum(array.nbytes for array in stored)
    assert package.sizes["weights"] < 0.7 * package.sizes["unpacked"]


@pytest.mark.parametrize("storage", STORAGE)
def test_equal_inputs_are_equal_bytes(code, storage, tmp_path):
    for name in "ab":
        of_every_kind(code, storage).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_small_network_with_zeros(network, plain, saved):
    """Compiled, saved, loaded, verified and run; smaller, and equal to the last bit."""
    package = Package.load(saved)
    assert package.verify().ok
    assert package.sizes["unpacked"] == plain.sizes["unpacked"] <= plain.sizes["weights"]
    assert package.sizes["weights"] < 0.25 * plain.sizes["weights"]
    np.testing.assert_array_equal(tc.deploy(package)(X)["y"], tc.deploy(plain)(X)["y"])
    used = {step for row in rows_of(package) for step in row["steps"]}
    assert {"mask", "palette"} <= used


def test_the_schema_is_new_only_where_weights_are_coded(plain, coded):
    """What cannot unpack weights must refuse them; everything else stays readable."""
    assert plain.manifest["schema"] == manifest.SCHEMA == 1 and not rows_of(plain)
    assert coded.manifest["schema"] == manifest.CODED == 2 and rows_of(coded)


def test_builds_share_coded_weights(network, tmp_path):
    tc.compile(network, "x86-64-v3,x86-64-v2", keep="never").save(tmp_path / "p.tar")
    package = Package.load(tmp_path / "p.tar")
    assert rows_of(package) and package.verify().ok
    first, *others = (tc.deploy(package, build=build.target)(X)["y"] for build in package.builds if not build.refusal())
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)


def test_a_board_gets_its_weights_unpacked(coded, monkeypatch):
    """And needs nothing to unpack them."""
    wanted = tc.deploy(coded)(X)["y"]
    with board() as served, Device.open(served.address) as device:
        there = tc.deploy(coded, device)
        np.testing.assert_array_equal(there(X)["y"], wanted)
        assert set(there.load_ms) == {"unpack", "prepare", "load"} and there.load_ms["load"] > 0


def test_verify_notices_damage_to_coded_weights(saved, tmp_path):
    damaged = bytearray(saved.read_bytes())
    damaged[4096 + 10] ^= 1
    (tmp_path / "d.tar").write_bytes(damaged)
    verification = Package.load(tmp_path / "d.tar").verify()
    assert [c.what for c in verification.checks if not c.ok] == ["weights.bin"]


def test_random_damage_is_refused_or_harmless(saved, tmp_path):
    """Of coded weights, and of what the manifest says of them."""
    random, whole = np.random.default_rng(0), np.frombuffer(saved.read_bytes(), np.uint8)
    size = Package.load(saved).sizes["weights"]
    text = whole.tobytes().rindex(b'"coding"')
    for trial in range(60):
        data = whole.copy()
        first, last = (4096, 4096 + size) if trial % 2 else (text - 4000, text + 4000)
        data[random.integers(first, min(last, data.size), 1 + trial % 5)] = random.integers(32, 127)
        (tmp_path / "r.tar").write_bytes(data.tobytes())
        try:
            Package.load(tmp_path / "r.tar").weights()
        except PackageError as error:
            assert "\n" not in str(error)


def coding(contents: dict) -> dict:
    """The first row of a manifest that has one."""
    return next(row for row in contents["weights"] if "coding" in row)["coding"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(steps=["sort"]), "steps that this version does not have"),
        (lambda c: c["parts"][0].update(coder="rar"), "does not have its coder 'rar'"),
        (lambda c: c["parts"][0]["pieces"].__setitem__(0, 1 << 40), "does not lie where"),
        (lambda c: c["parts"][0].update(size=0, pieces=[]), "cannot be unpacked"),
        (lambda c: c["parts"][0].update(size=c["parts"][0]["size"] + 1), "as many bytes as the manifest says"),
        (lambda c: c["parts"].pop(), "cannot be unpacked"),
        (lambda c: c.update(steps=[]), "cannot be unpacked"),
        (lambda c: c["parts"].append({"coder": "deflate", "size": 1 << 40, "pieces": [1]}), "pieces"),
    ],
)
def test_rows_that_do_not_hold_are_refused(saved, tmp_path, change, message):
    with pytest.raises(PackageError, match=message):
        Package.load(with_manifest(saved, tmp_path / "m.tar", lambda m: change(coding(m)))).weights()


def test_an_array_that_claims_to_be_enormous_is_refused_before_it_is_made(saved, tmp_path):
    def enormous(contents: dict) -> None:
        next(row for row in contents["weights"] if "coding" in row)["shape"] = [1 << 40]

    with pytest.raises(PackageError, match=r"weights unpack to .* beyond the limit of"):
        Package.load(with_manifest(saved, tmp_path / "m.tar", enormous))
    with pytest.raises(PackageError, match=r"weights unpack to .* beyond the limit of 1,000"):
        Package.load(saved, Limits(weights=1000))


def test_arrays_may_not_lie_on_each_other(saved, tmp_path):
    def moved(contents: dict) -> None:
        rows = [row for row in contents["weights"] if "coding" in row]
        rows[1]["offset"] = rows[0]["offset"]

    with pytest.raises(PackageError, match="does not lie where the manifest says"):
        Package.load(with_manifest(saved, tmp_path / "m.tar", moved))


def test_without_zstandard(network, code, tmp_path, monkeypatch):
    """Writing is refused before any work, reading when weights are wanted; everything else still works."""
    of_every_kind(code, "zstd").save(tmp_path / "p.tar")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tvmcompress\[zstd\]'"):
        tc.compile(network, "native", storage="zstd", keep="never")
    package = Package.load(tmp_path / "p.tar")
    assert all(ok for _, ok in package.check_hashes())
    with pytest.raises(MissingDependencyError, match=r"pip install 'tvmcompress\[zstd\]'"):
        package.weights()


def test_what_auto_writes_needs_no_extra(saved):
    program = (
        "import sys; sys.modules['zstandard'] = None; from tvmcompress.package import Package; "
        f"assert Package.load({str(saved)!r}).verify().ok; print('tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_storage(network):
    with pytest.raises(UsageError, match="storage 'zstdd' is unknown; did you mean 'zstd'"):
        tc.compile(network, "native", storage="zstdd", keep="never")


def test_disk_memory_and_loading_are_reported(saved):
    report = tc.deploy(str(saved)).measure(X["x"], repeats=10, cold_starts=1)
    size, plan, latency = report.size, report.memory["plan"], report.latency["package"]
    assert size["weights"] < size["unpacked"] <= plan["weights"]
    assert 0 < latency["unpack"] < latency["load"] and 0 < latency["prepare"] < latency["load"]
    for text in ("Size on disk", "unpacked", "loading", "unpacking weights"):
        assert text in report.html()


def test_the_command_line(saved, plain, network, tmp_path, capsys):
    network.save(tmp_path / "s.model")
    assert quick(f"compile {tmp_path}/s.model --keep never --storage xz -o {tmp_path}/xz.tar") == 0
    plain.save(tmp_path / "plain.tar")
    assert quick(f"compile {tmp_path}/s.model --storage rar -o {tmp_path}/rar.tar") == 2
    capsys.readouterr()
    assert quick(f"inspect {tmp_path}/xz.tar") == 0
    told = capsys.readouterr().out
    assert "unpacked" in told and "mask shuffle xz" in told
    assert quick(f"inspect {tmp_path}/plain.tar") == 0
    assert "mapped" not in capsys.readouterr().out
    assert quick(f"inspect {saved} --layers --json -") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["sizes"]["unpacked"] > value["sizes"]["weights"]
    assert list(members_of(saved)) == list(members_of(tmp_path / "plain.tar"))
