"""From what visits found to the JSON values of a Comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvmcompress.comparing.crossing import Crossed
from tvmcompress.comparing.visit import Entry, Visit
from tvmcompress.measurement import bootstrap, instructions
from tvmcompress.trials import board_key

MACHINE = ("architecture", "model", "cores", "l1d", "l2", "l3")
Mixes = Mapping[str, instructions.Counts]


def place(visit: Visit) -> dict[str, Any]:
    target, machine = visit.place.target, visit.described.get("cpu")
    return {
        "name": visit.place.name,
        "target": target.name,
        "triple": target.triple,
        "cpu": target.cpu,
        "address": visit.place.address,
        "machine_of": visit.machine or "this machine",
        "machine": {key: machine[key] for key in MACHINE} if machine else None,
        "board": board_key(machine) if machine else None,
        "emulated": visit.emulated,
        "reached": not visit.error,
        "error": visit.error,
        "energy": visit.energy,
    }


def result(visit: Visit, entry: Entry) -> dict[str, Any]:
    """The end-to-end row of a variant at a place."""
    error = visit.error or entry.error
    package = entry.build or entry.package
    latency = None
    if entry.rounds and entry.latency and not error:
        interval = bootstrap.median(entry.rounds)
        spread = (entry.latency["p90"] - entry.latency["median"]) / entry.latency["median"]
        rounds = [[float(f"{ms:.6g}") for ms in sitting] for sitting in entry.rounds]
        latency = {**entry.latency, "low": interval.low, "high": interval.high, "spread": spread, "rounds": rounds}
    return {
        "place": visit.place.name,
        "variant": entry.variant,
        "emulated": visit.emulated,
        "error": error,
        "build": package.target,
        "size": package.sizes,
        "macs": package.manifest.get("macs"),
        "plan": package.manifest.get("memory"),
        "quality": entry.quality or None,
        "latency": latency,
        "memory": entry.memory,
        "energy": entry.joules,
    }


def kernels(visit: Visit, entry: Entry, mixes: Mixes) -> dict[str, Any]:
    """The kernel table of a variant at a place: with times where it has any, else in the order of the calls."""
    package = entry.build or entry.package.builds[-1]
    work = {row["name"]: row for row in package.manifest.get("kernels", [])}
    profile = entry.profile or {}
    rows = profile.get("kernels")
    if rows is None:
        made = entry.kernels.get(package.target)
        rows = (
            [{"name": c.name, "calls": c.calls, "result": list(c.arguments[-1][0])} for c in made.calls] if made else []
        )
    table = []
    for row in rows:
        known = {**work.get(row["name"], {}), **row}
        gmacs = known.get("gmacs")
        table.append(
            {
                "name": row["name"],
                "calls": row["calls"],
                "result": row["result"],
                **{key: known.get(key) for key in ("ms", "share", "gmacs", "of_peak", "family", "macs", "arithmetic")},
                "gflops": 2 * gmacs if gmacs else None,
                "key": known.get("key", ""),
                "decisions": known.get("decisions", {}),
                "mix": mixes.get(row["name"]) or instructions.nothing(),
            }
        )
    return {
        "place": visit.place.name,
        "variant": entry.variant,
        "emulated": visit.emulated,
        "apart": bool(profile.get("apart")),
        **{key: profile.get(key) for key in ("ms", "overhead_ms", "of_peak", "threads", "rounds")},
        "peaks": profile.get("peaks", {}),
        "mix": instructions.added(row["mix"] for row in table),
        "rows": table,
    }


def ratios(places: Sequence[Mapping], results: Sequence[Mapping]) -> dict[str, list[dict]]:
    """Of variants to the first at the same place, timed in turn; and of places to the first, variant by variant."""
    timed = [row for row in results if row["latency"] and bootstrap.enough(row["latency"]["rounds"])]
    variants, boards = [], []
    for i, row in enumerate(timed):
        first = next((r for r in timed[:i] if r["place"] == row["place"]), None)
        if first:
            variants.append(ratio(row, first, first["variant"], True))
        first = next((r for r in timed[:i] if r["variant"] == row["variant"]), None)
        if first:
            boards.append(ratio(row, first, first["place"], False))
    return {"variants": variants, "places": boards}


def ratio(row: Mapping, other: Mapping, against: str, together: bool) -> dict[str, Any]:
    found = bootstrap.ratio(row["latency"]["rounds"], other["latency"]["rounds"], together)
    named = {"place": row["place"], "variant": row["variant"], "against": against}
    return {**named, "ratio": found.value, "low": found.low, "high": found.high}


def cell(crossed: Crossed, visit: Visit, entry: Entry | None) -> dict[str, Any]:
    """One field of the matrix: how many times the time of B's own decisions A's take there; 1 for B's own code."""
    row: dict[str, Any] = {
        **{key: getattr(crossed, key) for key in ("variant", "of", "on", "kernels", "shared", "carried")},
        "emulated": visit.emulated,
        "same_code": entry is None,
        "ratio": None,
        "low": None,
        "high": None,
        "quality": None,
        "error": visit.error,
    }
    own = next(e for e in visit.entries if e.variant == crossed.variant and not e.made_for)
    if entry is None:
        if not visit.error and not own.error and not visit.emulated:
            row |= {"ratio": 1.0, "low": 1.0, "high": 1.0}
        return row
    row |= {"quality": entry.quality.get("overall"), "error": visit.error or entry.error}
    if entry.rounds and own.rounds and not visit.error:
        found = bootstrap.ratio(entry.rounds, own.rounds, True)
        row |= {"ratio": found.value, "low": found.low, "high": found.high}
    return row
