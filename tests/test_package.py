import hashlib
import io
import json
import lzma
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from tests import standin
from tvmcompress import archive, cpu, manifest
from tvmcompress.deployment import deploy
from tvmcompress.errors import PackageError, TvmcompressError, UsageError
from tvmcompress.package import Limits, Package


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return standin.library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def saved(code, tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "net.tar"
    standin.package(code).save(path)
    return path


def members_of(path):
    """{name: contents} of a package, in the file's order."""
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def packed(path, members, weights_first=True):
    """A package file from members as they are, right or wrong."""
    weights = members.pop("weights.bin")
    with open(path, "wb") as file:
        archive.write(file, lambda f: f.write(weights), lambda: members)
    return path


def with_manifest(saved, path, change):
    """`saved` with its manifest changed by a function."""
    members = members_of(saved)
    contents = json.loads(members["manifest.json"])
    change(contents)
    members["manifest.json"] = json.dumps(contents).encode()
    return packed(path, members)


def plain_tar(path, *infos):
    with tarfile.open(path, "w") as tar:
        for info in infos:
            data = bytes(info.size)
            tar.addfile(info, io.BytesIO(data))
    return path


def info(name, size=3, type=tarfile.REGTYPE, link=""):
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, type, link
    return made


def test_equal_contents_are_equal_bytes(code, tmp_path):
    standin.package(code).save(tmp_path / "a.tar")
    standin.package(code).save(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_linking_again_gives_equal_bytes(code, saved, tmp_path):
    standin.package(standin.library(tmp_path)).save(tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == saved.read_bytes()


def test_no_time_owner_or_place_is_stored(saved):
    with tarfile.open(saved) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
    assert str(saved.parent).encode() not in saved.read_bytes()


def test_weights_are_mapped_and_whole(saved):
    package = Package.load(saved)
    for got, (_, wanted) in zip(package.weights(), standin.weights()):
        np.testing.assert_array_equal(got, wanted)
        assert got.ctypes.data % 64 == 0 and not got.flags.owndata
    with tarfile.open(saved) as tar:
        assert tar.getmember("weights.bin").offset_data % 4096 == 0


def test_writing_to_a_mapped_weight_leaves_the_file_alone(saved):
    before = saved.read_bytes()
    Package.load(saved).weights()[0][:] = 7
    assert saved.read_bytes() == before


def test_weights_of_every_kind_come_back(code, tmp_path):
    import ml_dtypes

    arrays = [
        ("half", np.arange(6, dtype=np.float16).reshape(2, 3)),
        ("bf16", np.arange(6, dtype=ml_dtypes.bfloat16)),
        ("empty", np.zeros((0, 4), np.int8)),
        ("scalar", np.float32(2.5)),
        ("truth", np.array([True, False])),
        ("made when its turn comes", lambda: np.arange(1000, dtype=np.int64)),
    ]
    built = Package.build(
        library=code, weights=arrays, manifest=standin.manifest(), golden_inputs={}, golden_outputs={}
    )
    built.save(tmp_path / "p.tar")
    for got, (name, wanted) in zip(Package.load(tmp_path / "p.tar").weights(), arrays):
        wanted = np.asarray(wanted() if callable(wanted) else wanted)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape, name
        np.testing.assert_array_equal(got, wanted)


def test_the_manifest_says_what_the_file_holds(saved):
    contents, members = Package.load(saved).manifest, members_of(saved)
    assert contents["schema"] == manifest.SCHEMA and contents["versions"]["apache-tvm"].startswith("0.27")
    assert [row["name"] for row in contents["weights"]] == ["fc.weight", "fc.bias"]
    for name, row in contents["members"].items():
        assert row["size"] == len(members[name]) and row["sha256"] == hashlib.sha256(members[name]).hexdigest()
    assert set(contents["members"]) == set(members) - {"manifest.json"}


def test_verify_runs_the_golden_inputs(saved):
    verification = Package.load(saved).verify()
    assert verification.ok and verification.checks[-1].what == "output 'y'"


def test_verify_notices_wrong_outputs(code):
    stored = standin.weights()
    built = Package.build(
        library=code,
        weights=stored,
        manifest=standin.manifest(),
        golden_inputs={"x": np.ones(standin.SHAPE, np.float32)},
        golden_outputs={"y": np.zeros((2, 5), np.float32)},
    )
    verification = built.verify()
    assert not verification.ok and [c.what for c in verification.checks if not c.ok] == ["output 'y'"]


def test_prepare_makes_the_weights_that_main_gets(tmp_path):
    assert standin.package(standin.library(tmp_path, prepare=True), prepare=True).verify().ok


def test_verify_notices_damaged_weights(saved, tmp_path):
    damaged = bytearray(saved.read_bytes())
    damaged[4096 + 10] ^= 1
    (tmp_path / "d.tar").write_bytes(damaged)
    verification = Package.load(tmp_path / "d.tar").verify()
    assert [c.what for c in verification.checks if not c.ok] == ["weights.bin"]


def test_a_damaged_library_is_refused_when_loading(saved, tmp_path):
    members = members_of(saved)
    members["library.so.xz"] = members["library.so.xz"][:-1] + b"?"
    with pytest.raises(PackageError, match=r"library\.so\.xz' is damaged"):
        Package.load(packed(tmp_path / "d.tar", members))


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("absolute", info("/etc/passwd"), "unsafe member name"),
        ("upwards", info("../x"), "unsafe member name"),
        ("hidden upwards", info("a/../../x"), "unsafe member name"),
        ("symlink", info("weights.bin", 0, tarfile.SYMTYPE, "/etc/passwd"), "not a plain file"),
        ("hard link", info("weights.bin", 0, tarfile.LNKTYPE, "manifest.json"), "not a plain file"),
        ("device", info("weights.bin", 0, tarfile.CHRTYPE), "not a plain file"),
        ("pipe", info("weights.bin", 0, tarfile.FIFOTYPE), "not a plain file"),
        ("folder", info("weights.bin", 0, tarfile.DIRTYPE), "not a plain file"),
        ("stranger", info("setup.py"), "unknown member 'setup.py'"),
    ],
)
def test_unsafe_members_are_refused(tmp_path, name, made, message):
    with pytest.raises(PackageError, match=message):
        Package.load(plain_tar(tmp_path / "bad.tar", made))


def test_a_duplicate_is_refused(tmp_path):
    with pytest.raises(PackageError, match="occurs twice"):
        Package.load(plain_tar(tmp_path / "bad.tar", info("manifest.json"), info("manifest.json")))


def test_missing_members_are_named(tmp_path):
    with pytest.raises(PackageError, match=r"missing weights\.bin, golden\.bin\.xz, library\.so\.xz"):
        Package.load(plain_tar(tmp_path / "bad.tar", info("manifest.json")))


def test_limits(saved):
    with pytest.raises(PackageError, match="beyond the limit of 1,000"):
        Package.load(saved, Limits(total=1000))
    with pytest.raises(PackageError, match="manifest is larger"):
        Package.load(saved, Limits(manifest=10))
    with pytest.raises(PackageError, match=r"library\.so\.xz' unpacks to .* beyond the limit of 100"):
        Package.load(saved, Limits(library=100)).verify()


def test_a_library_that_unpacks_to_more_than_it_says_is_refused(saved, tmp_path):
    members = members_of(saved)
    bomb = lzma.compress(bytes(10_000_000))
    contents = json.loads(members["manifest.json"])
    contents["members"]["library.so.xz"].update(size=len(bomb), sha256=hashlib.sha256(bomb).hexdigest(), unpacked=100)
    members |= {"library.so.xz": bomb, "manifest.json": json.dumps(contents).encode()}
    with pytest.raises(PackageError, match="does not unpack to the 100 bytes"):
        Package.load(packed(tmp_path / "b.tar", members)).verify()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4095, 4096, 4500, 6000, 9000])
