import json
from pathlib import Path

import pytest

from tvmcompress import cpu, llvm
from tvmcompress.errors import TargetError
from tvmcompress.target import Target

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))


def test_what_is_shipped():
    assert len(SHIPPED) >= 24
    assert [target.name for target in Target.list()] == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_target(name: str):
    target = Target.load(name)
    assert Target.load(json.dumps(target.describe())) == target
    assert target.description
    tvm_target = target.to_tvm()
    host = tvm_target if target.kind == "cpu" else tvm_target.host
    assert host.attrs["mcpu"] == target.cpu
    assert host.attrs["num-cores"] == target.threads <= target.cores
    assert target.features_needed()
    assert 8 * 1024 <= target.l1d < target.l2


@pytest.mark.parametrize(
    ("text", "triple", "name", "features"),
    [
        ("rpi5", "aarch64-linux-gnu", "cortex-a76", ()),
        ("aarch64-linux-gnu", "aarch64-linux-gnu", "generic", ()),
        ("arm64-unknown-linux-gnu:cortex-a72", "aarch64-linux-gnu", "cortex-a72", ()),
        ("aarch64-linux-gnu:cortex-a55+i8mm+bf16", "aarch64-linux-gnu", "cortex-a55", ("i8mm", "bf16")),
        ("arm-linux-gnueabihf:cortex-a7", "armv7l-linux-gnueabihf", "cortex-a7", ()),
        ("riscv64", "riscv64-linux-gnu", "generic-rv64", tuple("mafdc")),
        ("riscv64-linux-gnu+v", "riscv64-linux-gnu", "generic-rv64", tuple("mafdcv")),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72", "aarch64-linux-gnu", "cortex-a72", ()),
        (
            "llvm -device=arm_cpu -mtriple aarch64-linux-gnu -mattr=+neon,+dotprod",
            "aarch64-linux-gnu",
            "generic",
            ("neon", "dotprod"),
        ),
        ('{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"}', "x86_64-linux-gnu", "znver4", ()),
        ('{"triple": "aarch64-linux-gnu", "features": ["-neon"]}', "aarch64-linux-gnu", "generic", ("-neon",)),
    ],
)
def test_forms(text: str, triple: str, name: str, features: tuple[str, ...]):
    target = Target.load(text)
    assert (target.triple, target.cpu, target.features) == (triple, name, features)


def test_cuda_forms():
    by_text = Target.load("cuda -arch=sm_87 -host='llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a78ae'")
    by_json = Target.load('{"kind": "cuda", "arch": "sm_87", "host": {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}}')
    assert (by_text.kind, by_text.cuda_arch, by_text.cpu) == ("cuda", "sm_87", "cortex-a78ae")
    assert by_json.to_tvm().host.attrs["mtriple"] == "aarch64-linux-gnu"
    assert by_text.to_tvm().attrs["arch"] == "sm_87"


def test_facts_come_from_the_file_of_the_same_cpu():
    assert Target.load("aarch64-linux-gnu:cortex-a76").l1d == Target.load("cortex-a76").l1d == 65536
    assert Target.load("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76 -num-cores=2").cores == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rpi6", "did you mean 'rpi5'"),
        ("", "target list"),
        ("x" * 5000, "no target 'xxx"),
        ("cortex-a73", "write 'aarch64-linux-gnu:cortex-a73'"),
        ("aarch64-linux-gnu:cortex-a99", "no CPU 'cortex-a99' for aarch64-linux-gnu; did you mean"),
        ("aarch64-linux-gnu+dotprd", "no feature 'dotprd' for aarch64-linux-gnu; did you mean 'dotprod'"),
        ("aarch64-linux-android", "only Linux with glibc"),
        ("llvm -mcup=x", "did you mean 'mcpu'"),
        ("llvm -mcpu", "wants a value"),
        ("llvm 'x", "No closing quotation"),
        ("cuda", "cuda -arch=sm_87"),
        ("cuda -arch=sm_88", "did you mean"),
        ("nowhere/x.toml", "No such file"),
        ('{"kind": "opencl"}', "'cpu' or 'cuda'"),
        ('{"triple": "aarch64-linux-gnu", "corse": 3}', "did you mean 'cores'"),
        ('{"triple": "aarch64-linux-gnu", "cores": 0}', "out of range"),
        ('{"triple": "aarch64-linux-gnu", "cores": true}', "wants a whole number"),
        ('{"triple": "aarch64-linux-gnu", "features": [1]}', "wants a list of texts"),
        ('{"triple": ', "not JSON"),
    ],
)
def test_wrong_targets_are_one_line(text: str, said: str, capfd):
    with pytest.raises(TargetError) as caught:
        Target.load(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # LLVM prints its own warnings when it is asked first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            'triple = "aarch64-linux-gnu"\ncorse = 4',
            "target file board.toml: unknown key 'corse'; did you mean 'cores'",
        ),
        ('triple = "aarch64-linux-gnu"\ncores = "4"', "target file board.toml: 'cores' wants a whole number, got '4'"),
        ("cores = 4", "'triple' is missing"),
        ("triple = ", "not TOML"),
        ('triple = "aarch64-linux-gnu"\ncpu = "cortex-a77"\ncores = 2', ""),
    ],
)
def test_target_files(tmp_path: Path, content: str, said: str):
    path = tmp_path / "board.toml"
    path.write_text(content)
    if not said:
        assert (Target.load(str(path)).name, Target.load(str(path)).cpu) == ("board", "cortex-a77")
        return
    with pytest.raises(TargetError, match=said.replace("[", r"\[")):
        Target.load(str(path))


