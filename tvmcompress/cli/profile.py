"""tvmcompress profile"""

from __future__ import annotations

from pathlib import Path

import click

from tvmcompress.cli import options, screen


@click.command(epilog="Example:\n\n\b\n  tvmcompress profile small.tar --budget 0.5")
@click.argument("package", type=options.PATH)
@click.option("--inputs", type=options.PATH, help="Inputs by name: .npz, .npy or a folder of them.")
@click.option(
    "--budget",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    help="Time spent on timing.",
)
@options.build_option
@options.threads_option
@options.json_option
def command(
    package: Path, inputs: Path | None, budget: float, build: str | None, threads: int | None, json_path: str | None
) -> None:
    """Show each kernel's share of a package's time, and how near it comes to what this machine's CPU can do.

    Runs the package in a process of its own, on its golden inputs or the first sample of --inputs, in turns with
    readings of the CPU's peak for the same kind of arithmetic.
    """
    from tvmcompress.deployment import deploy
    from tvmcompress.samples import Samples

    deployment = deploy(package, threads=threads, build=build)
    first = next(iter(Samples(inputs, deployment.package.inputs))) if inputs is not None else None
    profile = deployment.profile(first, budget)
    screen.result(profile.json(), profile.table, json_path)
