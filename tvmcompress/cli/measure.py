"""tvmcompress measure"""

from __future__ import annotations

from pathlib import Path

import click

from tvmcompress.cli import options, screen


@click.command(
    epilog="Examples:\n\n\b\n"
    "  tvmcompress measure small.tar --reference model.onnx --samples test.npz --json report.json\n"
    "  tvmcompress measure small.tar --reference float.tar --samples test.npz --html report.html",
)
@click.argument("package", type=options.PATH)
@click.option("--samples", required=True, type=options.PATH, help="Inputs by name: .npz, .npy or a folder of them.")
@click.option(
    "--reference",
    type=options.PATH,
    help="What to compare with: a package, or a model (ONNX is run by ONNX Runtime when that is installed).",
)
@click.option("--labels", type=options.PATH, help="A .npy of class numbers; or an array 'labels' in the samples.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use at most so many samples.")
@click.option(
    "--budget",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    default=6.0,
    show_default=True,
    help="Time spent on timing.",
)
@click.option("--repeats", type=click.IntRange(1), metavar="N", help="Exactly so many timed runs, instead of a budget.")
@options.device_options
@options.build_option
@options.threads_option
@options.json_option
@click.option("--html", type=options.PATH, help="Write a page with charts; it needs no other file.")
def command(
    package: Path,
    samples: Path,
    reference: Path | None,
    labels: Path | None,
    limit: int | None,
    budget: float,
    repeats: int | None,
    device: str,
    ssh: str,
    tls: str,
    build: str | None,
    threads: int | None,
    json_path: str | None,
    html: Path | None,
) -> None:
    """Measure a package: size, quality, latency, memory and energy, against a reference.

    Package and reference are timed in turns, each in a process of its own; on another device, where a board runs the
    package and a reference package, by that device's own clock.
    """
    from tvmcompress import deploy
    from tvmcompress.samples import load_array

    if html is not None:
        options.check_output(html, package, samples, reference)
    if json_path not in (None, "-"):
        options.check_output(Path(str(json_path)), package, samples, reference)
    with options.opened(device, ssh, tls) as place:
        deployment = deploy(package, place, threads, build=build)
        with screen.progress() as progress:
            report = deployment.measure(
                samples,
                reference,
                load_array(labels) if labels else None,
                limit=limit,
                budget_s=budget,
                repeats=repeats,
                progress=progress,
            )
    if html is not None:
        report.save_html(html)
    screen.result(report.json(), report.table, json_path)
