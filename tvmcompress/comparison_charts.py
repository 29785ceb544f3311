"""Charts of a Comparison in SVG. Colours are classes, which follow the page's scheme; every chart has a title."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tvmcompress.comparison import Comparison
from tvmcompress.comparison_tables import GROUPS, latency_text, time_text
from tvmcompress.report import bytes_text

WIDTH, LABEL, ROW = 960, 230, 26
LETTER = 6.8  # of text, in the charts' own units
Bar = tuple[str, list[tuple[float, int, str]]]  # what it is of, and its pieces: (share, colour, what it is)
SHAPES = ("circle", "square", "diamond", "triangle")
KINDS = ("convolution", "Winograd convolution", "depthwise", "matrix product", "recurrent", "other", "outside kernels")
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(i / 10 for i in range(10, 100)))  # of an axis
FAR = 30  # times: bars of boards further apart than this are each drawn to a scale of their own


def shorten(label: str, most: int = 32) -> str:
    """A long name without its middle: both ends tell names apart."""
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-(most // 2) :]}"


def text(x: float, y: float, label: str, kind: str = "", anchor: str = "start", most: int = 200) -> str:
    title = f"<title>{escape(label)}</title>" if len(label) > most else ""
    cls = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{cls}>{escape(shorten(label, most))}{title}</text>'


def svg(title: str, height: float, parts: Iterable[str], width: float = WIDTH) -> str:
    return (
        f'<div class="chart"><svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg></div>"
    )


def legend(names: Sequence[str], prefix: str, used: Collection[int] | None = None) -> str:
    """What colours stand for, as text of the page; of all `names` those that are `used`."""
    told = [(i, name) for i, name in enumerate(names) if used is None or i in used]
    spots = (f'<span><i class="{prefix}{i % 8}"></i>{escape(name)}</span>' for i, name in told)
    return f'<p class="legend">{"".join(spots)}</p>'


def latency(found: Comparison) -> str:
    """A bar for each variant at each place, with the 95% interval as a whisker."""
    names = [variant["name"] for variant in found.variants]
    timed = [row["latency"]["high"] for row in found.results if row["latency"]]
    medians = [row["latency"]["median"] for row in found.results if row["latency"]]
    apart = bool(medians) and max(medians) > FAR * min(medians)
    parts, y = list[str](), 0.0
    for place in found.places:
        rows = [row for row in found.results if row["place"] == place["name"]]
        own = [row["latency"]["high"] for row in rows if row["latency"]]
        top = max(own if apart else timed, default=1.0)
        machine = (place["machine"] or {}).get("model") or ""
        parts.append(text(0, y + 17, place["name"], "strong", most=60))
        parts.append(text(WIDTH, y + 17, machine, "dim", "end", most=60))
        y += ROW
        for row in rows:
            parts.append(bar(row, names.index(row["variant"]), y, top))
            y += ROW
        y += 10
    note = '<p class="note">Boards are far apart, so each is drawn to its own scale.</p>' if apart else ""
    return legend(names, "v") + svg("Median latency in ms, by place and variant", y, parts) + note


def bar(row: Mapping[str, Any], colour: int, y: float, top: float) -> str:
    room = WIDTH - LABEL - 220
    label = text(14, y + 17, row["variant"], most=30)
    found = row["latency"]
    if not found:
        why = row["error"] or ("emulated: results checked, no times" if row["emulated"] else "not timed")
        width = min(room + 160, len(shorten(why, 90)) * LETTER + 24)
        box = f'<rect class="hollow" x="{LABEL}" y="{y + 4:.1f}" width="{width:.1f}" height="{ROW - 8}" rx="9"/>'
        return label + box + text(LABEL + 12, y + 17, why, "dim", most=90)
    x: Callable[[float], float] = lambda ms: LABEL + ms / top * room  # noqa: E731
    end, low, high, mid = x(found["median"]), x(found["low"]), x(found["high"]), y + ROW / 2
    title = f"{row['variant']} on {row['place']}: {time_text(found['median'])}, 95% interval {time_text(found['low'])} "
    title += f"to {time_text(found['high'])}, {found['runs']} runs"
    said = latency_text(found)
    return (
        f"<g><title>{escape(title)}</title>{label}"
        f'<rect class="v{colour % 8}" x="{LABEL}" y="{y + 4:.1f}" width="{max(end - LABEL, 1):.1f}" '
        f'height="{ROW - 8}" rx="3"/>'
        f'<path class="whisker" d="M{low:.1f} {mid:.1f}H{high:.1f}M{low:.1f} {mid - 5:.1f}v10'
        f'M{high:.1f} {mid - 5:.1f}v10"/>{text(max(high, end) + 9, y + 17, said)}</g>'
    )


def scatter(found: Comparison) -> str:
    """Size against speed, both logarithmic: to the lower left is better. Empty with fewer than two points."""
    points = [row for row in found.results if row["latency"]]
    if len(points) < 2:
        return ""
    names, places = [v["name"] for v in found.variants], [p["name"] for p in found.places]
    left, right, top, bottom = 80.0, WIDTH - 40.0, 16.0, 330.0
    x = Axis([row["latency"]["median"] for row in points], left, right)
    y = Axis([row["size"]["package"] for row in points], bottom, top)
    parts = [f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>']
    for value, at in x.ticks:
        parts.append(
            f'<path class="grid" d="M{at:.1f} {top}V{bottom}"/>'
            + text(at, bottom + 18, time_text(value), "dim", "middle")
        )
    for value, at in y.ticks:
        parts.append(
            f'<path class="grid" d="M{left} {at:.1f}H{right}"/>'
            + text(left - 8, at + 4, bytes_text(value), "dim", "end")
        )
    parts.append(text((left + right) / 2, bottom + 38, "latency (median)", "dim", "middle"))
    parts.append(text(left + 6, top + 10, "package size", "dim"))
    for row in points:
        at_x, at_y = x.at(row["latency"]["median"]), y.at(row["size"]["package"])
        label = f"{row['variant']} on {row['place']}"
        title = f"{label}: {time_text(row['latency']['median'])}, {bytes_text(row['size']['package'])}"
        mark = marker(SHAPES[places.index(row["place"]) % len(SHAPES)], at_x, at_y)
        side = ("end", -11) if at_x > WIDTH - 40 - len(shorten(label)) * LETTER else ("start", 11)
        parts.append(f'<g class="v{names.index(row["variant"]) % 8}"><title>{escape(title)}</title>{mark}</g>')
        parts.append(text(at_x + side[1], at_y + 4, label, "small", side[0], most=32))
    return legend(names, "v") + svg("Package size against latency", bottom + 46, parts)


class Axis:
    """A logarithmic one from values to the chart's units: `at`, and `ticks` of (value, where)."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values) / 1.25, max(values) * 1.25
        self.low, self.span, self.start, self.length = math.log(low), math.log(high / low), start, end - start
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in STEPS:
            chosen = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
            if len(chosen) > 2:
                break
        chosen = chosen[:: max(1, math.ceil(len(chosen) / 8))]
        self.ticks = [(tick, self.at(tick)) for tick in chosen]

    def at(self, value: float) -> float:
        return self.start + (math.log(value) - self.low) / self.span * self.length