def test_a_file_cut_short_is_refused(saved, tmp_path, size):
    (tmp_path / "cut.tar").write_bytes(saved.read_bytes()[:size])
    with pytest.raises(PackageError):
        Package.load(tmp_path / "cut.tar")


def test_random_bytes_are_refused(saved, tmp_path):
    random = np.random.default_rng(0)
    whole = np.frombuffer(saved.read_bytes(), np.uint8)
    for trial in range(150):
        data = whole.copy()
        if trial % 3 == 0:
            data = random.integers(0, 256, 6000).astype(np.uint8)
        else:  # damage to headers and manifest
            headers = np.r_[0:600, 3584:4096, 4608 : len(data)]
            data[random.choice(headers, 1 + trial % 40)] = random.integers(0, 256)
        (tmp_path / "r.tar").write_bytes(data.tobytes())
        try:
            Package.load(tmp_path / "r.tar").weights()
        except PackageError as error:
            assert "\n" not in str(error)


def test_not_there(tmp_path):
    with pytest.raises(PackageError, match="No such file"):
        Package.load(tmp_path / "none.tar")
    with pytest.raises(PackageError, match="directory"):
        Package.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "schema 99, this version reads 1"),
        (lambda m: m.pop("needs"), "'needs' is missing"),
        (lambda m: m.update(inputs="x"), "'inputs' is of the wrong kind"),
        (lambda m: m["inputs"][0].update(shape=["a"]), "not a dimension"),
        (lambda m: m["needs"].update(features=None), "'features' is of the wrong kind"),
        (lambda m: m["entry"].update(weights=5), "'weights' is of the wrong kind"),
        (lambda m: m["entry"].update(library=5), "'library' is of the wrong kind"),
        (lambda m: m.update(kernels=[{"name": "f", "family": "tile", "macs": 1}]), r"kernels\[0\]: 'arithmetic' is"),
        (lambda m: m["weights"][0].update(offset=3), "does not lie where"),
        (lambda m: m["weights"][1].update(offset=1 << 40), "does not lie where"),
        (lambda m: m["weights"][1].update(offset=0), "does not lie where"),
        (lambda m: m["weights"][0].update(shape=[-1, 2]), "not a dimension"),
        (lambda m: m["weights"][0].update(dtype="object"), "no valid dtype"),
        (lambda m: m["weights"][0].update(dtype="floaty"), "no valid dtype"),
        (lambda m: m["members"].pop("library.so.xz"), "does not describe 'library.so.xz'"),
        (lambda m: m["members"]["weights.bin"].update(size=1), "the manifest says 1"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(saved, tmp_path, change, message):
    with pytest.raises(PackageError, match=message):
        Package.load(with_manifest(saved, tmp_path / "m.tar", change))


def test_other_hardware_is_refused_before_its_code_is_loaded(saved, tmp_path):
    def foreign(contents):
        contents["needs"]["arch"], contents["target"]["name"] = "sparc", "workstation"

    with pytest.raises(PackageError, match=r"is for sparc \(workstation\); this machine is"):
        Package.load(with_manifest(saved, tmp_path / "f.tar", foreign)).verify()


def test_the_missing_feature_is_named(saved, tmp_path):
    package = Package.load(with_manifest(saved, tmp_path / "f.tar", lambda m: m["needs"]["features"].append("warp9")))
    with pytest.raises(PackageError, match=r"this machine lacks warp9\. Compile it again"):
        package.verify()
    assert package.verify(hashes_only=True).ok


def test_build_names_what_the_manifest_lacks(code):
    incomplete = standin.manifest()
    del incomplete["target"]
    with pytest.raises(PackageError, match="new package: manifest: 'target' is missing"):
        Package.build(library=code, weights=[], manifest=incomplete, golden_inputs={}, golden_outputs={})


def test_a_library_with_other_parameters_is_refused(code):
    with pytest.raises(PackageError, match="takes 3 arguments, its manifest says 2"):
        Package.build(
            library=code,
            weights=standin.weights()[:1],
            manifest=standin.manifest(),
            golden_inputs={"x": np.zeros(standin.SHAPE, np.float32)},
            golden_outputs={},
        ).verify()


def test_a_full_disk_leaves_nothing(saved):
    package = Package.load(saved)
    with pytest.raises(TvmcompressError, match=r"cannot write /dev/full/net\.tar"):
        package.save("/dev/full/net.tar")


def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    old = tmp_path / "net.tar"
    old.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tvmcompress.package.shutil.copyfile", full)
    with pytest.raises(TvmcompressError, match="No space left on device"):
        Package.load(saved).save(old)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


def test_running_needs_neither_the_compiler_nor_torch(saved):
    program = (
        "import sys; from tvmcompress.package import Package; "
        f"assert Package.load({str(saved)!r}).verify().ok; print([m for m in ('tvm', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_compiler_can_be_imported_after_a_package_has_run(saved):
    program = (
        f"from tvmcompress.package import Package; p = Package.load({str(saved)!r}); assert p.verify().ok; "
        "import tvm; from tvm import relax; assert p.verify().ok; print(relax.const(3).value.numpy())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


# Several builds in one package ------------------------------------------------------------------------------------


def several(code, features=(["f1", "f2"], ["f1"], []), **entries) -> Package:
    """Builds named a, b … with these needs, of the same code; `entries` are what a build's `entry` says otherwise."""
    names = "abcdef"[: len(features)]
    rows = []
    for name, needed in zip(names, features):
        entry = {"prepare": False, "library": f"library-{name}.so.xz", "weights": [0, 1], **entries.get(name, {})}
        needs = {"arch": cpu.architecture(), "features": needed, "gpu": None}
        rows.append(standin.manifest(target={"name": name}, needs=needs, entry=entry))
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(standin.SHAPE)
    stored = [*standin.weights(), ("fc.other", np.zeros(5, np.float32))]
    return Package.build(
        library={f"library-{name}.so.xz": code for name in names},
        weights=stored,
        manifest=manifest.one_of_several(rows, {"name": "all"}),
        golden_inputs={"x": x},
        golden_outputs={"y": standin.expected(x, stored)},
    )


@pytest.mark.parametrize(
    ("has", "taken"), [({"f1", "f2", "f3"}, "a"), ({"f1"}, "b"), ({"f1", "f3"}, "b"), ({"f2"}, "c"), (set(), "c")]
)
def test_the_first_build_that_can_run_is_taken(code, monkeypatch, has, taken):
    package = several(code)
    machine = {"architecture": cpu.architecture(), "features": sorted(has)}
    assert package.pick(machine).target == taken
    monkeypatch.setattr(cpu, "features", lambda: frozenset(has))
    assert package.pick().target == deploy(package).build == taken


def test_each_build_is_a_package_on_the_same_file(code):
    package = several(code, a={"weights": [0, 2]})
    assert [build.target for build in package.builds] == ["a", "b", "c"] and package.target == "all"
    assert [build.manifest["needs"]["features"] for build in package.builds] == [["f1", "f2"], ["f1"], []]
    assert not any(build.weights()[1].any() for build in package.builds[:1])
    np.testing.assert_array_equal(package.builds[1].weights()[1], standin.weights()[1][1])
    (only,) = package.builds[0].builds
    assert only.target == "a" and only.pick(everything(), "a").target == "a"
    assert package.sizes["library"] == 3 * package.library_bytes


def everything() -> dict:
    return {"architecture": cpu.architecture(), "features": ["f1", "f2", "f3"]}


def test_one_manifest_of_several_is_each_again():
    """Also of what only some builds have to say."""
    rows = [standin.manifest(target={"name": "a"}, more=1), standin.manifest(target={"name": "b"}, macs={"total": 1})]
    assert manifest.of_builds(manifest.one_of_several(rows, {"name": "all"})) == rows


def test_a_build_can_be_asked_for(code):
    package = several(code)
    assert package.pick(everything(), "b").target == "b"
    assert deploy(package, build="c").build == "c"
    with pytest.raises(UsageError, match=r"stand-in has no build 'z'; it has a, b, c"):
        package.pick(build="z")
    with pytest.raises(PackageError, match=r"is compiled for b; this machine lacks f1\. Compile"):
        deploy(package, build="b")


def test_without_a_build_for_it_the_least_demanding_says_what_is_missing(code):
    package = several(code, (["warp8", "warp9"], ["warp8"]))
    for run in (package.verify, package.pick, lambda: deploy(package)):
        with pytest.raises(PackageError, match=r"is compiled for b; this machine lacks warp8\. Compile it again"):
            run()


def test_verify_runs_every_build_that_can_run(code, monkeypatch):
    package = several(code, a={"weights": [0, 2]})  # with other weights than the golden outputs were made with
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"f1"}))
    verification = package.verify()
    assert verification.ok and [check.what for check in verification.checks[-2:]] == [
        "output 'y' of b",
        "output 'y' of c",
    ]
    assert verification.not_run == ("stand-in is compiled for a; this machine lacks f2",)
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"f1", "f2"}))
    assert [check.what for check in package.verify().checks if not check.ok] == ["output 'y' of a"]


