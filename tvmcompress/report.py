"""Report: what was measured of a deployment, how, and against what. JSON, a table for the terminal, or an HTML page."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmcompress.errors import InputError
from tvmcompress.ir.files import atomic_write

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Every field holds JSON values only; a number that was not measured is null, never made up."""

    package: dict  # name, target, macs {total, integer}, source (the model's file), applied (passes), versions
    reference: dict | None  # name, kind
    # bytes on disk: package, weights, library, golden, manifest, source, reference; ratio: package / source; and
    # `unpacked`: the stored weights in memory
    size: dict
    quality: dict  # samples, outputs, overall, accuracy; see measurement.quality
    # ms: package and reference {median, p90, p99, min, mean, cold_start, load, of it unpack and prepare, runs,
    # histogram}; speedup
    latency: dict
    # bytes in memory: package and reference {peak, above_bare: without interpreter and NumPy}; plan {weights as kernels
    # read them, arena} or null
    memory: dict
    energy: dict  # package and reference {sensor: J per inference}, or the reason in `not_measured`
    layers: list[dict]
    how: dict  # when, machine, threads, load_before, processes …

    def json(self) -> dict:
        """The fields, and the schema's number."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Report:
        """Read what `save` wrote. Raises InputError."""
        try:
            value = json.loads(Path(path).read_text())
            if value["schema"] != SCHEMA:
                raise InputError(f"{path}: a report of schema {value['schema']}, this version reads {SCHEMA}")
            return cls(**{field.name: value[field.name] for field in fields(cls)})
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a report of tvmcompress") from error

    def table(self) -> RenderableType:
        """For `rich.print`."""
        from tvmcompress.report_text import render

        return render(self)

    def html(self) -> str:
        """One page that needs nothing else: styles and charts are inside, there are no scripts."""
        from tvmcompress.report_html import render

        return render(self)

    def save_html(self, path: str | os.PathLike) -> None:
        """Write `html()`, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")


def bytes_text(value: float | None) -> str:
    """`11.7 MB`, in powers of ten as disks and downloads are counted."""
    if value is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if abs(value) < 999.5 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f} B"


def ms_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


def number_text(value: float | None, unit: str = "", digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}{unit}"


def percent_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def snr_text(row: dict[str, Any] | None) -> str:
    if not row:
        return "–"
    return "exact" if row["exact"] else number_text(row["snr_db"], " dB", 3)


def doubts(report: Report) -> list[str]:
    """What a reader should know before believing the figures."""
    found = []
    load, cores = report.how["load_before"], report.how["machine"]["cores"]
    if report.how.get("emulated"):
        found.append("An emulator ran this: the outputs count, the times mean nothing.")
    if load > 0.5 * cores:
        found.append(f"The machine was busy (load {load:.1f} on {cores} CPUs): do not trust the times.")
    if not report.energy["package"]:
        found.append(f"Energy was not measured: {report.energy['not_measured']}.")
    return found


def figures(report: Report) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The report as text: (section, rows of (what, package, reference)). Terminal and page show the same."""
    size, latency, memory = report.size, report.latency, report.memory
    reference = report.reference is not None
    ours, theirs = latency["package"], latency["reference"] or {}
    unpacked = size.get("unpacked", 0)
    sections: list[tuple[str, list[tuple[str, str, str]]]] = [
        (
            "Size on disk",
            [
                ("package file", bytes_text(size["package"]), bytes_text(size.get("reference")) if reference else ""),
                ("weights", bytes_text(size["weights"]), ""),
                *([("  unpacked", bytes_text(unpacked), "")] if unpacked > size["weights"] else []),
                ("library", bytes_text(size["library"]), ""),
                ("model it came from", bytes_text(size["source"]), ""),
                ("package / model", number_text(size["ratio"], "", 3), ""),
            ],
        ),
        (
            "Latency",
            [
                *(
                    (name, ms_text(ours[name]), ms_text(theirs[name]) if theirs else "")
                    for name in ("median", "p90", "p99")
                ),
                ("cold start", ms_text(ours["cold_start"]), ms_text(theirs["cold_start"]) if theirs else ""),
                *_loading(ours, theirs),
                ("runs", str(ours["runs"]), str(theirs["runs"]) if theirs else ""),
                *([("times faster (median)", number_text(latency["speedup"], "", 3), "")] if theirs else []),
            ],
        ),
        (
            "Memory",
            [
                (label, _peak(memory["package"], key), _peak(memory["reference"], key) if reference else "")
                for label, key in (("peak of the process", "peak"), ("above a bare interpreter", "above_bare"))
            ]
            + [
                (label, bytes_text(plan[key]), "")
                for label, key in (("of it weights", "weights"), ("of it between layers", "arena"))
                if (plan := memory.get("plan"))
            ],
        ),
    ]
    if macs := report.package.get("macs"):
        share = macs["integer"] / macs["total"] if macs["total"] else None
        work = [("multiply-adds", f"{macs['total']:,}", ""), ("of them in integers", percent_text(share), "")]
        sections.append(("Work", work))
    return [*sections, ("Quality", _quality(report)), ("Energy", _energy(report))]


def _loading(ours: dict, theirs: dict) -> list[tuple[str, str, str]]:
    names = {"load": "loading", "unpack": "  unpacking weights", "prepare": "  weights into kernels' form"}
    return [
        (label, ms_text(ours[key]), ms_text(theirs[key]) if theirs.get(key) is not None else "")
        for key, label in names.items()
        if ours.get(key) is not None
    ]


def _peak(memory: dict | None, key: str) -> str:
    return bytes_text(memory[key]) if memory else "–"


def _quality(report: Report) -> list[tuple[str, str, str]]:
    overall, accuracy = report.quality["overall"], report.quality["accuracy"]
    rows = [("samples", str(report.quality["samples"]), "")]
    if overall:
        rows += [
            ("signal to noise", snr_text(overall), ""),
            ("largest error", number_text(overall["max_error"]), ""),
            ("mean error", number_text(overall["mean_error"]), ""),
            ("cosine", number_text(overall["cosine"], "", 6), ""),
        ]
        if overall["top1_agreement"] is not None:
            rows.append(("top-1 agreement", percent_text(overall["top1_agreement"]), ""))
        if overall["not_finite"]:
            rows.append(("NaN or infinite in one of the two", str(overall["not_finite"]), ""))
    if accuracy:
        theirs = accuracy.get("reference")
        rows.append(("accuracy", percent_text(accuracy["package"]), percent_text(theirs) if theirs is not None else ""))
    return rows


def _energy(report: Report) -> list[tuple[str, str, str]]:
    ours, theirs = report.energy["package"], report.energy["reference"] or {}
    if not ours:
        return [("energy", "not measured", "")]
    return [
        (
            f"{sensor}, whole machine",
            number_text(joules, " J", 3),
            number_text(theirs.get(sensor), " J", 3) if theirs else "",
        )
        for sensor, joules in ours.items()
    ]
