"""Layers whose weights hold zeros, as a table: which kernels they have got, or why they stay dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tvmcompress.package import Package

COLUMNS = ("layer", "format", "density", "time", "bytes", "kept")
NUMBERS = ("density", "time", "bytes")


def rows(layers: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each of a manifest's `layers` that has zeros. Time and bytes are over those of the dense layer."""
    return [_cells(str(row["name"]), row["sparse"]) for row in layers if row.get("sparse")]


def _cells(name: str, zeros: dict[str, Any]) -> tuple[str, ...]:
    time = f"{zeros['estimate']:.2f}" if zeros.get("estimate") is not None else "–"
    size = f"{zeros['bytes'] / zeros['dense_bytes']:.2f}" if zeros["dense_bytes"] else "–"
    kept = "yes" if zeros["kept"] else f"no: {zeros['why']}"
    return name, zeros["format"], f"{zeros['density']:.1%}", time, size, kept


def notes(layers: Sequence[dict[str, Any]]) -> list[str]:
    """What the columns are, and what was timed."""
    zeros = [row["sparse"] for row in layers if row.get("sparse")]
    told = ["Time, as estimated, and bytes are over those of the dense layer; density is the share that is not zero."]
    if (ratio := next((row["whole"] for row in zeros if "whole" in row), None)) is None:
        return told
    if any(row["kept"] for row in zeros):
        return [*told, f"Timed: the whole program takes {ratio:.2f} of the time that it takes with dense kernels."]
    return [*told, f"Timed: with sparse kernels the whole program takes {ratio:.2f} of its time, so it stays dense."]


def of_builds(builds: Sequence[Package]) -> list[RenderableType]:
    """The tables of all builds of a package."""
    return [part for one in builds for part in parts(one.manifest.get("layers", []), f" on {one.target}")]


def parts(layers: Sequence[dict[str, Any]], where: str = "", most: int | None = None) -> list[RenderableType]:
    """The table for a terminal, and what it says; nothing where no layer has zeros. `most`: lines that are shown."""
    lines = rows(layers)
    if not lines:
        return []
    shown = lines[:most]
    counted = f" ({len(shown)} of {len(lines)})" if len(shown) < len(lines) else ""
    kept = sum(row["sparse"]["kept"] for row in layers if row.get("sparse"))
    title = Text(f"Layers with zeros{where}{counted}: {kept} of {len(lines)} in sparse kernels")
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for cells in shown:
        table.add_row(*map(Text, cells))
    return [table, *(Text(line, "dim") for line in notes(layers))]
