"""A run that was stopped again and again, against one of the same trials that was left alone.

Both are the command that a user types. Stopped by Ctrl-C and by SIGKILL in turn, at random moments.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

import tvmcompress as tc
from scripts.tuning import ours
from tvmcompress.tuning_log import TuningLog

STOPS = (signal.SIGINT, signal.SIGKILL)
PATIENCE_S = 3600.0  # for a trial


def measure(folder: Path, network: str, recipe: str, trials: int, stops: int) -> dict:
    model, path = ours.model_of(folder, network, recipe)
    if recipe:
        path = folder / f"{network}-{recipe}.model"
        model.save(path)
    alone, stopped = Run(folder, "alone", path, trials), Run(folder, "stopped", path, trials)
    alone.go()
    rng = random.Random(0)
    for number, at in enumerate(sorted(rng.sample(range(1, trials), min(stops, trials - 1)))):
        stopped.go(STOPS[number % len(STOPS)], at, rng.uniform(0, 1))
    stopped.go()
    packages = {"untuned": tc.compile(model, "native")}
    packages |= {run.name: tc.compile(model, "native", log=run.log) for run in (alone, stopped)}
    rounds = ours.rounds_of(packages)
    ratios = sorted(b / a for a, b in zip(rounds["alone"], rounds["stopped"]))
    return {
        "ms": {name: spread(found) for name, found in rounds.items()},
        "stopped_to_alone": spread(ratios),
        "alone": alone.checked(),
        "stopped": stopped.checked(),
    }


class Run:
    """`tvmcompress tune` with a log and events of its own, as often as `go` is called."""

    def __init__(self, folder: Path, name: str, model: Path, trials: int) -> None:
        self.name, self.log, self.events, self.trials = name, folder / f"{name}.db", folder / f"{name}.events", trials
        words = ["tune", str(model), "--log", str(self.log), "--trials", str(trials), "--events", str(self.events)]
        self.command = [sys.executable, "-m", "tvmcompress", *words]
        self.ended: Counter[str] = Counter()

    def go(self, how: signal.Signals | None = None, at: int = 0, later: float = 0.0) -> None:
        """To its end; or stopped when there are so many trials, some seconds later."""
        with subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed
        ) as process:
            deadline = time.monotonic() + PATIENCE_S
            while how and process.poll() is None and len(self.told()) < at and time.monotonic() < deadline:
                time.sleep(0.1)
            if how:
                time.sleep(later)
                process.send_signal(how)
            said = process.communicate()[1]
        self.ended[how.name if how and process.returncode else "end"] += 1
        assert how or process.returncode == 0, said

    def told(self) -> list[dict]:
        """The trials of which it told, in all its runs."""
        lines = self.events.read_text().split("\n")[:-1] if self.events.exists() else []
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # torn by a kill, and another behind it
                continue
            found += [event] if event["event"] == "trial" else []
        return found

    def checked(self) -> dict:
        """What is in the log; raises AssertionError when something was measured twice, or is missing."""
        told = [(event["workload"], event["digest"]) for event in self.told()]
        with TuningLog.open(self.log) as log:
            rows = [(trial.workload, trial.digest) for trial in log.trials() if trial.status != "cancelled"]
            cancelled = len(log.trials()) - len(rows)
        assert len(set(told)) == len(told), "measured twice"
        assert set(told) <= set(rows) and len(rows) <= self.trials, (len(told), len(rows))
        return {"trials": len(rows), "told": len(told), "cancelled": cancelled, "ended": dict(self.ended)}


def heed() -> None:
    """SIGINT, which what runs in the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spread(found: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(found, [25, 50, 75])
    return {"quarter": float(low), "median": float(middle), "three_quarters": float(high)}
