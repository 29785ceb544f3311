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


# What passes say of a layer that they took, and what is said of one that they left.
DONE = {
    "pruned": "is not pruned",
    "quantized": "stays float",
    "clustered": "keeps its weights",
    "factorized": "stays whole",
}


def _text(value: dict) -> str:
    from tvmcompress.report import bytes_text

    size = value["bytes"]
    lines = [f"{value['output']}: {bytes_text(size['output'])}, the model's file has {bytes_text(size['model'])}"]
    lines += [f"  {step}" for step in value["applied"]]
    for done, left in DONE.items():
        rows = [row for row in value["notes"] if done in row]
        kept = [row for row in rows if not row[done]]
        if rows:
            lines.append(f"  {len(rows) - len(kept)} of {len(rows)} layers {done}")
        lines += [f"    {row['layer']} {left}: {row.get('why') or row.get('not_pruned', '')}" for row in kept[:10]]
        if len(kept) > 10:
            lines.append(f"    … and {len(kept) - 10} more; --json has them all")
    lines += [_pruned(row) for row in value["notes"] if "macs_before" in row and "layer" not in row]
    return "\n".join(lines)


def _pruned(row: dict) -> str:
    """What a pass that removes parts of a model left of it."""
    work = (
        f"{row['macs'] / row['macs_before']:.1%} of the multiply-accumulates" if row["macs_before"] else "no products"
    )
    return f"  {row['pass']} leaves {work} and {row['parameters'] / row['parameters_before']:.1%} of the parameters"
