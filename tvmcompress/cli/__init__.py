"""The command line: one command a file. Each parses, calls one verb and prints.

Nothing heavy is imported until a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

from tvmcompress import process
from tvmcompress.cli import errors

COMMANDS = (
    "inspect", "compress", "tune", "compile", "run", "measure", "profile", "compare", "verify",
    "breakeven", "device", "log", "target", "recipe",
)  # fmt: skip


class Commands(click.Group):
    """Imports a command's file when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        process.prepare()
        return importlib.import_module(f"tvmcompress.cli.{name}").command


@click.group(
    cls=Commands,
    # A fixed width: help reads the same everywhere.
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100, "max_content_width": 100},
    epilog="Example:\n\n\b\n  tvmcompress target list",
)
@click.version_option(package_name="tvmcompress")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks, and what TVM itself prints.")
def cli(verbose: bool) -> None:
    """Make a trained model small and fast for one named device, packed so that the device can verify and run it."""
    if verbose:
        errors.be_verbose()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 good, 1 our error, 2 usage, 4 model or data, 5 not installed, 130 interrupted."""
    return errors.run(cli, arguments)
