"""Throughput of a crew: servers on this machine that pause in each session, and jobs that were built before."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tvmcompress import process

process.import_without_torch("tvm")

from tvmcompress.target import Target  # noqa: E402
from tvmcompress.tuning import board  # noqa: E402
from tvmcompress.tuning.crew import Crew  # noqa: E402
from tvmcompress.tuning.workshop import Workshop  # noqa: E402
from tvmcompress.tuning_log import TuningLog  # noqa: E402

CASES = ((0.2, 8, 40), (2.0, 64, 40))  # the pause in seconds, how many boards, jobs of each
ROUNDS = 3


@contextlib.contextmanager
def servers(count: int, pause: float) -> Iterator[list[str]]:
    """Addresses of boards of one CPU each, which share this machine: so the known kernel's time is not looked at."""
    command = [sys.executable, "-m", "scripts.tuning.servers", str(count), str(pause)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as farm:
        assert farm.stdout is not None
        try:
            yield farm.stdout.readline().split()
        finally:
            farm.kill()


def spent() -> float:
    """Seconds of processor time of this process, of those below it, and of what these have seen end."""
    me, seconds = psutil.Process(), 0.0
    for one in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def rate(folder: Path, count: int, pause: float, jobs: int) -> tuple[float, float]:
    """Jobs a second, and ms of processor time of a job, on both sides together."""
    with servers(count, pause) as addresses, TuningLog.open(folder / "log.db") as log:
        workshop = Workshop(Target.load("native"), Path(tempfile.mkdtemp(dir=folder)), 2)
        crew = Crew(addresses, None, workshop, log, lambda _name, _facts: None)
        try:
            begun, before = time.monotonic(), spent()
            outcomes = [outcome.status for _, outcome in crew.measure([crew.health] * (jobs * count))]
            seconds, cpu = time.monotonic() - begun, spent() - before
        finally:
            crew.close()
    assert set(outcomes) == {"ok"}, set(outcomes)
    return len(outcomes) / seconds, 1e3 * cpu / len(outcomes)


def measure(folder: Path, cases: Sequence[tuple[float, int, int]] = CASES, rounds: int = ROUNDS) -> dict:
    board.TOLERANCE = 1e9
    rows = []
    for pause, count, jobs in cases:
        pairs = [(rate(folder, 1, pause, jobs), rate(folder, count, pause, jobs)) for _ in range(rounds)]
        ratios = sorted(many[0] / one[0] for one, many in pairs)
        rows.append(
            {
                "pause_s": pause,
                "boards": count,
                "jobs_per_s": [(one[0], many[0]) for one, many in pairs],
                "cpu_ms_per_job": [(one[1], many[1]) for one, many in pairs],
                "times": ratios[rounds // 2],
                "all": ratios,
            }
        )
    return {"throughput": rows}
