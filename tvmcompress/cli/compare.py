"""tvmcompress compare"""

from __future__ import annotations

from pathlib import Path

import click

from tvmcompress.cli import models, options, screen


def parse_share(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """`5%` or `0.05`."""
    if text is None:
        return None
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 100:
        raise click.BadParameter(f"wanted a share like 5%, got '{text}'")
    return share


@click.command(
    epilog="Examples:\n\n\b\n"
    "  tvmcompress compare model.onnx --on native --json compare.json --markdown compare.md\n"
    "  tvmcompress compare model.onnx --recipe float --recipe int8 --samples test.npz -o compare.html",
)
@options.model_options
@click.option(
    "--on",
    "places",
    multiple=True,
    metavar="PLACE",
    default=("native",),
    show_default=True,
    help="Where: native, a target that runs here, or TARGET@HOST:PORT; may be repeated.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="RECIPE",
    default=("float",),
    show_default=True,
    help="A variant: a recipe's name or file, or float for the model as it is; may be repeated.",
)
@click.option(
    "--samples", type=options.PATH, help="Inputs on which outputs are compared: .npz, .npy or a folder of them."
)
@click.option("--labels", type=options.PATH, help="A .npy of class numbers; or an array 'labels' in the samples.")
@click.option("--calibration", type=options.PATH, help="Inputs for recipes that calibrate; the samples unless given.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use at most so many samples.")
@click.option("--log", metavar="PATH", help="The tuning log, a file or a URL; this user's own unless given, or none.")
@click.option(
    "--budget",
    type=click.FloatRange(0.5),
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    help="Time spent on timing each variant at each place.",
)
@click.option("--matrix/--no-matrix", default=True, show_default=True, help="Run each place's decisions on the others.")
@options.threads_option
@options.route_options
@click.option(
    "-o", "--output", "--html", "html", type=options.PATH, help="Write a page with charts; it needs no other file."
)
@click.option("--markdown", type=options.PATH, help="Write all tables as Markdown.")
@options.json_option
@click.option(
    "--fail-if-slower",
    "limit_slower",
    callback=parse_share,
    metavar="SHARE",
    help="Exit code 1 for what is slower by more than a share such as 5%, beyond chance.",
)
@click.option(
    "--baseline", type=options.PATH,
    help="The --json of an earlier comparison to be slower than. Else that is the file which --json names, "
    "when it is there already and stays as it is when this comparison fails; and without one "
    "the first variant at each place.",
)  # fmt: skip
def command(
    model: Path,
    shapes: dict,
    values: dict,
    places: tuple[str, ...],
    recipes: tuple[str, ...],
    samples: Path | None,
    labels: Path | None,
    calibration: Path | None,
    limit: int | None,
    log: str | None,
    budget: float,
    matrix: bool,
    threads: int | None,
    ssh: str,
    tls: str,
    html: Path | None,
    markdown: Path | None,
    json_path: str | None,
    limit_slower: float | None,
    baseline: Path | None,
) -> None:
    """Compare a model's variants on several boards: latency, size, quality and energy, then kernel by kernel.

    Boards are leased and measured at the same time where they are different machines. Of emulated boards results are
    checked, and no times are shown. Exit code 1 when a place was not reached, or --fail-if-slower says so.
    """
    from tvmcompress import compare
    from tvmcompress.comparison import Comparison
    from tvmcompress.errors import TvmcompressError
    from tvmcompress.samples import load_array
    from tvmcompress.tunnels import Route

    for output in (html, markdown, Path(json_path) if json_path not in (None, "-") else None):
        if output is not None:
            options.check_output(output, model, samples, labels, calibration, options.log_file(log))
    if baseline is not None and limit_slower is None:
        raise click.UsageError("--baseline is what --fail-if-slower compares with; give that too")
    if baseline is None and limit_slower is not None and json_path not in (None, "-") and Path(json_path).is_file():
        baseline = Path(json_path)  # type: ignore[arg-type]
    earlier = Comparison.load(baseline) if baseline is not None else None
    loaded = models.open_model(model, shapes, values)
    with screen.progress() as progress:
        found = compare(
            loaded,
            places,
            recipes,
            samples,
            labels=load_array(labels) if labels else None,
            calibration=calibration,
            limit=limit,
            log=options.compiling_log(log),
            threads=threads,
            route=Route(ssh, tls),
            budget_s=budget,
            matrix=matrix,
            fail_if_slower=limit_slower,
            baseline=earlier,
            progress=progress,
        )
    if html is not None:
        found.save_html(html)
    if markdown is not None:
        found.save_markdown(markdown)
    kept = ""
    if found.failed and earlier is not None and baseline is not None and json_path == str(baseline):
        json_path = str(baseline.with_suffix(f".failed{baseline.suffix}"))
        kept = f"; {baseline} stays the baseline, this is in {json_path}"
    screen.result(found.json(), found.table, json_path)
    if found.failed:
        raise TvmcompressError("; ".join(found.failed) + kept)
