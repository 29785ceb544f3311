"""Forked children: whatever becomes of them is a result, and nothing of theirs stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.networks import small
from tvmcompress.tuning import children

ROOT = Path(__file__).parents[2]


def crash():
    os.write(2, b"about to go\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def fail():
    raise ValueError("first line\nthe reason")


def hang(path):
    process = subprocess.Popen(["sleep", "1000"])
    Path(path).write_text(f"{os.getpid()} {process.pid}")
    time.sleep(1000)


@pytest.mark.alone
def test_outcomes_in_order(tmp_path) -> None:
    note = tmp_path / "pids"
    begun = time.monotonic()
    work = [lambda: hang(note), lambda: 1, crash, fail, lambda: os._exit(3), lambda: np.arange(3)]
    hung, one, crashed, failed, left, array = children.run(work, 2, 3.0)
    assert time.monotonic() - begun < 10
    assert (hung.status, one.status, one.value, array.status) == ("timeout", "ok", 1, "ok")
    assert crashed.status == "crash" and crashed.error == "SIGSEGV: about to go"
    assert failed.status == "error" and failed.error == "ValueError: the reason"
    assert left.status == "crash" and "exit code 3" in left.error
    np.testing.assert_array_equal(array.value, np.arange(3))
    gone = [int(pid) for pid in note.read_text().split()]
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in gone)


@pytest.mark.alone
def test_at_once() -> None:
    begun = time.monotonic()
    children.run([lambda: time.sleep(0.5)] * 4, 4, 10.0)
    assert time.monotonic() - begun < 1.5


def test_parallel_kernels_run_in_a_child_of_one_that_ran_some(tmp_path) -> None:
    """TVM's threads do not survive a fork, so a child must start its own."""
    import onnx

    import tvmcompress as tc

    onnx.save(small(64), tmp_path / "net.onnx")
    model = tc.load(tmp_path / "net.onnx")
    package = tc.compile(model, "native")
    deployment, inputs = tc.deploy(package), {s.name: np.ones(s.shape, s.dtype) for s in model.inputs}
    wanted = deployment(inputs)
    (outcome,) = children.run([lambda: tc.deploy(package)(inputs)], 1, 60.0)
    assert outcome.status == "ok", outcome.error
    for name, array in wanted.items():
        np.testing.assert_array_equal(outcome.value[name], array)


PARENT = """
import os, sys, time
from tvmcompress.tuning import children
def work():
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(1000)
children.run([work], 1, 1000.0)
"""


def test_a_child_dies_with_its_parent(tmp_path) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(note)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.wait()
    child.wait(10)