def marker(shape: str, x: float, y: float, r: float = 7) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    if shape == "square":
        return f'<rect x="{x - r + 1:.1f}" y="{y - r + 1:.1f}" width="{2 * r - 2}" height="{2 * r - 2}"/>'
    corners = [(0, -r), (r, 0), (0, r), (-r, 0)] if shape == "diamond" else [(0, -r), (r, r - 1), (-r, r - 1)]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def kind(row: Mapping[str, Any]) -> int:
    """Of KINDS, by a kernel's family and name."""
    family, name = row["family"] or "", row["name"]
    if family == "winograd":
        return 1
    if family == "depthwise" or "depthwise" in name:
        return 2
    if "matmul" in name:
        return 3
    if any(word in name for word in ("lstm", "gru", "recurrent")):
        return 4
    return 0 if "conv" in name else 5


def shares(found: Comparison) -> str:
    """Where the time goes: a bar for each variant at each place, a piece for each kernel."""
    tables = [table for table in found.kernels if any(row["share"] for row in table["rows"])]
    bars = []
    for table in tables:
        whole = (table["overhead_ms"] or 0) + sum(row["ms"] for row in table["rows"])
        rows = sorted(table["rows"], key=lambda row: (kind(row), -row["ms"]))
        pieces = [
            (row["ms"] / whole, kind(row), f"{row['name']}: {row['ms'] / whole:.1%}, {time_text(row['ms'])}")
            for row in rows
        ]
        outside = (table["overhead_ms"] or 0) / whole
        pieces.append((outside, len(KINDS) - 1, f"outside kernels: {outside:.1%}"))
        bars.append((f"{table['variant']} on {table['place']}", pieces))
    return legend(KINDS, "k", used(bars)) + stacked("Share of each kernel in the time", bars, "k") if bars else ""


def instructions(found: Comparison) -> str:
    """What innermost loops are made of; emulated boards have this too."""
    bars = []
    for table in found.kernels:
        counts = table["mix"]["inner"]
        whole = sum(counts.values())
        if whole:
            pieces = [
                (counts[g] / whole, i, f"{g}: {counts[g]:,} ({counts[g] / whole:.0%})") for i, g in enumerate(GROUPS)
            ]
            bars.append((f"{table['variant']} on {table['place']}", pieces))
    title = "Instructions of innermost loops, by what they do"
    return legend(GROUPS, "g", used(bars)) + stacked(title, bars, "g") if bars else ""


def used(bars: Sequence[Bar]) -> set[int]:
    return {colour for _, pieces in bars for share, colour, _ in pieces if share > 0}


def stacked(title: str, bars: Sequence[Bar], prefix: str) -> str:
    """Bars of the same length, cut into (share, colour, what it is)."""
    room, parts = WIDTH - LABEL, list[str]()
    for i, (label, pieces) in enumerate(bars):
        parts.append(text(0, i * ROW + 17, label, most=33))
        x = float(LABEL)
        for share, colour, said in pieces:
            width = share * room
            if width > 0.05:
                parts.append(
                    f'<rect class="{prefix}{colour % 8} piece" x="{x:.2f}" y="{i * ROW + 4}" width="{width:.2f}" '
                    f'height="{ROW - 8}"><title>{escape(said)}</title></rect>'
                )
            x += width
    return svg(title, len(bars) * ROW, parts)
