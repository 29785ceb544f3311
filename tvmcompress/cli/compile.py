"""tvmcompress compile"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.text import Text

from tvmcompress import process
from tvmcompress.cli import models, options, screen

if TYPE_CHECKING:
    from tvmcompress.package import Package


@click.command(
    epilog="Examples:\n\n\b\n"
    "  tvmcompress compile small.model --target native -o small.tar\n"
    "  tvmcompress compile model.onnx --recipe int8 --samples calib.npz --target rpi4 -o small-rpi4.tar",
)
@options.model_options
@options.recipe_options(required=False)
@options.target_option
@click.option("--log", metavar="PATH", help="The tuning log, a file or a URL; this user's own unless given, or none.")
@click.option(
    "--keep",
    default="faster",
    show_default=True,
    help="Layers that get kernels for zeros or shared values: those faster so, smaller, always, or never.",
)
@click.option(
    "--storage",
    type=click.Choice(["auto", "plain", "xz", "zstd"]),
    default="auto",
    show_default=True,
    metavar="FORM",
    help="Weights on disk: auto (sparse, clustered and index arrays packed), xz or zstd (all that gains), plain.",
)
@options.output_option("package")
@options.json_option
def command(
    model: Path,
    shapes: dict,
    values: dict,
    recipe: str | None,
    samples: Path | None,
    limit: int | None,
    cache: Path | None,
    target: str,
    log: str | None,
    keep: str,
    storage: str,
    output: Path,
    json_path: str | None,
) -> None:
    """Compile a model for one target into a package, compressing it first when a recipe is given.

    MODEL is an .onnx, .pt2 or .tflite file, or what `compress` wrote.
    """
    process.import_without_torch("tvm")
    from tvmcompress.compilation import compile
    from tvmcompress.target import Target

    options.check_output(output, model, samples, options.log_file(log))
    if samples is not None and recipe is None:
        raise click.UsageError("--samples are for calibration; give a --recipe that uses them")
    resolved = Target.load(target)
    loaded = models.open_model(model, shapes, values)
    with screen.progress() as progress:
        if recipe is not None:
            loaded = models.compress_model(loaded, recipe, samples, limit, cache, progress)
        tuned = options.compiling_log(log)
        package = compile(loaded, resolved, log=tuned, keep=keep, storage=storage, progress=progress)
    package.save(output)
    value = {"output": str(output), "sizes": package.sizes, **package.manifest}
    screen.result(value, lambda: _text(value, package.builds, recipe is not None), json_path)


def _text(value: dict, builds: tuple[Package, ...], compressed: bool) -> RenderableType:
    from tvmcompress import compressed_table
    from tvmcompress.cli import notes
    from tvmcompress.report import bytes_text

    sizes, target, source = value["sizes"], value["target"], value["source"]
    parts = ", ".join(f"{part} {bytes_text(sizes[part])}" for part in ("weights", "library", "golden"))
    described = " ".join(str(target[key]) for key in ("name", "triple", "cpu") if target.get(key))
    if len(builds) > 1:
        described = f"{target['name']}, {len(builds)} builds"
    lines = [f"{value['output']}: {bytes_text(sizes['package'])} for {described} ({parts})"]
    if source["bytes"]:
        lines.append(f"  {sizes['package'] / source['bytes']:.3f} of {source['name']} ({bytes_text(source['bytes'])})")
    if compressed:
        lines += notes.lines(value["notes"], most=3)
    kernels = compressed_table.of_builds(builds) if len(builds) > 1 else compressed_table.parts(value.get("layers", []))
    return Group(*map(Text, lines), *kernels)
