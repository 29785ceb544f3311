"""Throughput of a crew: servers on this machine that pause in each session, and jobs that were built before."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvmcompress import process

process.import_without_torch("tvm")

from tvmcompress.serving import listener, watchdog  # noqa: E402
from tvmcompress.target import Target  # noqa: E402
from tvmcompress.tuning import board  # noqa: E402
from tvmcompress.tuning.crew import Crew  # noqa: E402
from tvmcompress.tuning.workshop import Workshop  # noqa: E402
from tvmcompress.tuning_log import TuningLog  # noqa: E402

CASES = ((0.2, 8, 40), (2.0, 64, 15))  # the pause in seconds, how many boards, jobs of each
ROUNDS = 3


@contextmanager
def servers(count: int, pause: float) -> Iterator[list[str]]:
    """Boards of one CPU each, which share this machine: so the known kernel's time is not looked at."""
    found, pids, cpus = [], [], sorted(os.sched_getaffinity(0))
    for number in range(count):
        listening = watchdog.bound("127.0.0.1", 0)
        found.append(f"127.0.0.1:{listening.getsockname()[1]}")
        pid = os.fork()
        if pid == 0:
            process.die_with_parent()
            os.sched_setaffinity(0, {cpus[number % len(cpus)]})
            listener.run(listening, before=lambda: time.sleep(pause))
            os._exit(0)
        pids.append(pid)
        listening.close()
    try:
        yield found
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def rate(folder: Path, count: int, pause: float, jobs: int) -> float:
    """Jobs a second."""
    with servers(count, pause) as addresses, TuningLog.open(folder / "log.db") as log:
        workshop = Workshop(Target.load("native"), Path(tempfile.mkdtemp(dir=folder)), 2)
        crew = Crew(addresses, None, workshop, log, lambda _name, _facts: None)
        try:
            begun = time.monotonic()
            outcomes = [outcome.status for _, outcome in crew.measure([crew.health] * (jobs * count))]
            seconds = time.monotonic() - begun
        finally:
            crew.close()
    assert set(outcomes) == {"ok"}, set(outcomes)
    return len(outcomes) / seconds


def measure(folder: Path) -> dict:
    board.TOLERANCE = 1e9
    rows = []
    for pause, count, jobs in CASES:
        pairs = [(rate(folder, 1, pause, jobs), rate(folder, count, pause, jobs)) for _ in range(ROUNDS)]
        ratios = sorted(many / one for one, many in pairs)
        rows.append(
            {"pause_s": pause, "boards": count, "jobs_per_s": pairs, "times": ratios[ROUNDS // 2], "all": ratios}
        )
    return {"throughput": rows}
