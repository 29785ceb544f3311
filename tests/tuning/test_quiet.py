"""Runs of the tuner on one machine: they build together, and each times alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tvmcompress.tuning import quiet

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the lock of tests that run beside these."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def hold(kind: str, held: Event, leave: Event) -> None:
    with getattr(quiet, kind)():
        held.set()
        leave.wait(20)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [("building", "building", True), ("building", "timing", False), ("timing", "building", False),
     ("timing", "timing", False)],
)  # fmt: skip
def test_who_waits_for_whom(first: str, second: str, together: bool) -> None:
    leave, events = FORK.Event(), [FORK.Event(), FORK.Event()]
    runs = [FORK.Process(target=hold, args=(k, e, leave)) for k, e in zip((first, second), events)]
    runs[0].start()
    assert events[0].wait(20)
    runs[1].start()
    assert events[1].wait(0.3 if not together else 20) is together
    leave.set()
    assert events[1].wait(20)
    for run in runs:
        run.join()


def test_a_lock_ends_with_its_process() -> None:
    held = FORK.Event()
    run = FORK.Process(target=hold, args=("timing", held, FORK.Event()))
    run.start()
    assert held.wait(20)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    begun = time.monotonic()
    with quiet.timing():
        assert time.monotonic() - begun < 5


def test_a_child_that_lives_on_does_not_keep_it() -> None:
    """A measurement's process has the file of the lock too."""
    leave = FORK.Event()
    with quiet.timing():
        child = FORK.Process(target=leave.wait, args=(20,))
        child.start()
    begun = time.monotonic()
    with quiet.timing():
        assert time.monotonic() - begun < 5
    leave.set()
    child.join()


def test_where_there_can_be_no_lock_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    begun = time.monotonic()
    with quiet.timing(), quiet.timing():  # with a lock it would wait for itself
        assert time.monotonic() - begun < 5
