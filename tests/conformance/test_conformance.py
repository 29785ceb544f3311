"""What the golden files say passes, passes: ONNX's node cases, and all that TVM's own importer manages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import harness
from tests.conformance.cases import node_cases

HERE = Path(__file__).parent
BAR = 900  # of the 1506 cases of onnx 1.23.2


def golden(name: str) -> list[str]:
    return (HERE / name).read_text().split()


def test_all_that_stock_passes_passes():
    assert set(golden("stock.txt")) <= set(golden("passing.txt"))


def test_bar():
    assert len(golden("passing.txt")) >= BAR


def failures(names: list[str], report: Path) -> dict[str, str]:
    """In a process of its own: a child forked from one whose threads have run kernels would wait for them for ever."""
    known = node_cases()
    names = [n for n in names if n in known]
    command = [sys.executable, "-m", "tests.conformance", *names, "--failures", str(report)]
    subprocess.run(command, cwd=HERE.parent.parent, check=True, stdout=subprocess.DEVNULL)
    return dict(line.split("\t", 1) for line in report.read_text().splitlines())


@pytest.mark.parametrize("part", range(3))
def test_some_cases(part, tmp_path):
    """Every 21st of the golden list, so that all families are in."""
    assert failures(golden("passing.txt")[::21][part::3], tmp_path / "failures") == {}


@pytest.mark.long
def test_all_cases(tmp_path):
    assert failures(golden("passing.txt"), tmp_path / "failures") == {}


def test_a_crash_is_an_outcome():
    def crash(_case):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)

    cases = node_cases()
    outcome = harness.in_child(cases["test_abs"], crash, 10)
    assert not outcome.passed and "SIGSEGV" in outcome.reason


def test_an_endless_case_is_an_outcome():
    import time

    outcome = harness.in_child(node_cases()["test_abs"], lambda _case: time.sleep(60), 0.2)
    assert not outcome.passed and outcome.reason == "took too long"
