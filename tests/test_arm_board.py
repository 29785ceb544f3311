"""Cross-compiled code on the emulated board. Each start of TVM there takes ten seconds, so few tests do much."""

from pathlib import Path

import numpy as np
import pytest
import tvm

import tvmcompress as tc
from tests.arm_board import ArmBoard, arm_board  # noqa: F401  a fixture
from tests.small_net import expected, small_int8_model, small_net
from tests.test_device import run
from tvmcompress import linking
from tvmcompress.device import Device
from tvmcompress.errors import MissingDependencyError
from tvmcompress.ir.evaluate import evaluate
from tvmcompress.target import Target

# Generic code, an Armv8.0 and an Armv8.2 core, and one with SVE and i8mm.
TARGETS = ["generic-aarch64", "rpi4", "rpi5", "neoverse-v1"]

RUN_ALL = """
import sys
import numpy as np, tvm
from tvm import relax
x = tvm.runtime.tensor(np.load(sys.argv[1]))
for path in sys.argv[2:]:
    machine = relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())
    np.save(path + ".npy", machine["main"](x)[0].numpy())
"""


def cross_compile(name: str, folder: Path) -> Path:
    target, path = Target.load(name), folder / f"{name}.so"
    try:
        link = linking.linker(target)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    tvm.compile(small_net()[0], target=target.to_tvm()).export_library(str(path), fcompile=link)
    return path


def test_cross_compiled_code_gives_the_right_numbers(arm_board: ArmBoard, tmp_path: Path):  # noqa: F811
    paths = [cross_compile(name, tmp_path) for name in TARGETS]
    x = small_net()[1]
    np.save(tmp_path / "x.npy", x)
    arm_board.python(["-c", RUN_ALL, tmp_path / "x.npy", *paths])
    for path in paths:
        np.testing.assert_allclose(np.load(f"{path}.npy"), expected(x), rtol=1e-4, atol=1e-5, err_msg=path.stem)


NEWER = ["asimddp", "asimdfhm", "bf16", "i8mm"]


@pytest.mark.parametrize(("cpu", "lacking"), [("", []), ("cortex-a53", NEWER)])
def test_the_board_says_what_it_can_do(arm_board: ArmBoard, cpu: str, lacking: list[str]):  # noqa: F811
    code = f"from tvmcompress import cpu; print(cpu.architecture(), cpu.missing(['asimd', *{NEWER}]))"
    assert arm_board.with_cpu(cpu).python(["-c", code]).stdout == f"aarch64 {lacking}\n"


def test_every_shipped_target_can_be_checked_there(arm_board: ArmBoard):  # noqa: F811
    needed = {n for target in Target.list() if target.arch == "aarch64" for n in target.features_needed()}
    code = f"from tvmcompress import cpu; print(cpu.missing({sorted(needed)}))"
    assert arm_board.python(["-c", code]).stdout == "[]\n"


def test_int8_packages_give_the_same_integers_as_here(arm_board: ArmBoard, tmp_path: Path):  # noqa: F811
    model, x = small_int8_model()
    wanted = evaluate(model.module, [x])[0]
    assert len(np.unique(wanted)) > 5
    for name in ("rpi4", "rpi5"):  # without and with the dot product
        cross_compile(name, tmp_path)
        tc.compile(model, Target.load(name)).save(tmp_path / f"{name}.tar")
        np.testing.assert_array_equal(arm_board.run_package(tmp_path / f"{name}.tar", {"x": x})["y"], wanted, name)


def test_a_package_for_a_better_board_is_refused_by_name(arm_board: ArmBoard, tmp_path: Path):  # noqa: F811
    cross_compile("rpi5", tmp_path)
    tc.compile(small_int8_model()[0], Target.load("rpi5")).save(tmp_path / "rpi5.tar")
    done = arm_board.with_cpu("cortex-a53").python(["-m", "tvmcompress", "verify", tmp_path / "rpi5.tar"], check=False)
    assert done.returncode == 4
    assert "asimddp" in done.stderr


def test_the_board_takes_the_build_that_fits(arm_board: ArmBoard, tmp_path: Path):  # noqa: F811
    cross_compile("aarch64-any", tmp_path)
    tc.compile(small_int8_model()[0], "aarch64-any").save(tmp_path / "any.tar")
    for board, builds in (("", ["generic-aarch64-dotprod", "generic-aarch64"]), ("cortex-a53", ["generic-aarch64"])):
        done = arm_board.with_cpu(board).python(["-m", "tvmcompress", "verify", tmp_path / "any.tar"])
        ran = [line.split(" (")[0] for line in done.stdout.splitlines() if line.startswith("good output")]
        assert ran == [f"good output 'y' of {build}" for build in builds]


def test_over_rpc(arm_board: ArmBoard, tmp_path: Path):  # noqa: F811
    path = cross_compile("rpi4", tmp_path)
    with arm_board.server() as address, Device.open(address, timeout=30) as device:
        assert device.describe()["cpu"]["architecture"] == "aarch64"
        np.testing.assert_allclose(run(device, path), expected(small_net()[1]), rtol=1e-4, atol=1e-5)
