from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.small_net import expected, small_net
from tvmcompress import linking
from tvmcompress.errors import MissingDependencyError, TvmcompressError
from tvmcompress.target import Target

CPUS = [target.name for target in Target.list() if target.kind == "cpu"]
# The machine field of an ELF header (offset 18), little endian.
ELF_MACHINE = {"x86_64": 62, "aarch64": 183, "armv7l": 40, "riscv64": 243}


def build(target: Target):
    module, _ = small_net()
    return tvm.compile(module, target=target.to_tvm())


@pytest.mark.parametrize("name", CPUS)
def test_every_cpu_target_compiles_and_links(name: str, tmp_path: Path):
    target = Target.load(name)
    built = build(target)
    try:
        link = linking.linker(target)
    except MissingDependencyError as error:
        assert "apt-get install gcc" in str(error)
        pytest.skip(str(error))
    built.export_library(str(tmp_path / "net.so"), fcompile=link)
    header = (tmp_path / "net.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == ELF_MACHINE[target.arch]


def test_the_same_bytes_every_time(tmp_path: Path):
    target = Target.load("native")
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        build(target).export_library(str(tmp_path / folder / "net.so"), fcompile=linking.linker(target))
    first = (tmp_path / "one" / "net.so").read_bytes()
    assert first == (tmp_path / "another" / "net.so").read_bytes()
    assert str(tmp_path).encode() not in first and b"/tmp" not in first


def test_native_code_runs(tmp_path: Path):
    target = Target.load("native")
    build(target).export_library(str(tmp_path / "net.so"), fcompile=linking.linker(target))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "net.so")), tvm.cpu())
    _, x = small_net()
    np.testing.assert_allclose(machine["main"](tvm.runtime.tensor(x))[0].numpy(), expected(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "package"), [("rpi4", "gcc-aarch64-linux-gnu"), ("rpi3-32", "gcc-arm-linux-gnueabihf")]
)
def test_a_missing_compiler_is_named_with_its_package(name: str, package: str, monkeypatch):
    monkeypatch.setattr(linking.shutil, "which", lambda _: None)
    monkeypatch.setattr(linking.cpu, "architecture", lambda: "x86_64")
    with pytest.raises(MissingDependencyError, match=f"apt-get install {package}"):
        linking.linker(Target.load(name))


def test_what_cannot_be_linked_is_one_line(tmp_path: Path):
    (tmp_path / "broken.o").write_bytes(b"not an object")
    with pytest.raises(TvmcompressError, match="could not link") as caught:
        linking.linker(Target.load("native"))(str(tmp_path / "net.so"), [str(tmp_path / "broken.o")])
    assert "\n" not in str(caught.value)


def test_a_missing_c_library_is_named_with_its_package(tmp_path: Path, monkeypatch):
    """Debian's cross compilers come without the C library of their target."""
    script = tmp_path / "aarch64-linux-gnu-gcc"
    script.write_text("#!/bin/sh\necho 'ld: cannot find crti.o: No such file or directory' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(linking.cpu, "architecture", lambda: "x86_64")
    monkeypatch.setattr(linking, "compiler", lambda _: str(script))
    with pytest.raises(MissingDependencyError, match="apt-get install libc6-dev-arm64-cross"):
        linking.linker(Target.load("rpi4"))(str(tmp_path / "net.so"), [str(tmp_path / "x.o")])


@pytest.mark.parametrize("name", ["native", "rpi4"])
def test_a_network_without_kernels_links(name: str, tmp_path: Path):
    """Its program then comes in a C file instead of LLVM's object, whose symbols must stay visible."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(relax.Tuple([x]))
    target = Target.load(name)
    built = tvm.compile(builder.get(), target=target.to_tvm())
    built.export_library(str(tmp_path / "net.so"), fcompile=linking.linker(target))
    assert b"__tvm_ffi__library_bin\0" in (tmp_path / "net.so").read_bytes()
    if name == "native":
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "net.so")), tvm.cpu())
        given = np.arange(6, dtype="float32").reshape(2, 3)
        np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(given))[0].numpy(), given)
