"""tvmcompress verify"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvmcompress.cli import options, screen
from tvmcompress.errors import PackageError

if TYPE_CHECKING:
    from tvmcompress.golden import Verification


@click.command(epilog="Example:\n\n\b\n  tvmcompress verify small.tar")
@click.argument("package", type=options.PATH)
@click.option("--hashes-only", is_flag=True, help="Do not run it: for a package that is for another machine.")
@options.device_options
@options.threads_option
@options.json_option
def command(
    package: Path, hashes_only: bool, device: str, ssh: str, tls: str, threads: int | None, json_path: str | None
) -> None:
    """Check a package's hashes, then that it computes its golden outputs on this machine or another device.

    Of several builds every one that can run there is run.
    """
    from tvmcompress.package import Package

    loaded = Package.load(package)
    with options.opened(device, ssh, tls) as place:
        verification = loaded.verify(threads=threads, hashes_only=hashes_only, device=place)
    screen.result(verification.json(), lambda: _text(verification), json_path)
    if not verification.ok:
        failed = ", ".join(check.what for check in verification.checks if not check.ok)
        raise PackageError(f"{package} is not what it should be: {failed}")


def _text(verification: Verification) -> str:
    rows = [(("good" if c.ok else "BAD "), c.what, f"({c.detail})" if c.detail else "") for c in verification.checks]
    rows += [("not run:", reason, "") for reason in verification.not_run]
    return "\n".join(" ".join(row).rstrip() for row in rows)
