"""A's decisions on B: what is lost where a board runs code whose decisions were made for another.

Decisions are those that A's own package was made with, tuned or by the analytic model. A kernel is the same on both
where it computes the same; a decision that B's instruction set does not offer is left to B's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvmcompress.comparing.places import Place
from tvmcompress.package import Package

UNTUNED = "untuned"
Tables = dict[str, dict[str, Any]]  # decisions by kernel


@dataclass(frozen=True)
class Crossed:
    """One variant with the decisions of `of` on the place `on`. `kernels`: how many of B's take decisions; `shared`: of
    these, how many A has too; `carried`: of these, how many were made just as for A. No package: it is B's own code."""

    variant: str
    of: str
    on: str
    kernels: int
    shared: int
    carried: int
    package: Package | None = None


def tables(package: Package) -> Tables:
    """What a package's kernels were made with."""
    return {row["key"]: row["decisions"] for row in package.manifest.get("kernels", []) if row.get("decisions")}


def simple(place: Place) -> bool:
    return not place.target.builds and place.target.kind == "cpu"


def cross(
    variant: str,
    packages: Mapping[Place, Package],
    made: Callable[[Place, Tables], Package],
    tuned: Callable[[Place], bool],
    tell: Callable[[str], None] = lambda _text: None,
) -> list[Crossed]:
    """Every pair of places with another's decisions, and each place untuned where it may have been `tuned`.

    `made(place, tables)` compiles the variant for a place with given decisions. Places with several builds, and GPUs,
    take no part.
    """
    found = []
    for on, own in packages.items():
        if not simple(on):
            continue
        ours = tables(own)
        others: dict[str, Tables] = {of.name: tables(p) for of, p in packages.items() if of != on and simple(of)}
        nothing: dict[str, Tables] = {UNTUNED: {}} if tuned(on) else {}
        for of, theirs in {**nothing, **others}.items():
            shared = {key: theirs[key] for key in ours if key in theirs}
            if of != UNTUNED and not shared:
                found.append(Crossed(variant, of, on.name, len(ours), 0, 0))
                continue
            tell(f"{on.name}: {variant} with the decisions of {of}" if of != UNTUNED else f"{on.name}: untuned")
            package = made(on, shared) if shared != ours else own
            now = tables(package)
            carried = sum(now[key] == decisions for key, decisions in shared.items())
            if now == ours and of == UNTUNED:
                continue  # it was not tuned
            row = Crossed(variant, of, on.name, len(ours), len(shared), carried, None if now == ours else package)
            found.append(row)
    return found


def differing(packages: Mapping[str, Package]) -> list[dict]:
    """Where places decide otherwise of one kernel: rows of {"kernel", "decision", "values": {place: value}}."""
    by_kernel: dict[str, dict[str, dict[str, Any]]] = {}
    for place, package in packages.items():
        for key, decisions in tables(package).items():
            for name, value in flat(decisions).items():
                by_kernel.setdefault(key, {}).setdefault(name, {})[place] = value
    return [
        {"kernel": key, "decision": name, "values": values}
        for key, names in by_kernel.items()
        for name, values in names.items()
        if len(values) > 1 and any(value != next(iter(values.values())) for value in values.values())
    ]


def flat(decisions: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"tile": {"pixels": 6}} to {"tile.pixels": 6}."""
    found: dict[str, Any] = {}
    for name, value in decisions.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