def test_equal_builds_are_equal_bytes(code, tmp_path):
    several(code).save(tmp_path / "a.tar")
    several(code).save(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert list(members_of(tmp_path / "a.tar"))[2:-1] == [f"library-{name}.so.xz" for name in "abc"]


def test_damage_to_any_library_is_found(code, tmp_path):
    several(code).save(tmp_path / "p.tar")
    members = members_of(tmp_path / "p.tar")
    members["library-b.so.xz"] = members["library-b.so.xz"][:-1] + b"?"
    with pytest.raises(PackageError, match=r"'library-b\.so\.xz' is damaged"):
        Package.load(packed(tmp_path / "d.tar", members))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["builds"][0]["entry"].update(library="library-z.so.xz"), r"missing library-z\.so\.xz"),
        (lambda m: m["builds"][0]["entry"].update(library="weights.bin"), r"missing|not a library"),
        (lambda m: m["builds"][0]["entry"].update(weights=[0, 3]), "'a' takes weights that are not there"),
        (lambda m: m["builds"][0]["entry"].update(weights=[0, -1]), "'a' takes weights that are not there"),
        (lambda m: m["builds"][0]["entry"].update(weights=["0"]), "'a' takes weights that are not there"),
        (lambda m: m["builds"][0]["entry"].pop("weights"), "'weights' is missing"),
        (lambda m: m["builds"][0].update(needs=[]), "'needs' is of the wrong kind"),
        (lambda m: m["builds"][1].update(members={}), r"builds\[1\]: 'members' is the package's, not a build's"),
        (lambda m: m["builds"][1].pop("target"), r"builds\[1\]: 'target' is missing"),
        (lambda m: m["builds"].append(7), r"builds\[3\]: wanted a table"),
        (lambda m: m.update(builds={}), "'builds' is of the wrong kind"),
        (lambda m: m.update(builds=[]), "'builds' is empty"),
    ],
)
def test_builds_that_do_not_hold_are_refused(code, tmp_path, change, message):
    several(code).save(tmp_path / "p.tar")
    with pytest.raises(PackageError, match=message):
        Package.load(with_manifest(tmp_path / "p.tar", tmp_path / "m.tar", change))
