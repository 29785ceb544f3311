"""The gate against regressions: what is slower than it was, by more than a share, and not by chance.

Slower is what the whole interval of the ratio says: its lower end lies above 1 + the share. Where nothing can be said
(an emulated board, another processor than then, too few rounds) the row says why, and a gate that could look at
nothing does not pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvmcompress.comparison import Comparison
from tvmcompress.errors import UsageError
from tvmcompress.measurement import bootstrap

Results = Sequence[Mapping[str, Any]]


def check(baseline: Comparison | None, model: Mapping[str, Any]) -> None:
    """Raises UsageError, before any work, for a baseline of another model."""
    if baseline is not None and baseline.model["sha256"] != model["sha256"]:
        was, now = (f"{m['name']} (SHA-256 {m['sha256'][:8] or 'unknown'})" for m in (baseline.model, model))
        raise UsageError(f"the baseline is of another model: {was}, not {now}; write a new one with --json")


def gate(limit: float, places: Results, results: Results, baseline: Comparison | None) -> dict[str, Any]:
    """{"limit", "against", "rows": [{"place", "variant", "against", "ratio", "low", "high", "slower", "skipped"}],
    "passed", "told"}."""
    rows = list(against_baseline(limit, places, results, baseline) if baseline else among(limit, places, results))
    slower, looked = [row for row in rows if row["slower"]], [row for row in rows if not row["skipped"]]
    told = f"{len(looked)} of {len(rows)} could be compared"
    if slower:
        worst = ", ".join(f"{r['variant']} on {r['place']} {r['ratio']:.2f} times {r['against']}" for r in slower)
        told = f"slower by more than {limit:.3g}: {worst}"
    elif not looked and baseline is None:
        told = "there is nothing to be slower than yet: this --json is the baseline of the next time"
        return {"limit": limit, "against": "nothing", "rows": rows, "passed": True, "told": told}
    elif not looked:
        why = ", ".join(dict.fromkeys(row["skipped"] for row in rows)) or "there is nothing to compare"
        told = f"nothing could be compared: {why}"
    against = f"the baseline of {baseline.how['when']}" if baseline else "the first of each machine, timed in turn"
    return {"limit": limit, "against": against, "rows": rows, "passed": bool(looked) and not slower, "told": told}


def among(limit: float, places: Results, results: Results) -> Iterator[dict[str, Any]]:
    """Each variant against the first of its place; where there is but one variant, places of one machine."""
    several = len({row["variant"] for row in results}) > 1
    hosts = {place["name"]: place["machine_of"] for place in places}
    over_rpc = {place["name"]: place.get("address", "local") != "local" for place in places}
    first: dict[str, Mapping[str, Any]] = {}
    for row in results:
        whose = row["place"] if several else hosts[row["place"]]
        if whose in first:
            other = first[whose]
            if over_rpc[row["place"]] != over_rpc[other["place"]]:
                yield skipped(row, other["place"], "one is timed through RPC, the other is not: that is not the same")
                continue
            yield compared(limit, row, other, other["variant"] if several else other["place"], several)
        first.setdefault(whose, row)


def against_baseline(limit: float, places: Results, results: Results, baseline: Comparison) -> Iterator[dict[str, Any]]:
    boards = {place["name"]: place.get("board") for place in places}
    then = {place["name"]: place.get("board") for place in baseline.places}
    known = {(row["place"], row["variant"]): row for row in baseline.results}
    for row in results:
        was = known.get((row["place"], row["variant"]))
        if was is None:
            yield skipped(row, "the baseline", "it is not in the baseline")
        elif then.get(row["place"]) != boards[row["place"]]:
            yield skipped(row, "the baseline", f"it was measured on another machine ({then.get(row['place'])})")
        else:
            yield compared(limit, row, was, "the baseline", False)


def compared(
    limit: float, row: Mapping[str, Any], other: Mapping[str, Any], against: str, together: bool
) -> dict[str, Any]:
    for one in (row, other):
        if one["error"] or not one["latency"]:
            return skipped(row, against, one["error"] or "an emulated board has no times")
        if not bootstrap.enough(one["latency"]["rounds"]):
            return skipped(row, against, "too few rounds; allow a longer --budget")
    found = bootstrap.ratio(row["latency"]["rounds"], other["latency"]["rounds"], together)
    ratio = {"ratio": found.value, "low": found.low, "high": found.high}
    return {**named(row, against), **ratio, "slower": found.low > 1 + limit, "skipped": ""}


def skipped(row: Mapping[str, Any], against: str, why: str) -> dict[str, Any]:
    return {**named(row, against), "ratio": None, "low": None, "high": None, "slower": False, "skipped": why}


def named(row: Mapping[str, Any], against: str) -> dict[str, Any]:
    return {"place": row["place"], "variant": row["variant"], "against": against}
