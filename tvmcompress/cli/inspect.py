"""tvmcompress inspect"""

from __future__ import annotations

from pathlib import Path

import click

from tvmcompress.cli import options


@click.command(epilog="Example:\n\n\b\n  tvmcompress inspect model.onnx --target rpi4")
@options.model_options
@click.option("--target", help="Also say what share of the work would run in integers there.")
@options.json_option
def command(model: Path, shapes: dict, values: dict, target: str | None, json_path: str | None) -> None:
    """What a model or a package is: inputs, outputs, operators, parameters, work, and what cannot be imported.

    MODEL is an .onnx, .pt2, .tflite or .model file, or a package.
    """
    raise click.UsageError("to be connected")
