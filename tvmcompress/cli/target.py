"""tvmcompress target list | show | detect"""

from __future__ import annotations

import click
from rich import box
from rich.table import Table
from rich.text import Text

from tvmcompress.cli import options, screen


@click.group(epilog="Example:\n\n\b\n  tvmcompress target show rpi4")
def command() -> None:
    """What code can be generated for."""


@command.command("list", epilog="Example:\n\n\b\n  tvmcompress target list")
@options.json_option
def list_(json_path: str | None) -> None:
    """All targets that come with the project."""
    from tvmcompress.target import Target

    rows = [target.describe() for target in Target.list()]
    screen.result(rows, lambda: _table(rows), json_path)


@command.command("show", epilog="Example:\n\n\b\n  tvmcompress target show aarch64-linux-gnu:cortex-a72")
@click.argument("target")
@options.json_option
def show(target: str, json_path: str | None) -> None:
    """A target with everything resolved.

    TARGET is a name, a TOML file, a triple with or without a CPU, TVM's old form (llvm -mtriple=…
    -mcpu=…), JSON, or native.
    """
    from tvmcompress.target import Target

    value = Target.load(target).describe()
    screen.result(value, lambda: _one(value), json_path)


@command.command("detect", epilog="Example:\n\n\b\n  tvmcompress target detect")
@options.json_option
def detect(json_path: str | None) -> None:
    """This machine as a target."""
    from tvmcompress.target import Target

    value = Target.load("native").describe()
    screen.result(value, lambda: _one(value), json_path)


def _table(rows: list[dict]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "triple", "cpu", "description"):
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Text, (row["name"], row["triple"], row["cuda_arch"] or row["cpu"], row["description"])))
    return table


def _one(value: dict) -> Table:
    table = Table(box=None, show_header=False)
    for key, item in value.items():
        words = (
            [part["name"] if isinstance(part, dict) else part for part in item] if isinstance(item, list) else [item]
        )
        table.add_row(key, Text(" ".join(map(str, words))))
    return table
