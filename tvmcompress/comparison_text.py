"""A Comparison for the terminal, and as Markdown."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tvmcompress import comparison_tables as tables
from tvmcompress.comparison import Comparison
from tvmcompress.comparison_tables import Table

MOST = 12  # kernels, for the terminal


def render(found: Comparison) -> RenderableType:
    """What matters most; the rest is in the page, in Markdown and in JSON."""
    first = tables.end_to_end(found)
    most = [column for column in first.columns if column not in ("p90", "process", "largest error")]
    parts: list[RenderableType] = [shown(only(first, most), f"{found.model['name']}: end to end")]
    gate = tables.gated(found)
    parts += [shown(table, table.title) for table in ([gate] if gate else []) + tables.matrices(found)]
    kernels = tables.kernels(found)
    dearest = sorted(kernels.rows, key=lambda row: -(row[6].value or 0))[:MOST]
    if any(row[6].value for row in dearest):
        short = only(kernels, ["place", "variant", "kernel", "time", "share", "GFLOP/s", "of peak"])
        title = f"Kernels with the greatest shares ({len(dearest)} of {len(kernels.rows)})"
        keep = [i for i, row in enumerate(kernels.rows) if row in dearest]
        parts.append(shown(Table(title, "", short.columns, [short.rows[i] for i in keep], short.words), title))
    notes = [f"{len(found.decisions)} decisions differ between places"] if found.decisions else []
    return Group(*parts, *(Text(line, "dim") for line in [*notes, first.note, *tables.doubts(found)]),
                 *(Text(line, "bold") for line in found.failed))  # fmt: skip


def only(table: Table, columns: list[str]) -> Table:
    """Some columns of a table."""
    kept = [i for i, name in enumerate(table.columns) if name in columns]
    rows = [[row[i] for i in kept] for row in table.rows]
    return Table(table.title, table.note, tuple(table.columns[i] for i in kept), rows, table.words)


def shown(table: Table, title: str) -> RichTable:
    made = RichTable(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    for name in table.columns:
        made.add_column(Text(name), justify="left" if name in table.words else "right")
    for row in table.rows:
        made.add_row(*(Text(cell.text) for cell in row))
    return made


def markdown(found: Comparison) -> str:
    """Every table, with what belongs beneath it."""
    places, variants = (", ".join(one["name"] for one in many) for many in (found.places, found.variants))
    lines = [f"# {plain(found.model['name'])}: {plain(variants)} on {plain(places)}", "", found.how["when"], ""]
    lines += [f"**{plain(why)}**\n" for why in found.failed]
    for table in tables.every(found):
        lines += [f"## {plain(table.title)}", ""]
        lines += [f"| {' | '.join(map(plain, table.columns))} |"]
        lines += [f"| {' | '.join('---' if name in table.words else '---:' for name in table.columns)} |"]
        lines += [f"| {' | '.join(plain(cell.text) for cell in row)} |" for row in table.rows]
        lines += ["", *([plain(table.note), ""] if table.note else [])]
    lines += [f"- {plain(doubt)}" for doubt in tables.doubts(found)]
    return "\n".join(lines).rstrip() + "\n"


def plain(text: str) -> str:
    """Text that Markdown takes as it stands."""
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
