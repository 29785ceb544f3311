"""Trials out of a database of TVM's MetaSchedule: the files that its JSONDatabase writes, read by our own code.

    folder/database_workload.json          [hash, program in base64], one a line
    folder/database_tuning_record.json     [line of the workload, [trace, seconds or null, target, arguments]]

TVM's own reader gives up on a half-written line and dies of a blank one. Here what cannot be read is set aside.

Such a trial is kept beside ours, to be looked at, and is never taken for one: its target is TVM's, its version
`metaschedule`, its board not known, and its kernel a hash of TVM's program. `compile` and `tune` ask for none of these.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmcompress.errors import UsageError
from tvmcompress.trials import Trial

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
FAILED_S = 1e10  # what TVM writes for the time of a candidate that failed
FAILED = "TVM's database keeps no reason"
BOARD, VERSIONS = "not known", "metaschedule"
DIGITS = re.compile(r"-?\d{1,20}", re.ASCII)


@dataclass
class Lines:
    """`good`: what stands in each line that is not blank, None for a bad one; `bad`: number, text and what is wrong."""

    path: Path
    good: list[Any] = field(default_factory=list)
    bad: list[tuple[int, str, str]] = field(default_factory=list)

    def read(self, meaning: Callable[[Any], Any]) -> Lines:
        """Fills both, line by line; `meaning` raises ValueError with what is wrong."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    self.good.append(meaning(parsed(line)))
                except ValueError as error:
                    self.good.append(None)
                    self.bad.append((number, line.rstrip("\n"), str(error)))
        return self


def is_database(path: Path) -> bool:
    """Whether `path` is a folder with a database, or one of its files by name."""
    files = [path / WORKLOADS, path / RECORDS] if path.is_dir() else [path]
    return any(file.name in (WORKLOADS, RECORDS) and file.is_file() for file in files)


def read(path: Path) -> tuple[list[Trial], list[Lines]]:
    """The trials in a database, named as for `is_database`, and both of its files with the lines that are bad.

    Raises UsageError when one of the two is missing.
    """
    folder = path if path.is_dir() else path.parent
    for name in (WORKLOADS, RECORDS):
        if not (folder / name).is_file():
            raise UsageError(f"{folder}: a database of MetaSchedule is {WORKLOADS} and {RECORDS}; there is no {name}")
    workloads = Lines(folder / WORKLOADS).read(workload)
    records = Lines(folder / RECORDS).read(lambda value: trial(value, workloads.good))
    return [one for one in records.good if one is not None], [workloads, records]


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("not JSON of MetaSchedule: too deep") from error


def workload(value: Any) -> str:
    """The key of a program: TVM's structural hash of it."""
    if not isinstance(value, list) or [type(v) for v in value] != [str, str] or not DIGITS.fullmatch(value[0]):
        raise ValueError("not a workload of MetaSchedule")
    try:
        program = base64.b64decode(value[1], validate=True)
    except ValueError as error:
        raise ValueError(f"its program is not whole: {error}") from error
    if len(program) <= 8 or len(program) != 8 + int.from_bytes(program[:8], "little"):
        raise ValueError("its program is not whole")
    return f"ms:{int(value[0]) % 2**64:016x}"


def trial(value: Any, workloads: Sequence[str | None]) -> Trial:
    """A record; `workloads`: the keys of all programs, None for one that cannot be read."""
    if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int or not isinstance(value[1], list):
        raise ValueError("not a record of MetaSchedule")
    number, record = value
    if len(record) != 4 or not whole_trace(record[0]) or not isinstance(record[2], dict):
        raise ValueError("not a record of MetaSchedule")
    trace, seconds, target, _arguments = record
    if not 0 <= number < len(workloads):
        raise ValueError(f"its workload, number {number}, is not in {WORKLOADS}")
    if None in workloads[: number + 1]:
        # A torn line may have been two: what stands behind it may not be what the record means.
        raise ValueError(f"its workload, number {number} in {WORKLOADS}, is a bad line or comes after one")
    place = target_key(target), str(workloads[number]), BOARD, VERSIONS
    if seconds is None:
        raise ValueError("never measured: its seconds are null")
    if not isinstance(seconds, list) or not seconds or not all(positive(s) for s in seconds):
        raise ValueError("its seconds must be positive numbers")
    if max(seconds) >= FAILED_S:
        return Trial(*place, {"trace": trace}, "build_error", error=FAILED)
    return Trial(*place, {"trace": trace}, times_ms=tuple(s * 1e3 for s in seconds))


def whole_trace(trace: Any) -> bool:
    """Instructions and the decisions of those that sample."""
    return isinstance(trace, list) and len(trace) == 2 and all(isinstance(part, list) for part in trace)


def positive(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < float("inf")


def target_key(target: Mapping[str, Any]) -> str:
    """A target of TVM's. None of ours has a blank in its key."""
    if not isinstance(target.get("kind"), str):
        raise ValueError("its target has no kind")
    known = next((str(target[name]) for name in ("mcpu", "arch", "mtriple") if target.get(name)), "")
    what = hashlib.blake2b(json.dumps(target, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"{' '.join(['tvm', target['kind'], known]).strip()[:140]}:{what}"
