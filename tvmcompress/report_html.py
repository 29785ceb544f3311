"""A Report as one HTML page with charts in SVG. No scripts, nothing fetched."""

from __future__ import annotations

from html import escape
from typing import Any

from tvmcompress import compressed_table
from tvmcompress.report import Report, bytes_text, doubts, figures, ms_text, number_text, percent_text, snr_text

STYLE = """
:root{--ink:#1c2430;--dim:#66707f;--line:#dde2e9;--ours:#2f6fde;--theirs:#9aa5b5;--warn:#c2571a;--back:#fff;--card:#f6f8fb}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9f0;--dim:#98a3b3;--line:#313a47;--ours:#6ea0ff;--theirs:#75808f;
--warn:#f0925a;--back:#14181e;--card:#1c222b}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:1000px;
margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p{margin:.3rem 0;color:var(--dim)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:.8rem;margin:1.4rem 0}
.card{background:var(--card);border-radius:10px;padding:.8rem 1rem}
.card b{display:block;font-size:1.5rem;line-height:1.3}.card span{color:var(--dim);font-size:.85rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere;min-width:13rem}
th{font-weight:600;color:var(--dim);font-size:.85rem}
td.text,th.text{text-align:left;color:var(--dim)}
.layers td,.layers th{font-size:.85rem;white-space:nowrap}
.wide{overflow-x:auto}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .dim{fill:var(--dim)}svg .ours{fill:var(--ours)}svg .theirs{fill:var(--theirs)}
svg .low{fill:var(--warn)}svg .axis{stroke:var(--line)}
.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .35em 0 1em;vertical-align:-.05em}
"""
WIDTH, LABEL, ROW = 960, 250, 26
QUIET_DB = 20.0  # below this a layer's bar is drawn in the warning colour


def render(report: Report) -> str:
    name, how = report.package["name"], report.how
    versus = f", compared with {escape(report.reference['name'])}" if report.reference else ""
    machine = f"{how['machine']['model']}, {how['threads']} threads"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(name)} – report</title><style>{STYLE}</style>"
        f"<h1>{escape(name)}</h1><p>for {escape(report.package['target'])}{versus}</p>"
        f"{_cards(report)}"
        f"<h2>Size</h2>{_size(report)}"
        f"<h2>Latency</h2>{_latency(report)}"
        f"{_layers(report)}"
        f"{_compressed(report)}"
        f"<h2>All figures</h2>{_figures(report)}"
        f"{_outputs(report)}"
        f"<h2>How it was measured</h2>"
        f"<p>{escape(how['when'])}, {escape(machine)}, {escape(how['system'])}. Timed {escape(how['processes'])}; "
        f"load before: {how['load_before']:.1f}. Cold start is loading and the first run in a fresh process.</p>"
        f"{''.join(f'<p>{escape(doubt)}</p>' for doubt in doubts(report))}"
        f"<p>Passes applied: {escape('; '.join(report.package['applied']) or 'none')}</p></html>\n"
    )


def _cards(report: Report) -> str:
    overall, accuracy = report.quality["overall"], report.quality["accuracy"]
    ratio, speedup = report.size["ratio"], report.latency["speedup"]
    cards = [(bytes_text(report.size["package"]), f"package, {ratio:.2f} of the model's file" if ratio else "package")]
    cards.append((ms_text(report.latency["package"]["median"]), "median latency"))
    if speedup:
        cards.append((f"{speedup:.2f}×", "as fast as the reference"))
    if overall:
        cards.append((snr_text(overall), "signal to noise"))
        if overall["top1_agreement"] is not None:
            cards.append((percent_text(overall["top1_agreement"]), "top-1 agreement"))
    if accuracy:
        theirs = f"accuracy (reference {accuracy['reference']:.2%})" if "reference" in accuracy else "accuracy"
        cards.append((percent_text(accuracy["package"]), theirs))
    inner = "".join(f"<div class=card><b>{escape(b)}</b><span>{escape(t)}</span></div>" for b, t in cards)
    return f"<div class=cards>{inner}</div>"


def bars(rows: list[tuple[str, float, str, str]]) -> str:
    """Horizontal bars: (label, value, text, class), scaled to the largest value."""
    top = max((value for _, value, _, _ in rows), default=0) or 1
    room, height = WIDTH - LABEL - 110, ROW * len(rows)
    parts = []
    for index, (label, value, text, kind) in enumerate(rows):
        y, length = index * ROW, max(value, 0) / top * room
        parts.append(
            f"<text x=0 y={y + 17}>{escape(shorten(label))}<title>{escape(label)}</title></text>"
            f"<rect class={kind} x={LABEL} y={y + 4} width={max(length, 1):.1f} height={ROW - 9} rx=2 />"
            f"<text x={LABEL + max(length, 1) + 8:.1f} y={y + 17}>{escape(text)}</text>"
        )
    return f"<svg viewBox='0 0 {WIDTH} {height}' role=img>{''.join(parts)}</svg>"


def shorten(label: str, most: int = 32) -> str:
    """A long name without its middle: both ends tell layers apart."""
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-most // 2 :]}"


def _size(report: Report) -> str:
    size = report.size
    rows = [("model it came from", size["source"], bytes_text(size["source"]), "theirs")]
    if size.get("reference") and size["reference"] != size["source"]:
        rows.append(("reference", size["reference"], bytes_text(size["reference"]), "theirs"))
    rows.append(("package", size["package"], bytes_text(size["package"]), "ours"))
    rows += [(f"· {part}", size[part], bytes_text(size[part]), "ours") for part in ("weights", "library", "golden")]
    return bars(rows)