@pytest.mark.parametrize(
    ("text", "builds"),
    [
        ("x86-64-any", ["x86-64-v4-vnni", "x86-64-v3-vnni", "x86-64-v3", "x86-64-v2"]),
        ("aarch64-any", ["generic-aarch64-dotprod", "generic-aarch64"]),
        ("x86-64-v3, x86-64-v4", ["x86-64-v4", "x86-64-v3"]),
        ("rpi4,aarch64-linux-gnu:cortex-a55+i8mm+bf16", ["aarch64-linux-gnu:cortex-a55+i8mm+bf16", "rpi4"]),
    ],
)
def test_several_builds(text: str, builds: list[str]):
    """The most demanding first, whatever the order in which they are written."""
    target = Target.load(text)
    assert [build.name for build in target.each] == builds
    assert target.features_needed() == target.builds[-1].features_needed()
    assert (target.triple, target.cpu) == (target.builds[-1].triple, target.builds[-1].cpu)
    assert Target.load(json.dumps(target.describe())) == target


def test_a_target_without_builds_is_its_own():
    target = Target.load("rpi4")
    assert target.each == (target,) and "builds" not in target.describe()


def test_builds_as_tables(tmp_path: Path):
    """What all have in common is written once."""
    path = tmp_path / "fleet.toml"
    path.write_text(
        'triple = "x86_64-linux-gnu"\ncores = 6\ndescription = "Ours"\n'
        '[[builds]]\nname = "old"\ncpu = "x86-64-v2"\n'
        '[[builds]]\nname = "new"\ncpu = "x86-64-v3"\ncores = 8\n'
    )
    target = Target.load(str(path))
    assert (target.name, target.description, target.cores) == ("fleet", "Ours", 6)
    assert [(build.name, build.cpu, build.cores, build.description) for build in target.builds] == [
        ("new", "x86-64-v3", 8, ""),
        ("old", "x86-64-v2", 6, ""),
    ]


def test_a_file_that_lists_itself(tmp_path: Path):
    path = tmp_path / "ring.toml"
    path.write_text(f'builds = ["rpi4", "{path}"]')
    with pytest.raises(TargetError, match="one of its builds is itself"):
        Target.load(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x86-64-v3,rpi4", "builds are for one architecture, got x86_64 and aarch64"),
        ("x86-64-v3,cuda-sm80", "'cuda-sm80' cannot be one of several builds"),
        ("x86-64-v3,x86-64-any", "'x86-64-any' cannot be one of several builds"),
        ("x86-64-v3,x86-64-v3", "two builds are called 'x86-64-v3'"),
        ("rpi4,cortex-a72", "'rpi4' and 'cortex-a72' need the same features; the second would never be chosen"),
        ("x86-64-v3,x86-64-v44", "no target 'x86-64-v44'; did you mean"),
        ("x86-64-v3,", "no target ''"),
        ("rpi4,aarch64-linux-gnu:cortex-a55+i8mm,+bf16", "a build's name is letters"),  # this comma is the feature's
        ('{"builds": ["rpi4", 3]}', "'builds' wants a list of targets"),
        ('{"builds": ["rpi4", "rpi5"], "cores": 3}', "'cores' is said by the builds themselves"),
        ('{"triple": "riscv64", "builds": [{"cpu": "x"}]}', "builds[0]: LLVM has no CPU 'x'"),
        (
            '{"triple": "riscv64", "builds": [{"name": "a b"}]}',
            "a build's name is letters, digits and . _ - + :, got 'a b'",
        ),
    ],
)
def test_builds_that_do_not_fit_together(text: str, said: str):
    with pytest.raises(TargetError) as caught:
        Target.load(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_native_is_what_this_machine_can_run():
    target = Target.load("native")
    assert target.arch == cpu.architecture()
    assert target.cores == cpu.usable()
    assert cpu.missing(target.features_needed()) == []


def test_native_does_not_believe_a_name_that_implies_too_much(monkeypatch):
    # A virtual machine that says znver5 but hides AVX-512 and everything after AVX2.
    level3 = Target.load("x86-64-v3").features_needed()
    monkeypatch.setattr(cpu, "architecture", lambda: "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset(level3 | {"avx_vnni"}))
    monkeypatch.setattr(llvm, "this_cpu", lambda: "znver5")
    target = Target.load("native")
    assert target.cpu == "x86-64-v3"
    assert target.features == ("avxvnni",)
    assert target.features_needed() == level3 | {"avx_vnni"}


@pytest.mark.parametrize("text", ["riscv64-v", "riscv64-linux-gnu:spacemit-x60", "riscv64"])
def test_tvm_never_sees_the_vectors_of_riscv(text: str):
    """But all that they consist of; what the device needs is still `v`."""
    import tvm

    target = Target.load(text)
    has = lambda name: tvm.target.codegen.target_has_features(name, target.to_tvm())  # noqa: E731
    assert not has("v")
    assert has("zve64d") == has("zvl128b") == ("v" in target.features_needed()) == (text != "riscv64")


def test_features():
    assert Target.load("znver5").has("avx512vnni")
    assert not Target.load("skylake-avx512").has("avx512vnni")
    assert "avx512_vnni" in Target.load("icelake-server").features_needed()
    assert "asimddp" in Target.load("rpi5").features_needed()
    assert "asimddp" not in Target.load("rpi4").features_needed()
    assert {"i8mm", "bf16", "asimdfhm", "asimdhp"} <= Target.load("cortex-a510").features_needed()
    assert not {"i8mm", "bf16", "asimdfhm"} & Target.load("rpi5").features_needed()
    assert not Target.load("rpi4").has("aes")  # Broadcom left the crypto extension out
    assert Target.load("cortex-a72").has("aes")
