"""A Report for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tvmcompress import compressed_table
from tvmcompress.report import Report, doubts, figures, number_text, percent_text

MOST_LAYERS = 12


def render(report: Report) -> RenderableType:
    name = report.package["name"]
    reference = report.reference["name"] if report.reference else ""
    table = Table(box=box.SIMPLE_HEAD, title=escape(f"{name} on {report.package['target']}"), title_justify="left")
    table.add_column("")
    table.add_column("package", justify="right")
    if reference:
        table.add_column(escape(reference), justify="right")
    for section, rows in figures(report):
        table.add_section()
        table.add_row(f"[bold]{section}[/]")
        for what, ours, theirs in rows:
            table.add_row(*(Text(cell) for cell in (f"  {what}", ours, *([theirs] if reference else []))))
    parts: list[RenderableType] = [table]
    if noisy := [row for row in report.layers if row.get("snr_db") is not None]:
        parts.append(_layers(noisy))
    if pruned := [row for row in report.layers if row.get("pruned") and "pattern" in row]:
        parts += [_sparse(pruned), Text(_left_dense(report.layers), "dim")]
    parts += compressed_table.parts(report.layers, most=MOST_LAYERS)
    if narrowed := [row for row in report.layers if "outputs_before" in row and row.get("pruned")]:
        parts.append(_narrowed(narrowed))
    if smaller := [row for row in report.layers if row.get("bytes_before") and not row.get("why")]:
        parts.append(_compressed(smaller))
    how = report.how
    machine = f"{how['machine']['model']}, {how['threads']} threads"
    parts.append(Text(f"{machine}; timed {how['processes']}", "dim"))
    parts += [Text(doubt, "dim") for doubt in doubts(report)]
    return Group(*parts)


def _layers(rows: list[dict]) -> Table:
    rows = sorted(rows, key=lambda row: row["snr_db"])
    more = f" of {len(rows)}" if len(rows) > MOST_LAYERS else ""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"Noisiest layers ({min(len(rows), MOST_LAYERS)}{more})", title_justify="left"
    )
    table.add_column("layer")
    table.add_column("signal to noise", justify="right")
    for row in rows[:MOST_LAYERS]:
        table.add_row(escape(str(row["name"])), number_text(row["snr_db"], " dB", 3))
    return table


def _sparse(rows: list[dict]) -> Table:
    """Layers that were pruned, those that lost most first."""
    rows = sorted(rows, key=lambda row: -(row.get("error") or 0))
    more = f" of {len(rows)}" if len(rows) > MOST_LAYERS else ""
    title = f"Pruned layers ({min(len(rows), MOST_LAYERS)}{more})"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("layer", "density", "before", "pattern", "repair", "error"):
        table.add_column(name, justify="right" if name in ("density", "before", "error") else "left")
    for row in rows[:MOST_LAYERS]:
        numbers = [percent_text(row.get(key)) for key in ("density", "density_before", "error")]
        words = [str(row["name"]), numbers[0], numbers[1], str(row["pattern"]), str(row["repair"]), numbers[2]]
        table.add_row(*map(escape, words))
    return table


def _left_dense(rows: list[dict]) -> str:
    """Which layers were not pruned, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.get("not_pruned"):
            reasons.setdefault(row["not_pruned"], []).append(str(row["name"]))
    return "\n".join(
        f"Not pruned: {', '.join(names[:MOST_LAYERS])}{' …' * (len(names) > MOST_LAYERS)}: {why}"
        for why, names in reasons.items()
    )


def _narrowed(rows: list[dict]) -> Table:
    """Layers that lost channels, those that were most work first."""
    rows = sorted(rows, key=lambda row: -row["macs_before"])
    more = f" of {len(rows)}" if len(rows) > MOST_LAYERS else ""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"Narrowed layers ({min(len(rows), MOST_LAYERS)}{more})", title_justify="left"
    )
    table.add_column("layer")
    for title in ("inputs", "outputs", "of its products"):
        table.add_column(title, justify="right")
    for row in rows[:MOST_LAYERS]:
        share = f"{row['macs'] / row['macs_before']:.0%}" if row.get("macs") is not None else "?"
        counts = [f"{row[f'{k}_before']} → {row[k]}" if k in row else "all" for k in ("inputs", "outputs")]
        table.add_row(escape(str(row["name"])), *counts, share)
    return table


def _compressed(rows: list[dict]) -> Table:
    """Layers whose weights share values or became products, those with most weights first."""
    rows = sorted(rows, key=lambda row: -row["bytes_before"])
    more = f" ({min(len(rows), MOST_LAYERS)} of {len(rows)})" if len(rows) > MOST_LAYERS else ""
    table = Table(box=box.SIMPLE_HEAD, title=f"Compressed layers{more}", title_justify="left")
    for column in ("layer", "weights", "bytes", "multiply-adds", "weights' signal to noise"):
        table.add_column(column, justify="left" if column in ("layer", "weights") else "right")
    for row in rows[:MOST_LAYERS]:
        share = row["bytes_after"] / row["bytes_before"] if row["bytes_before"] else None
        work = percent_text(row["macs_after"] / row["macs_before"]) if row.get("macs_before") else "–"
        noise = number_text(row.get("weights_snr_db"), " dB", 3)
        table.add_row(*map(escape, (str(row["name"]), form(row), percent_text(share), work, noise)))
    return table


def form(row: dict) -> str:
    """`16 values`, `svd of rank 32`, or both."""
    values = [f"{row['values']} values"] if row.get("values") else []
    factors = [f"{row['method']} of rank {row['ranks']}"] if row.get("ranks") else []
    return ", ".join(factors + values) or "–"