def _latency(report: Report) -> str:
    ours, theirs = report.latency["package"], report.latency["reference"]
    rows = []
    for key in ("median", "p90", "p99"):
        rows.append((f"{key}", ours[key], ms_text(ours[key]), "ours"))
        if theirs:
            rows.append((f"{key}, reference", theirs[key], ms_text(theirs[key]), "theirs"))
    key = "<p class=key><i style='background:var(--ours)'></i>package"
    key += "<i style='background:var(--theirs)'></i>reference</p>" if theirs else "</p>"
    return key + bars(rows) + _histogram(ours["histogram"], theirs["histogram"] if theirs else None)


def _histogram(ours: dict, theirs: dict | None) -> str:
    """How the single runs are spread, each side scaled to its own highest bar; the slowest hundredth is left out."""
    sides = [("ours", ours)] + ([("theirs", theirs)] if theirs else [])
    low, high = min(s["from"] for _, s in sides), max(s["to"] for _, s in sides)
    low = 0 if low < 0.3 * high else low
    span, height, base = (high - low) or 1.0, 130, 105
    x = lambda ms: 10 + (ms - low) / span * (WIDTH - 20)  # noqa: E731
    parts = []
    for kind, side in sides:
        step, top = (side["to"] - side["from"]) / len(side["counts"]), max(side["counts"]) or 1
        for index, count in enumerate(side["counts"]):
            left, right = x(side["from"] + index * step), x(side["from"] + (index + 1) * step)
            tall = count / top * (base - 10)
            parts.append(
                f"<rect class={kind} opacity=.75 x={left:.1f} y={base - tall:.1f} "
                f"width={max(right - left - 0.5, 0.8):.1f} height={tall:.1f} />"
            )
    ticks = "".join(
        f"<text class=dim text-anchor={anchor} x={x(value):.0f} y={base + 18}>{ms_text(value) if value else '0'}</text>"
        for anchor, value in (("start", low), ("middle", (low + high) / 2), ("end", high))
    )
    axis = f"<line class=axis x1=10 x2={WIDTH - 10} y1={base} y2={base} />"
    return (
        f"<p>How single runs are spread (each scaled to its own highest bar, slowest 1% left out)</p>"
        f"<svg viewBox='0 0 {WIDTH} {height}' role=img>{''.join(parts)}{axis}{ticks}</svg>"
    )


def _layers(report: Report) -> str:
    if not report.layers:
        return ""
    measured = [row for row in report.layers if row.get("snr_db") is not None]
    chart = bars(
        [
            (row["name"], row["snr_db"], f"{row['snr_db']:.1f} dB", "low" if row["snr_db"] < QUIET_DB else "ours")
            for row in measured
        ]
    )
    intro = "<p>Signal-to-noise ratio of each layer against float, in order of execution</p>" if measured else ""
    columns = _columns(report.layers)
    # Words stand to the left, numbers to the right.
    side = {c: " class=text" if any(isinstance(r.get(c), str) for r in report.layers) else "" for c in columns}
    head = "".join(f"<th{side[c]}>{escape(c.replace('_', ' '))}</th>" for c in columns)
    rows = ["".join(f"<td{side[c]}>{_cell(c, row.get(c))}</td>" for c in columns) for row in report.layers]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<div class=wide><table class=layers><tr>{head}</tr>{body}</table></div>"
    return f"<h2>Layers</h2>{intro}{chart if measured else ''}{table}"


def _compressed(report: Report) -> str:
    """Which kernels layers with zeros or shared values have got, and why some have none."""
    return "".join(map(_section, compressed_table.sections(report.layers)))


def _section(section: compressed_table.Section) -> str:
    side = ["" if column in compressed_table.NUMBERS else " class=text" for column in compressed_table.COLUMNS]
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(side, compressed_table.COLUMNS))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{escape(cell)}</td>' for kind, cell in zip(side, cells))}</tr>"
        for cells in section.lines
    )
    intro = "".join(f"<p>{escape(line)}</p>" for line in section.notes)
    table = f"<div class=wide><table class=layers><tr>{head}</tr>{body}</table></div>"
    return f"<h2>{escape(section.title)}: {escape(section.counted)}</h2>{intro}{table}"


def _columns(rows: list[dict]) -> list[str]:
    """Every key with a plain value that some layer has, the known ones first."""
    known = ["name", "kind", "integer", "macs", "bytes", "snr_db"]
    seen = dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, dict | list))
    return [k for k in known if k in seen] + [k for k in seen if k not in known]


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column == "bytes":
        return bytes_text(value)
    if isinstance(value, int):
        return f"{value:,}"
    return number_text(value) if isinstance(value, float) else escape(str(value))


def _figures(report: Report) -> str:
    reference = report.reference["name"] if report.reference else ""
    head = f"<tr><th><th>package{f'<th>{escape(reference)}' if reference else ''}</tr>"
    rows = []
    for section, lines in figures(report):
        rows.append(f"<tr><th colspan={3 if reference else 2}>{section}</th></tr>")
        for what, ours, theirs in lines:
            last = f"<td>{escape(theirs)}</td>" if reference else ""
            rows.append(f"<tr><td>{escape(what)}</td><td>{escape(ours)}</td>{last}</tr>")
    return f"<table>{head}{''.join(rows)}</table>"


def _outputs(report: Report) -> str:
    rows = report.quality["outputs"]
    if len(rows) < 2:
        return ""
    body = "".join(
        f"<tr><td>{escape(r['name'])}</td><td>{snr_text(r)}</td><td>{number_text(r['max_error'])}</td>"
        f"<td>{number_text(r['mean_error'])}</td><td>{number_text(r['cosine'], '', 6)}</td></tr>"
        for r in rows
    )
    head = "<tr><th>output<th>signal to noise<th>largest error<th>mean error<th>cosine</tr>"
    return f"<h2>Outputs</h2><table>{head}{body}</table>"
