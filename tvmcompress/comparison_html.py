"""A Comparison as one HTML page: charts in SVG, tables that sort, light and dark. Nothing is fetched.

Without scripts all of it is there; tables then do not sort, and the scheme is the system's.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from tvmcompress import comparison_charts as charts
from tvmcompress import comparison_tables as tables
from tvmcompress.comparison import Comparison
from tvmcompress.comparison_tables import EMULATED, NONE, Cell, Table, time_text
from tvmcompress.report import bytes_text, percent_text, snr_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
LONG = 12  # rows from which a table can be filtered
WORDY = 26  # letters beyond which a cell is broken into lines
HOTTEST = 1.5  # a ratio that is drawn in full colour


def render(found: Comparison) -> str:
    variants, places = ([one["name"] for one in many] for many in (found.variants, found.places))
    title = f"{found.model['name']}: {', '.join(variants)} on {', '.join(places)}"
    sections = [(name, body) for name, body in parts(found) if body]
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{anchor(n)}"><h2 id="{anchor(n)}">{escape(n)}</h2>{b}</section>'
        for n, b in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{asset("css")}</style></head><body>'
        f"<header><div><h1>{escape(found.model['name'])}</h1>{subtitle(found)}</div></header>"
        f"<nav>{links}</nav><main>{alerts(found)}{cards(found)}{body}</main>"
        f"<script>{asset('js')}</script></body></html>\n"
    )


def asset(kind: str) -> str:
    return Path(__file__).with_name(f"comparison_page.{kind}").read_text(encoding="utf-8")


def anchor(name: str) -> str:
    return name.lower().replace(" ", "-").replace("'", "")


def subtitle(found: Comparison) -> str:
    emulated = sum(place["emulated"] for place in found.places)
    places = f"{len(found.places)} place{'s' * (len(found.places) > 1)}"
    told = f"{len(found.variants)} variant{'s' * (len(found.variants) > 1)} on {places}"
    told += f", {emulated} of them emulated" if emulated else ""
    size = f", {bytes_text(found.model['bytes'])}" if found.model["bytes"] else ""
    return f"<p>{told}{size}; {escape(found.how['when'])}</p>"


def alerts(found: Comparison) -> str:
    return "".join(f'<p class="alert" role="alert">{escape(why)}</p>' for why in found.failed)


def cards(found: Comparison) -> str:
    """What one would tell a friend."""
    told: list[tuple[str, str, str]] = []
    timed = [row for row in found.results if row["latency"]]
    if timed:
        best = min(timed, key=lambda row: row["latency"]["median"])
        told.append((time_text(best["latency"]["median"]), f"the fastest: {best['variant']} on {best['place']}", ""))
    if found.ratios["variants"]:
        most = min(found.ratios["variants"], key=lambda row: row["ratio"])
        interval = f"{1 / most['high']:.2f} to {1 / most['low']:.2f}"
        faster = f"as fast as {most['against']}: {most['variant']} on {most['place']} ({interval})"
        told.append((f"{1 / most['ratio']:.2f}×", faster, ""))
    sizes = [row for row in found.results if not row["error"]]
    if sizes:
        small = min(sizes, key=lambda row: row["size"]["package"])
        first = next(row for row in sizes if row["place"] == small["place"])
        share = small["size"]["package"] / first["size"]["package"]
        of = f", {share:.0%} of {first['variant']}" if small is not first else ""
        told.append((bytes_text(small["size"]["package"]), f"the smallest package: {small['variant']}{of}", ""))
    compared = [row for row in found.results if (row["quality"] or {}).get("overall")]
    noisy = [row for row in compared if not row["quality"]["overall"]["exact"]]
    if noisy:
        worst = min(noisy, key=lambda row: row["quality"]["overall"]["snr_db"] or math.inf)
        overall = worst["quality"]["overall"]
        told.append((snr_text(overall), f"the least signal to noise: {worst['variant']} on {worst['place']}", ""))
        if overall["top1_agreement"] is not None:
            least = min(row["quality"]["overall"]["top1_agreement"] for row in compared)
            told.append((percent_text(least), "same class as the float model, at least", ""))
    if found.gate:
        passed = found.gate["passed"]
        told.append(("passed" if passed else "failed", f"the gate: {found.gate['told']}", "good" if passed else "bad"))
    boxes = (f'<div class="card {c}"><b>{escape(b)}</b><span>{escape(t)}</span></div>' for b, t, c in told)
    return f'<div class="cards">{"".join(boxes)}</div>'


def parts(found: Comparison) -> list[tuple[str, str]]:
    """The sections: a name and what is in it."""
    first, gate = tables.end_to_end(found), tables.gated(found)
    return [
        ("End to end", charts.latency(found) + note(first.note) + table(first)),
        ("Gate", note(gate.note) + table(gate) if gate else ""),
        ("Size and speed", charts.scatter(found)),
        ("A's decisions on B", "".join(heat(one) for one in tables.matrices(found))),
        ("Where the time goes", charts.shares(found)),
        ("Kernels", listed(tables.kernels(found))),
        ("Decisions that differ", listed(tables.decisions(found)) if found.decisions else ""),
        ("Instructions", charts.instructions(found) + listed(tables.instructions(found))),
        ("Places", table(tables.boards(found))),
        ("How it was measured", how(found)),
    ]


def listed(one: Table) -> str:
    return note(one.note) + table(one)


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def table(one: Table, cell_class: str = "") -> str:
    """Sorted by a click on a column's name; words stand to the left, numbers to the right."""
    side = [name in one.words for name in one.columns]
    head = "".join(
        f'<th scope="col"{" class=text" if left else ""}>{escape(n)}</th>' for n, left in zip(one.columns, side)
    )
    rows = "".join(f"<tr>{''.join(td(c, left, cell_class) for c, left in zip(row, side))}</tr>" for row in one.rows)
    classes = "sortable filtered" if len(one.rows) >= LONG else "sortable"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(one.title)}"><table class="{classes}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def td(cell: Cell, left: bool, more: str = "") -> str:
    classes = [
        *(["text"] if left else []),
        *(["long"] if len(cell.text) > WORDY else []),
        *(["muted"] if cell.text == NONE else []),
        *([more] if more else []),
    ]
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    if cell.value is not None:
        attributes += f' data-v="{cell.value if math.isfinite(cell.value) else 1e308:.9g}"'
    if cell.note:
        attributes += f' title="{escape(cell.note)}"'
    inner = escape(cell.text)
    if cell.text.startswith(EMULATED):
        inner = f'<span class="badge">{inner}</span>'
    return f"<td{attributes}>{inner}</td>"


