"""The figures as charts, in PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from scripts.benchmark.layers import BARS
from scripts.benchmark.tables import RIVALS, TITLES, outside

matplotlib.use("Agg")
from matplotlib import pyplot

INK, DIM, SLOWER = "#1c2430", "#66707f", "#c2571a"
OTHERS = {"onnxruntime": "#2f6fde", "openvino": "#e08a3c"}
DIRECT, WINOGRAD = "#2f6fde", "#12488f"
WIDEST = (0.15, 2.2)  # of ratios that are drawn; what lies beyond is cut off, its number is not
# Kinds of kernels by how their names begin; the first that fits.
KINDS = {
    "conv2d_winograd": ("convolution, Winograd", WINOGRAD),
    "conv2d": ("convolution", DIRECT),
    "depthwise": ("depthwise convolution", "#78b6f0"),
    "matmul": ("matrix product", "#35a16b"),
    "lstm": ("recurrent", "#7a5cc4"),
    "gru": ("recurrent", "#7a5cc4"),
    "softmax": ("softmax, norms", "#e0b43c"),
    "layer_norm": ("softmax, norms", "#e0b43c"),
    "local_response_norm": ("softmax, norms", "#e0b43c"),
    "": ("everything else", "#b9c2ce"),
}
OUTSIDE = ("outside kernels", SLOWER)


def ratios(result: dict, path: Path) -> None:
    """Our time over theirs, a panel for each precision, a row for each network, on a logarithmic axis."""
    rows = result["networks"]
    names = [row["name"] for row in rows]
    figure, panels = pyplot.subplots(
        1, len(RIVALS), sharey=True, figsize=(13, 1.8 + 0.42 * len(rows)), layout="constrained"
    )
    for panel, (key, rivals) in zip(panels, RIVALS.items()):
        height = 0.8 / len(rivals)
        for place, rival in enumerate(rivals):
            found = [row["ms"][key]["median"] / row["ms"][rival]["median"] for row in rows]
            at = [i - 0.4 + height * (place + 0.5) for i in range(len(rows))]
            low, high = WIDEST
            drawn = [min(max(ratio, low), high) for ratio in found]
            colour, label = OTHERS[rival.split()[0]], f"against {TITLES[rival]}"
            panel.barh(at, [d - 1 for d in drawn], height * 0.9, left=1, color=colour, label=label)
            for y, ratio, end in zip(at, found, drawn):
                side = "left" if end >= 1 else "right"
                panel.annotate(
                    f"{ratio:.2f}", (end, y), (3 if end >= 1 else -3, 0), textcoords="offset points", va="center",
                    ha=side, fontsize=8, color=SLOWER if ratio > 1.005 else INK,
                )  # fmt: skip
        panel.axvline(1, color=INK, linewidth=1.2)
        panel.set_xscale("log", base=2)
        panel.set_xlim(WIDEST[0] * 0.75, WIDEST[1] * 1.25)
        ticks = (0.125, 0.25, 0.5, 1, 2)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_title(key.replace("bf16", "bfloat16"), fontsize=11)
        panel.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06 - 0.25 / len(rows)))
        plain(panel)
    panels[0].set_yticks(range(len(rows)), names, fontsize=9)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(f"Our time over theirs (left of the line: faster). {where(result)}", fontsize=11, color=INK)
    save(figure, path)


def shares(result: dict, path: Path) -> None:
    """Where each network's time goes, a bar for each precision, on all threads."""
    bars = [
        (f"{row['name']} {key.replace('bf16', 'bfloat16')}", by_threads[str(result["threads"])])
        for row in result["networks"]
        for key, by_threads in sorted(row.get("profile", {}).items(), key=lambda item: list(RIVALS).index(item[0]))
    ]
    figure, panel = pyplot.subplots(figsize=(11, 1.6 + 0.3 * len(bars)), layout="constrained")
    parts = [split(profile) for _, profile in bars]
    left = [0.0] * len(bars)
    for label, colour in dict.fromkeys([*KINDS.values(), OUTSIDE]):
        widths = [part.get(label, 0.0) for part in parts]
        if any(widths):
            panel.barh(range(len(bars)), widths, 0.72, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths)]
    for y, (_, profile) in enumerate(bars):
        peak = "–" if profile["of_peak"] is None else f"{profile['of_peak']:.0%} of peak"
        panel.text(1.01, y, f"{profile['ms']:.3g} ms, {peak}", va="center", fontsize=8, color=INK)
    panel.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=9)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    panel.invert_yaxis()
    plain(panel)
    panel.grid(visible=False)
    figure.legend(*panel.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(f"Where the time goes. {where(result)}", fontsize=11, color=INK)
    save(figure, path)


def split(profile: dict) -> dict[str, float]:
    """Shares of time by kind of kernel."""
    found = {OUTSIDE[0]: outside(profile)}
    for kernel in profile["kernels"]:
        name = kernel["name"].removeprefix("fused_")
        label = next(label for start, (label, _) in KINDS.items() if name.startswith(start))
        found[label] = found.get(label, 0.0) + kernel["share"]
    return found


def layers(result: dict, path: Path) -> None:
    """Single convolutions as shares of the peak, a panel for each precision, with the bar to meet."""
    rows = result["layers"]
    figure, panels = pyplot.subplots(
        1, len(BARS), sharey=True, figsize=(12, 1.6 + 0.24 * len(rows)), layout="constrained"
    )
    for panel, (key, bar) in zip(panels, BARS.items()):
        found = [row[key] for row in rows]
        met = [DIRECT if f["of_peak"] >= bar else SLOWER for f in found]
        colours = [WINOGRAD if f["family"] == "winograd" else colour for f, colour in zip(found, met)]
        panel.barh(range(len(rows)), [f["of_peak"] for f in found], 0.72, color=colours)
        for y, f in enumerate(found):
            text = panel.text(f["of_peak"] + 0.02, y, f"{f['of_peak']:.0%}", va="center", fontsize=7.5, color=INK)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        panel.axvline(bar, color=INK, linewidth=1.2)
        panel.set_xlim(0, max(1.1, 1.15 * max(f["of_peak"] for f in found)))
        panel.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        panel.set_title(f"{key}: at least {bar:.0%} of the peak is wanted", fontsize=10)
        plain(panel)
    panels[0].set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(
        f"Single convolutions as shares of the peak; dark: Winograd's method. {where(result)}", fontsize=11, color=INK
    )
    save(figure, path)


def where(result: dict) -> str:
    return f"{result['machine']}, {result['threads']} threads, batch 1"


def plain(panel) -> None:
    """Nothing but what says something."""
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(colors=DIM, labelcolor=INK)
    panel.grid(axis="x", color="#dde2e9", linewidth=0.7)
    panel.set_axisbelow(True)


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=130, facecolor="white")
    pyplot.close(figure)
