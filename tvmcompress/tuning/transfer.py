"""Transfer: what was best on another target is tried first here, and measured like everything else.

A record of one target is never an answer for another; it is a good question. What the other's run took to find it, and
this one need not, is what a transfer saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmcompress import trials
from tvmcompress.errors import UsageError
from tvmcompress.target import Target
from tvmcompress.trials import PASSING, Trial, digest, target_key

if TYPE_CHECKING:
    from tvmcompress.tuning.kernel import Kernel, Place
    from tvmcompress.tuning_log import TuningLog

SEEDS = 3  # of a kernel
ALIKE = 0.01  # a difference of times that is none


@dataclass(frozen=True)
class Seed:
    """Decisions of another target's. `after`: how many trials of this kernel, its untuned form not counted, that
    target's log has up to and with them."""

    decisions: Mapping[str, Any]
    after: int


@dataclass
class Transfer:
    """Seeds by kernel, the best first, from the target of the log's key `source`; `before`: what was known already."""

    source: str
    seeds: Mapping[str, Sequence[Seed]]
    before: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def between(cls, text: str, place: Place, log: TuningLog, workloads: Iterable[str]) -> Transfer:
        """From the target that `text` names, as for Target.load or as the log calls it, to `place`.

        Raises TargetError for an unknown target, UsageError for one that has no records of these kernels.
        """
        stored = {trial.target for trial in log.trials(versions=place.versions)}
        named = None if text in stored else Target.load(text)
        if named is not None and named.builds:
            names = ", ".join(build.name for build in named.builds)
            raise UsageError(f"from {named.name}: has several builds: name one of {names}")
        source = target_key(named) if named else text
        others = ", ".join(sorted(stored - {place.target})) or "none"
        if source == place.target:
            raise UsageError(f"from {text}: is the target that is tuned for; others in {log.name}: {others}")
        shipped = list(trials.shipped(named, place.versions)) if named else []
        seeds = {one: found for one in workloads if (found := seeds_of(log, source, one, place.versions, shipped))}
        if not seeds:
            what = "these kernels" if source in stored else f"it; others there: {others}"
            raise UsageError(f"from {text}: {log.name} has no trials of {what}")
        return cls(source, seeds)

    def sow(self, kernels: Iterable[Kernel]) -> None:
        """Has each kernel try its seeds first."""
        for kernel in kernels:
            kernel.seeds += [dict(seed.decisions) for seed in self.seeds.get(kernel.task.workload, ())]
            self.before[kernel.task.workload] = {trial.digest for trial in kernel.trials}

    def harvest(self, kernels: Iterable[Kernel]) -> dict[str, Any]:
        """What came of it in this run: `seeds` that were measured, `kernels` in which one of them is as fast as the
        best found and the untuned form was not kept, and `saved`: the trials that the other target took until it had
        found those, less all seeds measured.

        Negative where seeds cost more than they saved. Trials that are not in the log, as those behind an export of the
        best alone, are not counted: then it is too low.
        """
        measured = helped = took = 0
        for kernel in kernels:
            times = kernel.times()
            after: dict[str, int] = {}
            for seed in self.seeds.get(kernel.task.workload, ()):
                own = kernel.aliases.get(digest(seed.decisions), digest(seed.decisions))
                if own in times and own != kernel.first and own not in self.before[kernel.task.workload]:
                    after[own] = min(seed.after, after.get(own, seed.after))
            measured += len(after)
            good = [n for own, n in after.items() if times[own] <= (1 + ALIKE) * kernel.best]
            if good and kernel.kept != kernel.first and kernel.best < (1 - ALIKE) * kernel.start:
                helped += 1
                took += min(good)
        return {"from": self.source, "seeds": measured, "kernels": helped, "saved": took - measured}


def seeds_of(log: TuningLog, target: str, workload: str, versions: str, shipped: Sequence[Trial]) -> list[Seed]:
    """The best of one kernel: those of the board that has most trials of it, and in front what was confirmed there."""
    boards: dict[str, list[Trial]] = {}
    for trial in [*log.trials(target, workload, None, versions), *shipped]:
        if trial.workload == workload and trial.status not in PASSING:
            boards.setdefault(trial.board, []).append(trial)
    if not boards:
        return []
    board, history = max(boards.items(), key=lambda item: len(item[1]))
    times = trials.comparable(history, trials.untuned(history))
    good = sorted((trial for trial in history if trial.status == "ok"), key=lambda trial: times[trial.digest])
    confirmed = log.decisions(target, versions, board).get(workload)
    good.sort(key=lambda trial: trial.decisions != confirmed)
    order = list(dict.fromkeys(trial.digest for trial in history))
    return [Seed(trial.decisions, order.index(trial.digest)) for trial in unique(good)[:SEEDS]]


def unique(found: Iterable[Trial]) -> list[Trial]:
    return list({trial.digest: trial for trial in found}.values())
