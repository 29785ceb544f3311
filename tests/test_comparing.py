"""compare, from a model to a page: on this machine, on boards over RPC, on emulated ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import onnx
import pytest

import tvmcompress as tc
from tests.arm_board import SCRIPT, ArmBoard, arm_board, served  # noqa: F401  a fixture
from tests.boards import board
from tests.browser import Browser, browser  # noqa: F401  a fixture
from tests.cli.files import SHAPE, network, quick, tvmcompress
from tvmcompress import cpu, linking
from tvmcompress.comparison import Comparison
from tvmcompress.errors import MissingDependencyError
from tvmcompress.target import Target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparing")
    onnx.save(network(), folder / "model.onnx")
    x = np.random.default_rng(1).normal(size=(4, *SHAPE[1:])).astype(np.float32)
    np.savez(folder / "test.npz", x=x, labels=np.zeros(4, np.int64))
    return folder


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("tvmcompress.comparing.visit.SITTINGS", 2)
    monkeypatch.setattr("tvmcompress.comparing.visit.PROFILE_S", 0.1)


def compare(folder, *arguments: str) -> int:
    return quick(f"compare {folder}/model.onnx --budget 0.5 --log none {' '.join(arguments)}")


def need_linker(target: str) -> None:
    try:
        linking.linker(Target.load(target))
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_variants_on_this_machine(folder):
    """Two targets, so that there is a matrix; all in one test, as each comparison takes seconds."""
    other = "x86-64-v2" if cpu.architecture() == "x86_64" else "generic-aarch64"
    model = tc.load(folder / "model.onnx")
    found = tc.compare(
        model, ["native", other], ["float", "int8"], folder / "test.npz", budget_s=0.5, fail_if_slower=50
    )
    assert [(row["place"], row["variant"]) for row in found.results] == [
        ("native", "float"), ("native", "int8"), (other, "float"), (other, "int8")
    ]  # fmt: skip
    for row in found.results:
        latency, quality = row["latency"], row["quality"]
        assert 0 < latency["min"] <= latency["low"] <= latency["median"] <= latency["high"]
        assert [len(sitting) > 0 for sitting in latency["rounds"]] == [True, True]
        assert quality["samples"] == 4 and quality["accuracy"]["rows"] == 4
        overall = quality["overall"]
        assert overall["exact"] or overall["snr_db"] > (100 if row["variant"] == "float" else 20)
        assert row["size"]["package"] > 1000 and row["plan"]["weights"] > 0 and row["memory"]["peak"] > 10**6
    assert {(row["place"], row["against"]) for row in found.ratios["variants"]} == {
        ("native", "float"),
        (other, "float"),
    }
    for kernels in found.kernels:
        convolution = next(row for row in kernels["rows"] if "conv2d" in row["name"])
        assert convolution["ms"] > 0 and convolution["gflops"] > 0 and convolution["of_peak"] > 0
        assert convolution["decisions"] and convolution["key"] and kernels["peaks"]["float32"]["gmacs"] > 1
        busy = convolution["mix"]["inner"]["dot product"] + convolution["mix"]["inner"]["multiply-add"]
        assert busy > 0 or other == "x86-64-v2"
    assert {(row["of"], row["on"]) for row in found.matrix} == {("native", other), (other, "native")}
    assert all(row["ratio"] and (row["same_code"] or row["quality"]) for row in found.matrix)
    assert found.decisions and set(found.decisions[0]["values"]) == {"native", other}
    assert found.gate["passed"] and not found.failed
    assert Comparison(**{k: v for k, v in json.loads(json.dumps(found.json())).items() if k != "schema"}) == found


def test_a_board_is_timed_by_its_own_clock(folder, capsys):
    """The board is a server on this machine."""
    with served([sys.executable, "-m", "tvmcompress.serving", "--port", "19291"]) as address:
        place = "native@" + address.removeprefix("rpc://")
        assert compare(folder, f"--on {place} --json {folder}/board.json") == 0
    found = Comparison.load(folder / "board.json")
    (row,), (kernels,) = found.results, found.kernels
    assert not row["emulated"] and 0 < row["latency"]["low"] <= row["latency"]["high"]
    assert row["quality"]["overall"]["top1_agreement"] == 1 and found.how["example_inputs"]
    assert kernels["apart"] and kernels["peaks"]["float32"]["gmacs"] > 1
    assert all(one["ms"] > 0 and one["share"] > 0 for one in kernels["rows"])
    assert any(one["of_peak"] for one in kernels["rows"])
    assert "made-up inputs" in capsys.readouterr().out


@pytest.mark.long
def test_the_gate_and_its_baseline(folder, capsys):
    assert compare(folder, f"--json {folder}/now.json --markdown {folder}/now.md") == 0
    value = json.loads((folder / "now.json").read_text())
    (row,) = value["results"]
    row["latency"]["rounds"] = [[ms / 20 for ms in sitting] for sitting in row["latency"]["rounds"]]
    (folder / "then.json").write_text(json.dumps(value))
    assert compare(folder, f"--fail-if-slower 5% --json {folder}/then.json") == 1
    assert "then.json stays the baseline, this is in" in capsys.readouterr().err
    assert json.loads((folder / "then.json").read_text()) == value
    assert Comparison.load(folder / "then.failed.json").results[0]["latency"]
    assert compare(folder, f"--fail-if-slower 5% --baseline {folder}/then.json -o {folder}/slow.html") == 1
    told = capsys.readouterr()
    assert "error: slower by more than 0.05: float on native" in told.err and "slower" in told.out
    assert "the gate" in (folder / "slow.html").read_text()
    value["model"]["sha256"] = "00"
    (folder / "other.json").write_text(json.dumps(value))
    assert compare(folder, f"--fail-if-slower 5% --baseline {folder}/other.json") == 2
    assert "the baseline is of another model" in capsys.readouterr().err
    assert (folder / "now.md").read_text().startswith("# model.onnx: float on native")


def test_a_board_that_is_not_there(folder, capsys):
    need_linker("rpi4")
    assert compare(folder, f"--no-matrix --on native --on rpi4@127.0.0.1:1 --json {folder}/lost.json") == 1
    told = capsys.readouterr()
    assert "rpi4@127.0.0.1:1 was not reached: device" in told.err and "Connection refused" in told.err
    found = Comparison.load(folder / "lost.json")
    assert [row["error"] == "" for row in found.results] == [True, False]
    assert found.results[0]["latency"] and not found.places[1]["reached"]


def test_a_board_of_another_architecture(folder, capsys):
    need_linker("cortex-a72")
    with board() as one:
        place = f"cortex-a72@{one.address}"
        assert compare(folder, f"--no-matrix --on {place} --on native --json {folder}/other.json") == 1
    assert f"did not run on {place}" in capsys.readouterr().err
    found = Comparison.load(folder / "other.json")
    assert found.results[0]["error"] and not found.results[0]["latency"] and found.results[1]["latency"]


@pytest.mark.long
def test_interrupted_it_leaves_nothing(folder, tmp_path):
    command = [sys.executable, "-m", "tvmcompress", "compare", str(folder / "model.onnx"), "--budget", "600"]
    process = subprocess.Popen([*command, "-o", "c.html", "--json", "c.json"], cwd=tmp_path, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert (process.returncode, error.strip()) == (130, "error: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_three_boards_of_which_two_are_emulated(arm_board: ArmBoard, browser: Browser, folder, tmp_path):  # noqa: F811
    """One command, and its page read in a browser."""
    need_linker("cortex-a72")
    with ExitStack() as stack:
        boards = [["--cpu", "cortex-a72", "19292"], ["19293"]]
        addresses = [stack.enter_context(served([str(SCRIPT), "serve", *board])) for board in boards]
        names = [f"{t}@{a.removeprefix('rpc://')}" for t, a in zip(("cortex-a72", "jetson-orin"), addresses)]
        where = " ".join(f"--on {name}" for name in ("native", *names))
        arguments = (
            f"--samples test.npz --limit 1 --budget 0.5 --log none -o {tmp_path}/c.html --json {tmp_path}/c.json"
        )
        recipes = "--recipe float --recipe int8"
        done = tvmcompress(f"compare model.onnx {where} {recipes} {arguments}", folder)
        assert done.returncode == 0, done.stderr
    found = Comparison.load(tmp_path / "c.json")
    assert [place["emulated"] for place in found.places] == [False, True, True]
    for row in found.results:
        assert (row["latency"] is None) is row["emulated"] and not row["error"]
        overall = row["quality"]["overall"]
        assert overall["exact"] or overall["snr_db"] > (100 if row["variant"] == "float" else 20)
    for kernels in found.kernels:
        assert all((one["ms"] is None) is kernels["emulated"] for one in kernels["rows"])
    by_name = {(t["place"].split("@")[0], t["variant"]): t["mix"]["inner"] for t in found.kernels}
    assert by_name["jetson-orin", "int8"]["dot product"] and not by_name["cortex-a72", "int8"]["dot product"]
    crossed = [row for row in found.matrix if row["emulated"]]
    others = [row for row in crossed if not row["same_code"]]  # the two that are emulated may decide alike
    assert others and all(row["quality"]["exact"] for row in others) and any(row["carried"] for row in crossed)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(tmp_path / "c.html")
    body = "document.querySelector('section tbody')"
    shown = f"[...{body}.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    rows = browser.value(shown)
    assert [row[0] for row in rows] == [row["place"] for row in found.results]
    assert [row[2] for row in rows[2:]] == ["emulated"] * 4 and "s" in rows[0][2]
    assert browser.complaints == [] and browser.requests[1:] in ([], ["data:,"])
