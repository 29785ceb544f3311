"""tvmcompress device serve | tracker | list | doctor | bundle | keys"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tvmcompress.cli import options, screen

if TYPE_CHECKING:
    from tvmcompress.tuning.doctor import Finding

MARKS = {"good": "good", "doubtful": "look", "bad": "BAD"}


@click.group(epilog="Example:\n\n\b\n  tvmcompress device list localhost:9190")
def command() -> None:
    """Boards: serving one, finding them, looking after them."""


host_option = click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
tls_option = click.option(
    "--tls", metavar="FOLDER", default="", help="Let in only who has a certificate; see `device keys`."
)
open_option = click.option(
    "--anyone-may-run-code", "open", is_flag=True,
    help="Listen beyond this machine without TLS: whoever reaches the port can then run programs here.",
)  # fmt: skip


@command.command(
    "serve",
    epilog="Examples:\n\n\b\n"
    "  tvmcompress device serve --name rpi4\n"
    "  tvmcompress device serve --name rpi4 --tracker localhost:9190",
)
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=9090, show_default=True, help="The first port to try.")
@click.option("--name", default="", help="What the board is called, such as its target.")
@click.option("--tracker", metavar="HOST:PORT", default="", help="A tracker to register with.")
@tls_option
@open_option
def serve(host: str, port: int, name: str, tracker: str, tls: str, open: bool) -> None:
    """Let this machine be used as a board. Runs until Ctrl-C.

    It can be reached from this machine alone unless told otherwise: TVM's RPC runs whatever it is sent. From elsewhere
    give `--ssh user@board` to the other commands. Should the server die or hang, it is started again.
    """
    from tvmcompress.serving.__main__ import serve as run

    run(host, port, name, tracker, tls, open)


@command.command("tracker", epilog="Example:\n\n\b\n  tvmcompress device tracker --port 9190")
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=9190, show_default=True, help="The first port to try.")
@tls_option
@open_option
def tracker(host: str, port: int, tls: str, open: bool) -> None:
    """Keep a list of boards, so that they are found by name. Runs until Ctrl-C."""
    from tvmcompress.serving.__main__ import serve as run

    run(host, port, "", "", tls, open, track=True)


@command.command("list", epilog="Example:\n\n\b\n  tvmcompress device list localhost:9190 localhost:9090")
@click.argument("addresses", nargs=-1)
@options.route_options
@options.json_option
def list_(addresses: tuple[str, ...], ssh: str, tls: str, json_path: str | None) -> None:
    """Boards at these addresses, each a board's or a tracker's; a tracker on this machine unless given."""
    from tvmcompress.device import survey
    from tvmcompress.tunnels import Route

    rows = survey(addresses or ("localhost:9190",), Route(ssh, tls))
    screen.result(rows, lambda: listed(rows), json_path)
    if not any(row["error"] == "" for row in rows):
        raise click.exceptions.Exit(1)


def listed(rows: list[dict]) -> Table | Text:
    if not rows:
        return Text("no boards")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("address", "state", "processor", "cores", "TVM"):
        table.add_column(column, justify="right" if column == "cores" else "left")
    for row in rows:
        if row["error"]:
            table.add_row(Text(row["address"]), Text(row["error"]), "", "", "")
            continue
        state = f"in use by {row['owner']}" if row["owner"] else "free"
        processor = f"{row['model']} ({row['architecture']}{', emulated' if row['emulated'] else ''})"
        table.add_row(Text(row["address"]), Text(state), Text(processor), str(row["cores"]), row["tvm"])
    return table


@command.command("doctor", epilog="Example:\n\n\b\n  tvmcompress device doctor localhost:9090 --target native")
@click.argument("address")
@click.option("--target", help="What it is to run; the board's own name unless given.")
@options.route_options
@options.json_option
def doctor(address: str, target: str | None, ssh: str, tls: str, json_path: str | None) -> None:
    """Look a board over: link, versions, features, state, and whether it computes right.

    The exit code is 1 when something is bad.
    """
    from tvmcompress.tuning.doctor import examine
    from tvmcompress.tunnels import Route

    findings = examine(address, target, Route(ssh, tls))
    screen.result([vars(f) for f in findings], lambda: told(findings), json_path)
    if any(f.verdict == "bad" for f in findings):
        raise click.exceptions.Exit(1)


def told(findings: list[Finding]) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "what", "found"):
        table.add_column(column)
    for finding in findings:
        table.add_row(MARKS[finding.verdict], Text(finding.what), Text(finding.found))
    advice = [Text(f"{finding.what}: {finding.advice}") for finding in findings if finding.advice]
    return Group(table, *advice)


@command.command("bundle", epilog="Example:\n\n\b\n  tvmcompress device bundle --target rpi4 -o board.tar")
@click.option("--target", default="native", show_default=True, help="The board's target.")
@click.option("--python", default="3.11", show_default=True, metavar="VERSION", help="The Python that the board has.")
@options.output_option("archive")
def bundle(target: str, python: str, output: Path) -> None:
    """Write the least that a board needs to be served: TVM's runtime, our server, and one command to start it."""
    from tvmcompress.bundling import bundle as make
    from tvmcompress.target import Target

    options.check_output(output)
    size = make(Target.load(target), output, python)
    screen.show(
        f"{output}: {size / 1e6:.1f} MB; on the board, which needs Python {python} and nothing else:\n"
        f"  tar xf {output.name} && tvmcompress-board/start --name {target}"
    )


@command.command("keys", epilog="Example:\n\n\b\n  tvmcompress device keys -o keys")
@click.option("-o", "--output", required=True, type=options.PATH, help="The folder to write; must not exist.")
@click.option("--days", type=click.IntRange(1), default=825, show_default=True, help="How long they are valid.")
def keys(output: Path, days: int) -> None:
    """Make certificates for `--tls`: one for boards, one for hosts, and the authority that both are checked against."""
    from tvmcompress.certificates import make

    make(output, days)
    screen.show(
        f"{output}: copy authority.pem, board.pem and board.key to each board; host.* and authority.key stay here"
    )
