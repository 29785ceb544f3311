"""tvmcompress breakeven"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tvmcompress import process
from tvmcompress.cli import options, screen

if TYPE_CHECKING:
    from tvmcompress.breakeven import BreakEven


@click.command(epilog="Example:\n\n\b\n  tvmcompress breakeven --target native -o breakeven.html")
@click.option("--target", default="native", show_default=True, help="A CPU target's name, file, triple, or native.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A page with a chart for each layer.")
@options.json_option
def command(target: str, output: Path | None, json_path: str | None) -> None:
    """The density at which each sparse format starts to win over dense kernels on a target.

    On the machine that runs this kernels are timed; of other targets the compiler's own estimate is told.
    """
    process.import_without_torch("tvm")
    from tvmcompress.breakeven import breakeven
    from tvmcompress.breakeven_html import render
    from tvmcompress.ir.files import atomic_write

    with screen.progress() as progress:
        found = breakeven(target, progress=progress)
    if output is not None:
        with atomic_write(output) as temporary:
            temporary.write_text(render(found), encoding="utf-8")
    screen.result(found.to_json(), lambda: _text(found), json_path)


def _text(found: BreakEven) -> RenderableType:
    how = "measured" if found.measured else "estimated"
    table = Table(box=box.SIMPLE_HEAD, title=f"Time over dense on {found.target}, {how}", title_justify="left")
    for title in ("layer", "format", "dtype"):
        table.add_column(title)
    for density, _ in found.curves[0].ratios:
        table.add_column(f"{density:.0%}", justify="right")
    table.add_column("wins below", justify="right")
    for curve in found.curves:
        cells = [Text(f"{ratio:.2f}", "green" if ratio <= 1 else "dim") for _, ratio in curve.ratios]
        names = (Text(text) for text in (curve.layer, curve.format, curve.dtype))
        table.add_row(*names, *cells, f"{curve.density:.0%}")
    return Group(table, Text("Columns are densities: the share of weights, or of blocks, that is not zero.", "dim"))