def heat(one: Table) -> str:
    """A matrix of ratios: the warmer a field, the more is lost; blue where the other's decisions are the better."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in one.columns[1:])
    rows = []
    for row in one.rows:
        cells = "".join(warm(cell) for cell in row[1:])
        rows.append(f'<tr><th scope="row" class="text">{escape(row[0].text)}</th>{cells}</tr>')
    return (
        f"<h3>{escape(one.title)}</h3>{note(one.note)}"
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(one.title)}"><table>'
        f'<thead><tr><th scope="col" class="text">{escape(one.columns[0])}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def warm(cell: Cell) -> str:
    if cell.value is None:
        return td(cell, False)
    share = min(abs(math.log(cell.value)) / math.log(HOTTEST), 1.0) * 75
    made = td(cell, False, "heat" if cell.value >= 1 else "cool")
    return made.replace("<td", f'<td style="--h:{share:.0f}"', 1)


def how(found: Comparison) -> str:
    how, versions = found.how, ", ".join(f"{name} {version}" for name, version in found.how["versions"].items())
    samples = "made-up inputs" if how["example_inputs"] else f"{how['samples']} samples"
    lines = [
        f"Everything was compiled first. Then boards were timed by their own clocks, variants in turns of some "
        f"{how['budget_s']:g} s each, different machines at the same time; this machine came last and worked on "
        f"nothing else of ours, each variant in {how['sittings']} fresh processes.",
        "An interval of 95% comes from the bootstrap over rounds (and over processes): what the median might as well "
        "have been.",
        f"Outputs were compared with those of the float model on this machine, on {samples}.",
        f"{how['system']}; {versions}; load before: {how['load_before']:.1f} on {how['cores']} CPUs.",
        f"Model: {found.model['name']}, SHA-256 {found.model['sha256'] or 'unknown'}.",
        *(f"{v['name']}: {'; '.join(v['applied']) or 'as it is'}" for v in found.variants),
        *tables.doubts(found),
    ]
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
