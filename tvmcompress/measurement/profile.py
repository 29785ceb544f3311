"""Profile: each kernel's share of a package's time, and how near it comes to what the processor can do."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvmcompress import cpu
from tvmcompress.measurement.race import Racer, Worker
from tvmcompress.package import Package
from tvmcompress.report import ms_text
from tvmcompress.samples import save_npz

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_KERNELS = 20


@dataclass(frozen=True)
class Profile:
    """Medians over interleaved rounds of runs and readings of the peak. JSON values only.

    A row of `kernels`: name, calls (in one run), ms (of these together), share (of kernels and what is outside them
    together), bytes (of the tensors that a call is given), gbs, result (the shape of what it writes); and of what
    multiplies: family, macs (of one call), arithmetic, gmacs (10^9 multiply-accumulates a second), of_peak (in the same
    round). A convolution by Winograd's method counts the products that it stands for: these may exceed the peak.
    """

    package: str
    target: str
    threads: int
    machine: str
    ms: float  # of a run that nobody watches
    overhead_ms: float  # of a run outside kernels: calling them, and coming here from Python
    of_peak: float | None  # the time in which all products would be done at the peak, over the time that they take
    peaks: dict  # {arithmetic: {"instruction", "gmacs"}}
    copy_gbs: float  # of copying memory, reads and writes counted
    rounds: int
    kernels: list[dict]

    def json(self) -> dict:
        """The fields."""
        return asdict(self)

    def table(self) -> RenderableType:
        """For `rich.print`."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        title = f"{self.package} on {self.target}, {self.threads} threads"
        table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
        for name in ("kernel", "result", "calls", "time", "share", "GMAC/s", "of peak", "GB/s"):
            table.add_column(name, justify="left" if name in ("kernel", "result") else "right", no_wrap=True)
        for row in self.kernels[:MOST_KERNELS]:
            table.add_row(*(Text(cell) for cell in cells(row)))
        if rest := self.kernels[MOST_KERNELS:]:
            calls, ms, share = (sum(row[key] for row in rest) for key in ("calls", "ms", "share"))
            table.add_row(f"{len(rest)} more", "", str(calls), ms_text(ms), f"{share:.1%}")
        return Group(table, *(Text(line, "dim") for line in self.notes()))

    def notes(self) -> list[str]:
        """What belongs under the table."""
        peaks = [f"{kind} {p['gmacs']:.0f} GMAC/s ({p['instruction']})" for kind, p in self.peaks.items()]
        inside = sum(row["ms"] for row in self.kernels)
        of_peak = f"; all products together reach {self.of_peak:.0%} of the peak" if self.of_peak else ""
        return [
            f"a run takes {ms_text(self.ms)}; {ms_text(self.overhead_ms)} are outside kernels "
            f"({self.overhead_ms / (self.overhead_ms + inside):.1%}){of_peak}",
            f"peak of {self.threads} threads of {self.machine}: {', '.join(peaks)}; "
            f"copying memory {self.copy_gbs:.0f} GB/s",
        ]


def cells(row: dict, width: int = 48) -> tuple[str, ...]:
    """One kernel as text."""
    name = row["name"].removeprefix("fused_")
    work = (f"{row['gmacs']:.0f}", f"{row['of_peak']:.0%}") if "macs" in row else ("", "")
    return (
        name if len(name) <= width else f"{name[: width - 1]}…",
        "x".join(map(str, row["result"])),
        str(row["calls"]),
        ms_text(row["ms"]),
        f"{row['share']:.1%}",
        *work,
        f"{row['gbs']:.0f}",
    )


def profile(
    package: Package, threads: int, inputs: Mapping[str, np.ndarray] | None = None, budget_s: float = 3.0
) -> Profile:
    """Profile a package on this machine, in a process of its own; on its golden inputs unless others are given."""
    order = {"kind": "package", "path": str(package.path), "build": package.target, "threads": threads}
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        path = Path(folder, "inputs.npz")
        save_npz(path, inputs if inputs is not None else package.golden()[0])
        with Worker(Racer(package.name, order), path) as worker:
            found = worker.ask({"profile": budget_s})
    return of(package, threads, found)


def of(package: Package, threads: int, found: Mapping) -> Profile:
    """The Profile of what `profiling.profile` found."""
    work = {row["name"]: row for row in package.manifest.get("kernels", [])}
    whole = found["overhead_ms"] + sum(row["ms"] for row in found["kernels"])
    rows, least, taken = [], 0.0, 0.0
    for kernel in sorted(found["kernels"], key=lambda row: -row["ms"]):
        seconds = kernel["ms"] / 1e3
        row = {**kernel, "share": kernel["ms"] / whole, "gbs": kernel["bytes"] * kernel["calls"] / seconds / 1e9}
        if kernel["name"] in work:
            known = work[kernel["name"]]
            row |= {**known, "gmacs": known["macs"] * kernel["calls"] / seconds / 1e9}
            least, taken = least + seconds * kernel["of_peak"], taken + seconds
        rows.append(row)
    return Profile(
        package=package.name,
        target=package.manifest["target"].get("name", ""),
        threads=threads,
        machine=cpu.model_name(),
        of_peak=least / taken if taken else None,
        kernels=rows,
        **{key: found[key] for key in ("ms", "overhead_ms", "peaks", "copy_gbs", "rounds")},
    )
