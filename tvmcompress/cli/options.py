"""Options that several commands share, and what they mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmcompress.errors import UsageError

if TYPE_CHECKING:
    from tvmcompress.tuning_log import TuningLog

PATH = click.Path(path_type=Path)


def parse_shapes(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """`x=1x3x224x224` to {"x": (1, 3, 224, 224)}."""
    shapes = {}
    for text in given:
        name, equals, dims = text.rpartition("=")
        if not equals or not name or not re.fullmatch(r"\d+([x,]\d+)*|", dims):
            raise click.BadParameter(f"wanted NAME=1x3x224x224, got '{text}'")
        shapes[name] = tuple(int(d) for d in re.split("[x,]", dims) if d)
    return shapes


def parse_values(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """`steps=3`, `sizes=[1,2]` to {"steps": 3, "sizes": [1, 2]}: what follows the sign is JSON."""
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            if not equals or not name:
                raise ValueError
            values[name] = json.loads(value)
        except ValueError:
            raise click.BadParameter(f"wanted NAME=3 or NAME=[1,2], got '{text}'") from None
    return values


def model_options(function: Callable) -> Callable:
    """The model's file and how its open ends are bound."""
    decorators = [
        click.argument("model", type=PATH),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            callback=parse_shapes,
            metavar="NAME=1x3x224x224",
            help="Shape of an input whose file leaves it open; may be repeated.",
        ),
        click.option(
            "--value",
            "values",
            multiple=True,
            callback=parse_values,
            metavar="NAME=VALUE",
            help="Fix an input to a constant; may be repeated.",
        ),
    ]
    return _apply(decorators, function)


def recipe_options(required: bool) -> Callable[[Callable], Callable]:
    """The recipe, the samples that it may need, and the calibration's cache."""
    decorators = [
        click.option(
            "--recipe", required=required, help="A recipe's name (see `tvmcompress recipe list`) or TOML file."
        ),
        click.option("--samples", type=PATH, help="Inputs for calibration: .npz, .npy or a folder of them."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Use at most so many samples."),
        click.option("--cache", type=PATH, help="A file in which calibration is kept and found again."),
    ]
    return lambda function: _apply(decorators, function)


def output_option(what: str) -> Callable[[Callable], Callable]:
    return click.option("-o", "--output", required=True, type=PATH, help=f"The {what} to write.")


def parse_json_path(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Refused before any work where it cannot be written."""
    if text not in (None, "-"):
        check_output(Path(text))  # type: ignore[arg-type]
    return text


json_option = click.option(
    "--json", "json_path", metavar="PATH", callback=parse_json_path, help="Write the result as JSON; - is stdout."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads; all usable CPUs unless given."
)
target_option = click.option(
    "--target",
    default="native",
    show_default=True,
    help="A target's name, file, triple, or native; several with commas become builds of one package.",
)
build_option = click.option(
    "--build", metavar="NAME", help="Of a package of several builds this one, not the best that can run there."
)
log_option = click.option(
    "--log", metavar="PATH", help="The tuning log, a file or a URL; this user's own unless given."
)


def route_options(function: Callable) -> Callable:
    """The way to a board that is not on this machine."""
    decorators = [
        click.option("--ssh", metavar="USER@HOST", default="", help="Reach boards from there, through SSH."),
        click.option("--tls", metavar="FOLDER", default="", help="Certificates for boards that are served with --tls."),
    ]
    return _apply(decorators, function)


def device_options(function: Callable) -> Callable:
    """Where to run, and the way there."""
    help = "Where to run: local, a board's HOST:PORT, or NAME@HOST:PORT of a tracker."
    return click.option("--device", default="local", show_default=True, help=help)(route_options(function))


def log_path(log: str | None) -> str:
    """What `--log` names, or this user's own."""
    from tvmcompress.tuning_log import default_path

    return log or os.environ.get("TVMCOMPRESS_LOG") or str(default_path())


def log_file(log: str | None) -> Path | None:
    """Where the log lies, if it is a file."""
    where = log_path(log)
    return None if "://" in where or log == "none" else Path(where)


def compiling_log(log: str | None) -> str | None:
    """What `--log` names for compiling; this user's own when there is one; nothing for `none`."""
    where = log_path(log)
    if log == "none" or (log is None and "://" not in where and not Path(where).is_file()):
        return None
    if "://" not in where and not Path(where).is_file():
        raise UsageError(f"no tuning log '{where}'; `tvmcompress tune` writes one")
    return where


def opened_log(log: str | None, must_exist: bool = True) -> TuningLog:
    """The log for reading; UsageError where there is none yet."""
    from tvmcompress.tuning_log import TuningLog

    where = log_path(log)
    if must_exist and "://" not in where and not Path(where).is_file():
        raise UsageError(f"no tuning log '{where}'; `tvmcompress tune` writes one")
    return TuningLog.open(where)


def check_output(output: Path, *inputs: Path | None) -> None:
    """Refuse, before any work, an output that cannot be written or that is one of the inputs."""
    folder = output.parent
    if output.is_dir():
        raise UsageError(f"output '{output}' is a folder; wanted a file name")
    if not folder.is_dir():
        raise UsageError(f"output '{output}': there is no folder '{folder}'")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"output '{output}': the folder '{folder}' cannot be written to")
    for given in inputs:
        if given and (given.resolve() == output.resolve() or same_file(given, output)):
            raise UsageError(f"output '{output}' is the input itself; choose another name")


def same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and os.path.samefile(one, other)


@contextmanager
def opened(device: str, ssh: str = "", tls: str = "") -> Iterator[Any]:
    """The device that `--device` names, connected; None for this machine, which needs nothing of TVM's RPC."""
    if device.strip() == "local":
        yield None
        return
    from tvmcompress.device import Device
    from tvmcompress.tunnels import Route

    with Device.open(device, route=Route(ssh, tls)) as place:
        yield place


def _apply(decorators: list[Callable], function: Callable) -> Callable:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function
