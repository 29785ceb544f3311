"""Trial: what was measured of one set of decisions; and trials as lines of JSON, each complete in itself."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from tvmcompress.target import Target

VERSION = 1
LONGEST = 1e12  # ms
CONFIRMED = "confirmed"  # in a record: when the trial won against the untuned form, or was withdrawn to
SHIPPED = Path(__file__).with_name("_tuning_logs")
# What came of a trial. The last two say nothing about the decisions: they are made again.
STATUSES = ("ok", "wrong_result", "build_error", "run_crash", "run_timeout", "infra_error", "cancelled")
EMULATED = ", emulated"  # behind a board's key
PASSING = ("infra_error", "cancelled")
BESIDE = "untuned_ms"  # in a trial's conditions: what the untuned form took just before
GAIN = 0.01  # of a kernel's time: less is noise
SHAPING = ("triple", "cpu", "features", "kind", "cores", "l1d", "l2", "float_abi", "cuda_arch")  # what code depends on


@dataclass(frozen=True)
class Trial:
    """One set of decisions for a kernel, built, checked and timed once.

    `times_ms`: of single runs, empty unless the status is `ok`. `conditions`: what the board said of itself then, such
    as {"temperature_c": 61.0, "mhz": 1500}. `at`: when, in ISO 8601 and UTC.
    """

    target: str
    workload: str
    board: str
    versions: str
    decisions: Mapping[str, Any]
    status: str = "ok"
    times_ms: tuple[float, ...] = ()
    error: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""

    @property
    def ms(self) -> float:
        """The median; infinity for a trial that failed."""
        return median(self.times_ms) if self.status == "ok" and self.times_ms else float("inf")

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What it belongs to."""
        return self.target, self.workload, self.board, self.versions

    @functools.cached_property
    def digest(self) -> str:
        return digest(self.decisions)


def digest(decisions: Mapping[str, Any]) -> str:
    """Equal for equal decisions."""
    return hashlib.blake2b(json.dumps(decisions, sort_keys=True).encode(), digest_size=12).hexdigest()


def untuned(trials: Iterable[Trial]) -> str:
    """Of one kernel's trials at one place, in their order, the digest of the untuned form: what was measured first, and
    beside nothing; empty where there is none."""
    alone = (t.digest for t in trials if t.status not in PASSING and BESIDE not in t.conditions)
    return next(alone, "")


def untuned_ms(trials: Sequence[Trial], first: str) -> float:
    """ms of one call of the untuned form, `first`: the median of all times that it was measured."""
    alone = [trial.ms for trial in trials if trial.digest == first][:1]
    times = {*alone, *(t.conditions[BESIDE] for t in trials if BESIDE in t.conditions)}
    return median(times) if times else float("inf")


def comparable(trials: Sequence[Trial], first: str) -> dict[str, float]:
    """ms of one call of each of one kernel's trials at one place, by its digest, as if the untuned form, `first`, had
    then taken its usual time: alone and within a model are not the same, and a machine that others share is now quick
    and now slow, for longer than a few measurements take."""
    start = untuned_ms(trials, first)
    found = {t.digest: t.ms * start / t.conditions[BESIDE] if BESIDE in t.conditions else t.ms for t in trials}
    return found | {first: start} if first in found else found


def fastest(trials: Iterable[Trial]) -> list[Trial]:
    """Of the trials of each kernel, target, board and version the one to use, of those that have a right one: the
    untuned form, unless another is clearly faster."""
    found = []
    for some in by_place(trials).values():
        first = untuned(some)
        times = comparable(some, first)
        right = sorted((t for t in some if t.status == "ok"), key=lambda t: times[t.digest])
        if right and times[right[0].digest] > (1 - GAIN) * times.get(first, float("inf")):
            right.sort(key=lambda t: t.digest != first)
        found += right[:1]
    return found


def by_place(trials: Iterable[Trial]) -> dict[tuple[str, str, str, str], list[Trial]]:
    """Trials by (target, workload, board, versions)."""
    found: dict[tuple[str, str, str, str], list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.place, []).append(trial)
    return found


def target_key(target: Target) -> str:
    """A target as the log knows it: its name, and a digest of all that code depends on."""
    described = target.describe()
    shaping = json.dumps({name: described[name] for name in SHAPING}, sort_keys=True)
    return f"{target.name}:{hashlib.blake2b(shaping.encode(), digest_size=6).hexdigest()}"


def board_key(described: Mapping[str, Any], emulated: bool = False) -> str:
    """A board by what `cpu.describe` says of it: its processor, cores and features, not its name in a network.

    One that is emulated is told apart: its times mean nothing.
    """
    features = hashlib.blake2b(" ".join(described["features"]).encode(), digest_size=6).hexdigest()
    name = f"{described['model'] or described['architecture']}"[:100]
    return f"{name}, {described['cores']} cores, {features}{EMULATED if emulated else ''}"


def record(trial: Trial) -> dict[str, Any]:
    """A trial as JSON, complete in itself."""
    return {"tvmcompress": VERSION, **asdict(trial), "times_ms": list(trial.times_ms)}


def from_record(value: Any) -> Trial:
    """Raises ValueError with what is wrong for anything that `record` did not write."""
    if not isinstance(value, dict) or "tvmcompress" not in value:
        raise ValueError("not a record of tvmcompress")
    if value["tvmcompress"] != VERSION:
        raise ValueError(f"a record of version {value['tvmcompress']}, here {VERSION}")
    kinds: dict[str, type | tuple] = {"decisions": dict, "conditions": dict, "times_ms": list}
    for one in fields(Trial):
        if not isinstance(value.get(one.name), kinds.get(one.name, str)):
            raise ValueError(f"no {one.name}, or not of its kind")
    if not isinstance(value.get(CONFIRMED, ""), str):
        raise ValueError(f"{CONFIRMED} is not of its kind")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text that is no Unicode ({error.reason})") from error
    if value["status"] not in STATUSES:
        raise ValueError(f"status '{value['status']}'")
    times = value["times_ms"]
    if not all(type(t) in (int, float) and 0 < t < LONGEST for t in times) or (value["status"] == "ok" and not times):
        raise ValueError("times_ms must be positive numbers")
    known = {one.name: value[one.name] for one in fields(Trial)}
    return Trial(**{**known, "times_ms": tuple(float(t) for t in times)})


def read_line(line: str) -> tuple[Trial, str]:
    """A line of a file of records: the trial, and when it was confirmed, if so. Raises ValueError, with the reason."""
    try:
        value = json.loads(line, parse_constant=_no_number)
        trial = from_record(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError("not JSON: nested too deeply" if isinstance(error, RecursionError) else str(error)) from error
    return trial, value.get(CONFIRMED, "")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def shipped(target: Target, versions: str) -> Iterator[Trial]:
    """Records that ship with the project for a target."""
    for path in sorted((SHIPPED / target.name).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            trial = from_record(json.loads(line))
            if trial.target == target_key(target) and trial.versions == versions:
                yield trial
