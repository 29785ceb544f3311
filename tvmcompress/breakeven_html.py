"""A BreakEven as one HTML page: a chart for each layer and dtype, light and dark. Nothing is fetched."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tvmcompress.comparison_charts import SHAPES, WIDTH, Axis, legend, marker, svg, text
from tvmcompress.comparison_html import POLICY, asset

if TYPE_CHECKING:
    from tvmcompress.breakeven import BreakEven, Curve

LEFT, RIGHT, TOP, BOTTOM = 70.0, WIDTH - 30.0, 14.0, 300.0


def render(found: BreakEven) -> str:
    how = "timed on this machine, in turns with the dense kernel" if found.measured else "the compiler's estimate"
    title = f"Where sparse kernels start to win on {found.target}"
    layers = dict.fromkeys(curve.layer for curve in found.curves)
    formats: dict[str, list[str]] = {}
    for curve in found.curves:
        if curve.format not in formats.setdefault(curve.dtype, []):
            formats[curve.dtype].append(curve.format)
    charts = (
        (f"{layer}, {dtype}", [c for c in found.curves if (c.layer, c.dtype) == (layer, dtype)], names)
        for layer in layers
        for dtype, names in formats.items()
    )
    body = "".join(
        f"<section><h2>{escape(what)}</h2>{chart(curves, names)}</section>" for what, curves, names in charts
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{asset("css")}</style></head><body>'
        f"<header><div><h1>{escape(title)}</h1><p>Time over that of the dense kernel, {how}, by density: the share of "
        f"weights, or of blocks, that is not zero.</p></div></header><main>{body}</main></body></html>\n"
    )


def chart(curves: list[Curve], formats: list[str]) -> str:
    """Ratios, on a logarithmic axis, over densities; the line at 1 is the dense kernel. A format has one colour in all
    charts of a dtype."""
    y = Axis([1.0, *(ratio for curve in curves for _, ratio in curve.ratios)], BOTTOM, TOP)
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>']
    for value, at in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
        parts.append(text(LEFT - 8, at + 4, f"{value:g}", "dim", "end"))
    for tenth in range(11):
        parts.append(text(x_of(tenth / 10), BOTTOM + 18, f"{tenth * 10}%", "dim", "middle"))
    parts.append(f'<path class="whisker" d="M{LEFT} {y.at(1.0):.1f}H{RIGHT}"/>')
    parts.append(text(RIGHT, y.at(1.0) - 5, "dense", "dim", "end"))
    names: dict[int, str] = {}
    for curve in curves:
        i = formats.index(curve.format)
        names[i] = f"{curve.format}: wins below {curve.density:.0%}"
        points = [(x_of(density), y.at(ratio)) for density, ratio in curve.ratios]
        line = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f'<path class="axis" style="stroke:var(--c{i % 8});stroke-width:1.6" d="M{line}"/>')
        for (px, py), (density, ratio) in zip(points, curve.ratios):
            said = escape(f"{curve.format}, density {density:.0%}: {ratio:.2f} of the dense kernel's time")
            parts.append(f'<g class="v{i % 8}"><title>{said}</title>{marker(SHAPES[i % len(SHAPES)], px, py, 5)}</g>')
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 38, "density", "dim", "middle"))
    told = [names.get(i, "") for i in range(len(formats))]
    return legend(told, "v", names) + svg("Time over the dense kernel's, by density", BOTTOM + 46, parts)


def x_of(density: float) -> float:
    return LEFT + density * (RIGHT - LEFT)
