"""Comparison: one model in several variants on several boards. JSON, a table, Markdown, or an HTML page."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tvmcompress.errors import InputError
from tvmcompress.ir.files import atomic_write

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """Every field holds JSON values only; a number that was not measured is null. An emulated board has no times.

    Intervals (`low`, `high`) hold the median, or a ratio of medians, with a probability of 95%; see
    measurement.bootstrap.
    """

    model: dict  # the file: name, format, bytes, sha256; inputs
    places: list[dict]  # name, target, address, machine, board, emulated, reached, error
    variants: list[dict]  # name, applied (passes)
    # place, variant, error, size (bytes), plan and memory (bytes), quality, energy (J per inference) and latency in ms:
    # median, low, high, p90, p99, min, spread ((p90 - median) / median), runs, rounds (medians, by sitting)
    results: list[dict]
    ratios: dict  # of medians: variants (to the first at the same place), places (to the first, same variant)
    # place, variant, peaks, mix and rows: name, calls, ms, share, gmacs, gflops, of_peak, key, decisions, mix
    kernels: list[dict]
    decisions: list[dict]  # variant, kernel, decision, values {place: value}: where places decide otherwise
    matrix: list[dict]  # variant, of (whose decisions), on, ratio (to on's own), kernels, shared, carried, quality
    gate: dict | None  # limit, against, rows, passed, told
    how: dict  # when, versions, samples, budget_s, sittings, load_before

    def json(self) -> dict:
        """The fields, and the schema's number."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Comparison:
        """Read what `save` wrote. Raises InputError."""
        try:
            value = json.loads(Path(path).read_text())
            if value["schema"] != SCHEMA:
                raise InputError(f"{path}: a comparison of schema {value['schema']}, this version reads {SCHEMA}")
            return cls(**{field.name: value[field.name] for field in fields(cls)}).checked(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a comparison of tvmcompress") from error

    def checked(self, path: str | os.PathLike) -> Comparison:
        """Itself when it has what a baseline must have; raises KeyError or TypeError."""
        _ = self.model["sha256"], self.model["name"], self.how["when"]
        for row in self.results:
            _ = row["place"], row["variant"], row["error"]
            for sitting in row["latency"]["rounds"] if row["latency"] else ():
                if not sitting or not all(isinstance(ms, int | float) and 0 < ms < float("inf") for ms in sitting):
                    raise InputError(f"{path}: the times of {row['variant']} on {row['place']} are not times")
        return self

    def table(self) -> RenderableType:
        """For `rich.print`."""
        from tvmcompress.comparison_text import render

        return render(self)

    def markdown(self) -> str:
        """All tables, for a pull request or a wiki."""
        from tvmcompress.comparison_text import markdown

        return markdown(self)

    def html(self) -> str:
        """One page with charts and tables that sort. It needs nothing else; without scripts it does not sort."""
        from tvmcompress.comparison_html import render

        return render(self)

    def save_html(self, path: str | os.PathLike) -> None:
        """Write `html()`, whole or not at all."""
        _write(path, self.html())

    def save_markdown(self, path: str | os.PathLike) -> None:
        """Write `markdown()`, whole or not at all."""
        _write(path, self.markdown())

    @property
    def failed(self) -> list[str]:
        """Why it is not good: places that were not reached, variants that did not run, a gate that did not pass."""
        found = [f"{place['name']} was not reached: {place['error']}" for place in self.places if not place["reached"]]
        reached = {place["name"] for place in self.places if place["reached"]}
        rows = [row for row in self.results if row["error"] and row["place"] in reached]
        found += [f"{row['variant']} did not run on {row['place']}: {row['error']}" for row in rows]
        return found + ([self.gate["told"]] if self.gate and not self.gate["passed"] else [])


def _write(path: str | os.PathLike, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
