"""tune(model, target) -> TuningLog: measure what kernels leave open, on the machine that will run them.

Each convolution and matrix product is a task. Candidates are decisions of our own schedules (kernels.choices), built in
forked children, compared with TVM's stock kernels, and timed alone (`search`) or within the model (`rounds`). What was
measured is in the log before the next measurement begins: a run that was stopped, however, goes on with the same
command, and nothing is measured twice.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tvmcompress import conditions, cpu
from tvmcompress.errors import TargetError, UsageError
from tvmcompress.isa import isa_of
from tvmcompress.kernels.choices import versions
from tvmcompress.model import Model
from tvmcompress.passes import simplified
from tvmcompress.target import Target
from tvmcompress.trials import board_key, target_key
from tvmcompress.tuning.bench import Bench, Here
from tvmcompress.tuning.crew import Crew
from tvmcompress.tuning.finals import Finals
from tvmcompress.tuning.kernel import Place
from tvmcompress.tuning.search import Search
from tvmcompress.tuning.tasks import tasks
from tvmcompress.tuning.transfer import Transfer
from tvmcompress.tuning.whole import Whole
from tvmcompress.tuning.workshop import Workshop
from tvmcompress.tuning_log import TuningLog
from tvmcompress.tunnels import Route

TRIALS = 1000
FINALS_S, FINALS = 15.0, 0.1  # of a budget, at most so much or such a share, for the comparison at the end
FOLDER = "tvmcompress-tune-"  # and the process that it belongs to

Events = Callable[[str, Mapping[str, Any]], None]


def tune(
    model: Model,
    target: Target | str = "native",
    *,
    devices: Sequence[str] = (),
    route: Route | None = None,
    log: TuningLog | str | os.PathLike | None = None,
    trials: int = TRIALS,
    budget_s: float | None = None,
    until: float = 0.0,
    only: str = "*",
    start_from: str | None = None,
    events: Events | None = None,
    seed: int | None = 0,
) -> TuningLog:
    """Tune the kernels of `model` for `target`, on this machine or on boards that can run it.

    devices: addresses of boards (`Device.open`), all of one kind, which are used at once; a tracker's name stands for
    all that have it. route: the way to them. trials: in all, with those of earlier runs on this model. budget_s:
    seconds, likewise. until: stop when no kernel promises this share of the model's time any more. only: a pattern for
    the kernels' names. start_from: another target, whose best decisions in the log are tried first (see `transfer`).
    seed: of what is tried at random; None for another each time, as for runs that tune into one log at once.
    events: called with a name and facts, `start`, `trial`, `progress`, `first_error`, `confirmed` and `done`; and of
    boards `board` (what became of one), `paused` and `resumed`.

    Ctrl-C (KeyboardInterrupt) ends it in seconds with all that was measured in the log; what was being measured then is
    in it as `cancelled`, costs no trial, and comes first in the next run. Raises UsageError for options that cannot be,
    TargetError for a target that is unknown or does not run there, BoardError when no board can be reached at the
    start, TuningLogError when the log cannot be written.
    """
    target = target if isinstance(target, Target) else Target.load(target)
    check(target, trials, budget_s, until)
    if not (devices := boards_of(devices)):
        check_here(target)
    own = not isinstance(log, TuningLog)
    log = log if isinstance(log, TuningLog) else TuningLog.open(log)
    tell = events or (lambda _name, _facts: None)
    machine = target.to_tvm()
    module = simplified(model.module)
    found = [t for t in tasks(module, machine, isa_of(machine, target.l1d, target.l2))
             if fnmatch.fnmatch(t.workload, only)]  # fmt: skip
    if not found:
        raise UsageError(f"nothing to tune: no kernel of the model is named like '{only}'")
    clear_up()
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
    bench: Bench | None = None
    try:
        workshop = Workshop(target, folder, cpu.usable())
        bench = opened(devices, route, workshop, log, tell)
        place = Place(target_key(target), bench.board, versions())
        job = job_key(place, [task.workload for task in found])
        names = [task.workload for task in found]
        transfer = Transfer.between(start_from, place, log, names) if start_from else None
        account = Account(log, job, bench)
        budget = float("inf") if budget_s is None else budget_s - min(FINALS_S, FINALS * budget_s)
        deadline = account.begun + budget - account.before
        whole = Whole(model, module, found, workshop, bench)
        search = Search(
            found, place, workshop, bench, log, account.and_tell(tell), trials, deadline, until, seed, whole
        )  # fmt: skip
        finals = Finals(search)
        if transfer:
            transfer.sow(search.kernels)
        facts = {"kernels": len(found), "trials": search.count, "limit": trials, "budget_s": budget_s}
        tell("start", {**facts, "spent_s": account.before, "target": place.target, "board": place.board,
                       "log": log.name})  # fmt: skip
        try:
            search.run()
            ended = search.why_over()
            model_ms = None
            if not finals.known():
                finals.confirm()
                model_ms = whole.end(log.decisions(place.target, place.versions, place.board))
            if model_ms and model_ms["tuned"] >= model_ms["untuned"]:
                finals.withdraw()
                model_ms["tuned"] = model_ms["untuned"]
        finally:
            account.settle()
        more = {"transfer": transfer.harvest(search.kernels)} if transfer else {}
        tell("done", {"trials": search.count, "new": search.fresh, "failures": dict(search.failures),
                      "cancelled": search.cancelled, "ended": ended, "seconds": search.seconds(), "model_ms": model_ms,
                      **more})  # fmt: skip
    except BaseException:
        if own:
            log.close()
        raise
    finally:
        if bench is not None:
            bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    return log


def opened(devices: Sequence[str], route: Route | None, workshop: Workshop, log: TuningLog, tell: Events) -> Bench:
    return (
        Crew(devices, route, workshop, log, tell) if devices else Here(board_key(cpu.describe(), conditions.emulated()))
    )


def check(target: Target, trials: int, budget_s: float | None, until: float) -> None:
    if trials < 1:
        raise UsageError(f"trials = {trials}: wanted at least 1")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(f"budget = {budget_s:g} s: wanted more than nothing, such as 30m")
    if not 0 <= until < 1:
        raise UsageError(f"until = {until}: wanted a share of the time, such as 5%")
    if target.builds:
        raise TargetError(
            f"{target.name} has several builds: tune for one of {', '.join(b.name for b in target.builds)}"
        )
    if target.kind != "cpu":
        raise TargetError(f"{target.name} is for a GPU, and kernels for CPUs alone are tuned")


def boards_of(devices: Sequence[str]) -> list[str]:
    """Without `local`, which stands for this machine and must stand alone."""
    boards = [text for text in devices if text.strip() != "local"]
    if boards and len(boards) < len(devices):
        raise UsageError("this machine and boards are tuned in two runs: they are not of one kind")
    return boards


def check_here(target: Target) -> None:
    if target.kind != "cpu" or target.arch != cpu.architecture() or (missing := cpu.missing(target.features_needed())):
        why = f"needs {', '.join(missing[:4])}" if target.kind == "cpu" and target.arch == cpu.architecture() else ""
        raise TargetError(
            f"{target.name} does not run on this machine{f': {why}' if why else f' ({cpu.architecture()})'}; "
            "name a board with --device"
        )


class Account:
    """The time that a job has cost, in all its runs; without the time in which no board was there."""

    def __init__(self, log: TuningLog, job: str, bench: Bench) -> None:
        self.log, self.job, self.bench = log, job, bench
        self.before, self.begun, self.settled = log.spent(job), time.monotonic(), 0.0

    def settle(self) -> None:
        """Writes down what was spent since the last time: a run that is killed has cost what it has cost."""
        spent = time.monotonic() - self.begun - self.bench.paused_s
        self.log.spend(self.job, spent - self.settled)
        self.settled = spent

    def and_tell(self, tell: Events) -> Events:
        """`tell`, and accounts settled after each batch."""

        def both(name: str, facts: Mapping[str, Any]) -> None:
            tell(name, facts)
            if name == "progress":
                self.settle()

        return both


def job_key(place: Place, workloads: list[str]) -> str:
    """The same for the same kernels on the same board: a job that goes on."""
    told = "\n".join([place.target, place.board, place.versions, *sorted(workloads)])
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def clear_up() -> None:
    """Folders of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(ValueError, OSError):
            if not psutil.pid_exists(int(folder.name.removeprefix(FOLDER).split("-")[0])):
                shutil.rmtree(folder, ignore_errors=True)
