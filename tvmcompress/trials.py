"""Trial: what was measured of one set of decisions; and trials as lines of JSON, each complete in itself."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from tvmcompress.target import Target

VERSION = 1
SHIPPED = Path(__file__).with_name("_tuning_logs")
# What came of a trial. The last two say nothing about the decisions: they are made again.
STATUSES = ("ok", "wrong_result", "build_error", "run_crash", "run_timeout", "infra_error", "cancelled")
EMULATED = ", emulated"  # behind a board's key
PASSING = ("infra_error", "cancelled")
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

    @functools.cached_property
    def digest(self) -> str:
        return digest(self.decisions)


def digest(decisions: Mapping[str, Any]) -> str:
    """Equal for equal decisions."""
    return hashlib.blake2b(json.dumps(decisions, sort_keys=True).encode(), digest_size=12).hexdigest()


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
    if value["status"] not in STATUSES:
        raise ValueError(f"status '{value['status']}'")
    times = value["times_ms"]
    if not all(isinstance(t, int | float) and 0 < t < float("inf") for t in times) or (
        value["status"] == "ok" and not times
    ):
        raise ValueError("times_ms must be positive numbers")
    known = {one.name: value[one.name] for one in fields(Trial)}
    return Trial(**{**known, "times_ms": tuple(float(t) for t in times)})


def shipped(target: Target, versions: str) -> Iterator[Trial]:
    """Records that ship with the project for a target."""
    for path in sorted((SHIPPED / target.name).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            trial = from_record(json.loads(line))
            if trial.target == target_key(target) and trial.versions == versions:
                yield trial
