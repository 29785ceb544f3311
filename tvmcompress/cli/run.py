"""tvmcompress run"""

from __future__ import annotations

from pathlib import Path

import click

from tvmcompress.cli import options, screen


@click.command(epilog="Example:\n\n\b\n  tvmcompress run small.tar --inputs x.npz --outputs y.npz")
@click.argument("package", type=options.PATH)
@click.option("--inputs", required=True, type=options.PATH, help="Inputs by name: .npz, .npy or a folder of them.")
@click.option("--outputs", required=True, type=options.PATH, help="The .npz file to write, outputs by name.")
@options.device_options
@options.build_option
@options.threads_option
@options.json_option
def command(
    package: Path,
    inputs: Path,
    outputs: Path,
    device: str,
    ssh: str,
    tls: str,
    build: str | None,
    threads: int | None,
    json_path: str | None,
) -> None:
    """Run a package on inputs from a file.

    Several samples stacked in front (or in a folder) are run one by one, and their outputs are stacked likewise.
    """
    from tvmcompress.deployment import deploy
    from tvmcompress.ir.files import atomic_write
    from tvmcompress.samples import Samples, save_npz

    options.check_output(outputs, package, inputs)
    with options.opened(device, ssh, tls) as place:
        deployment = deploy(package, place, threads, build=build)
        samples = Samples(inputs, deployment.package.inputs)
        with screen.progress() as progress:
            results = []
            for count, sample in enumerate(samples, 1):
                results.append(deployment(sample))
                progress(count, samples.count(), "running")
    arrays = {name: _joined([result[name] for result in results]) for name in results[0]}
    with atomic_write(outputs) as temporary:
        save_npz(temporary, arrays)
    value = {
        "samples": len(results),
        "build": deployment.build,
        "outputs": {n: {"shape": a.shape, "dtype": a.dtype.name} for n, a in arrays.items()},
    }
    screen.result(value, lambda: _text(value, outputs), json_path)


def _joined(arrays: list):  # type: ignore[no-untyped-def]  # NumPy is not imported up here
    """One array for all samples: along the first dimension, or a new one for scalars."""
    import numpy as np

    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays[0].ndim else np.stack(arrays)


def _text(value: dict, outputs: Path) -> str:
    rows = [f"  {name}: {row['dtype']} {'x'.join(map(str, row['shape']))}" for name, row in value["outputs"].items()]
    return "\n".join([f"{outputs}: {value['samples']} sample(s), by the build for {value['build']}", *rows])
