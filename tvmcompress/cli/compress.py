"""tvmcompress compress"""

from __future__ import annotations

from pathlib import Path

import click

from tvmcompress.cli import models, options, screen


@click.command(
    epilog="Example:\n\n\b\n  tvmcompress compress model.onnx --recipe int8 --samples calib.npz -o small.model",
)
@options.model_options
@options.recipe_options(required=True)
@options.output_option("compressed model")
@options.json_option
def command(
    model: Path,
    shapes: dict,
    values: dict,
    recipe: str,
    samples: Path | None,
    limit: int | None,
    cache: Path | None,
    output: Path,
    json_path: str | None,
) -> None:
    """Carry out a recipe on a model: fold, prune, quantize, store in fewer bits.

    MODEL is an .onnx, .pt2 or .tflite file, or what this command wrote.
    """
    options.check_output(output, model, samples)
    loaded = models.open_model(model, shapes, values)
    with screen.progress() as progress:
        small = models.compress_model(loaded, recipe, samples, limit, cache, progress)
    small.save(output)
    value = {
        "output": str(output),
        "bytes": {"model": loaded.source.bytes, "output": output.stat().st_size},
        "applied": list(small.applied),
        "notes": list(small.notes),
    }
    screen.result(value, lambda: _text(value), json_path)


def _text(value: dict) -> str:
    from tvmcompress.cli import notes
    from tvmcompress.report import bytes_text

    size = value["bytes"]
    lines = [f"{value['output']}: {bytes_text(size['output'])}, the model's file has {bytes_text(size['model'])}"]
    lines += [f"  {step}" for step in value["applied"]]
    lines += notes.lines(value["notes"])
    return "\n".join(lines)
