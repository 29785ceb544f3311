"""Layers whose weights hold zeros or share values, as tables: which kernels they have got, or why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tvmcompress.package import Package

COLUMNS = ("layer", "format", "density", "time", "bytes", "kept")
NUMBERS = ("density", "time", "bytes")


class Kind(NamedTuple):
    """How rows of a kind are spoken of. `dense`: what takes the other kernels' place; `so`: what then is."""

    layers: str
    kept: str
    kernels: str
    dense: str
    so: str


KINDS = {
    "sparse": Kind("Layers with zeros", "in sparse kernels", "sparse kernels", "dense kernels", "it stays dense"),
    "shared": Kind(
        "Layers with shared values",
        "looked up as they are used",
        "values looked up",
        "unpacked weights",
        "they are unpacked when it is loaded",
    ),
}


class Section(NamedTuple):
    """`lines`: the cells of a layer each, time and bytes over those without such kernels. `notes`: what these are."""

    title: str
    counted: str
    lines: list[tuple[str, ...]]
    notes: list[str]


def sections(layers: Sequence[dict[str, Any]]) -> Iterator[Section]:
    """What a manifest's `layers` say of compressed weights, kind by kind; nothing of a kind that none has."""
    for name, kind in KINDS.items():
        rows = [row[name] for row in layers if row.get(name)]
        if rows:
            lines = [_cells(str(row["name"]), row[name]) for row in layers if row.get(name)]
            counted = f"{sum(row['kept'] for row in rows)} of {len(rows)} {kind.kept}"
            yield Section(kind.layers, counted, lines, _notes(rows, kind))


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    time = f"{row['estimate']:.2f}" if row.get("estimate") is not None else "–"
    size = f"{row['bytes'] / row['dense_bytes']:.2f}" if row["dense_bytes"] else "–"
    kept = "yes" if row["kept"] else f"no: {row['why']}"
    return name, row["format"], f"{row['density']:.1%}", time, size, kept


def _notes(rows: Sequence[dict[str, Any]], kind: Kind) -> list[str]:
    """What the columns are, and what was timed."""
    over = f"Time, as estimated, and bytes are over those with {kind.dense}"
    told = [f"{over}; density is the share that is not zero."]
    if (ratio := next((row["whole"] for row in rows if "whole" in row), None)) is None:
        return told
    if any(row["kept"] for row in rows):
        return [*told, f"Timed: the whole program takes {ratio:.2f} of the time that it takes with {kind.dense}."]
    return [*told, f"Timed: with {kind.kernels} the whole program takes {ratio:.2f} of its time, so {kind.so}."]


def of_builds(builds: Sequence[Package]) -> list[RenderableType]:
    """The tables of all builds of a package."""
    return [part for one in builds for part in parts(one.manifest.get("layers", []), f" on {one.target}")]


def parts(layers: Sequence[dict[str, Any]], where: str = "", most: int | None = None) -> list[RenderableType]:
    """The tables for a terminal, and what they say. `most`: lines that are shown of each."""
    return [part for section in sections(layers) for part in _part(section, where, most)]


def _part(section: Section, where: str, most: int | None) -> list[RenderableType]:
    shown = section.lines[:most]
    some = f" ({len(shown)} of {len(section.lines)})" if len(shown) < len(section.lines) else ""
    title = Text(f"{section.title}{where}{some}: {section.counted}")
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for cells in shown:
        table.add_row(*map(Text, cells))
    return [table, *(Text(line, "dim") for line in section.notes)]
