"""The figures as Markdown. Ratios are our time over theirs: below 1 is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scripts.benchmark.layers import BARS, meets

RIVALS = {
    "float32": ("onnxruntime float32", "openvino float32"),
    "bf16": ("openvino default",),
    "int8": ("onnxruntime int8", "openvino int8"),
}
TITLES = {
    "onnxruntime float32": "ONNX Runtime",
    "openvino float32": "OpenVINO",
    "openvino default": "OpenVINO's default",
    "onnxruntime int8": "ONNX Runtime int8",
    "openvino int8": "OpenVINO int8",
}
SPREAD = "± is half of what lies between the 10th and the 90th percentile, for a ratio of those of single rounds"
LEAST_SHARE = 0.02  # of a network's time: smaller kernels share a line


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def where(result: dict) -> str:
    """On what, and of what, figures are."""
    return f"{result['machine']}, {result['threads']} threads, batch 1, commit {result.get('commit', 'unknown')}"


def table(result: dict) -> str:
    """What README has."""
    rows = result["networks"]
    lines = [
        f"Machines differ, ratios less so. This one: {where(result)}, "
        f"no tuning; medians of interleaved runs, each runtime in its own process. {SPREAD}.",
        "",
        *latency(rows),
        "",
        geometric(rows),
    ]
    if any("threads" in row for row in rows):
        lines += [
            "",
            "Two threads against one: while two programs that have nothing to do with each other got two cores; the "
            "CPUs of a virtual machine are at times two halves of one core.",
        ]
    if stock := [row for row in rows if "ms_stock" in row]:
        pairs = [(r["name"], r["ms_stock"]["stock"]["median"] / r["ms_stock"]["float32"]["median"]) for r in stock]
        ratios = ", ".join(f"{name} {ratio:.0f} times" for name, ratio in pairs)
        lines += ["", f"Against TVM's own default, in float32: {ratios} faster."]
    if all("profile" in row for row in rows):
        lines += ["", *peaks(rows, str(result["threads"]))]
    if all("snr_db" in row for row in rows):
        lines += ["", *quality(rows)]
    if "memory" in result:
        used, size = result["memory"], result["memory"]["file"]
        ratios = ", ".join(f"{k} {used[k] / size:.2f}" for k in used if k != "file" and isinstance(used[k], int))
        lines += ["", f"Peak memory of load, compress and compile over a {size / 2**20:.0f} MB model's size: {ratios}."]
    return "\n".join(lines)


def latency(rows: list[dict]) -> list[str]:
    head = ["network"]
    for key, rivals in RIVALS.items():
        head += [f"{key.replace('bf16', 'bfloat16')} ms", *(f"against {TITLES[rival]}" for rival in rivals)]
    body = []
    for row in rows:
        cells, ms = [row["name"]], row["ms"]
        for key, rivals in RIVALS.items():
            cells += [single(ms[key]), *(against(ms[key], ms[rival]) for rival in rivals)]
        gain = row["threads"]["gain"] if "threads" in row else None
        faster = ms["float32"]["median"] / ms["int8"]["median"]
        body.append([*cells, f"{faster:.2f} times faster", f"{gain:.2f} times faster" if gain else "not measured"])
    return markdown([*head, "int8 against float32", "2 threads against 1"], body)


def single(ms: dict) -> str:
    """`7.57 ±2%`"""
    spread = f" ±{(ms['p90'] - ms['p10']) / 2 / ms['median']:.0%}" if "p10" in ms else ""
    return f"{ms['median']:{'.0f' if ms['median'] >= 100 else '#.3g'}}{spread}"


def against(ours: dict, theirs: dict) -> str:
    """`0.83 ±1%`: the ratio of medians, and the spread of the rounds' ratios."""
    ratio = ours["median"] / theirs["median"]
    rounds = [a / b for a, b in zip(ours.get("rounds", []), theirs.get("rounds", []))]
    if len(rounds) < 3:
        return f"{ratio:.2f}"
    low, high = np.percentile(rounds, (10, 90))
    return f"{ratio:.2f} ±{(high - low) / 2 / ratio:.0%}"


def ratios(rows: list[dict], key: str, rivals: Sequence[str]) -> dict[str, float]:
    """{network: our time over that of the best of `rivals`}."""
    return {r["name"]: r["ms"][key]["median"] / min(r["ms"][v]["median"] for v in rivals) for r in rows}


def geometric(rows: list[dict]) -> str:
    """The geometric mean of the ratios to the better rival, and the greatest."""
    said = []
    for key, rivals in RIVALS.items():
        found = ratios(rows, key, rivals)
        worst = max(found, key=lambda name: found[name])
        mean = float(np.exp(np.mean(np.log(list(found.values())))))
        said.append(f"{key} {mean:.2f} (greatest {found[worst]:.2f}, {worst})")
    return "Geometric mean of our time against the better of the others: " + ", ".join(said) + "."


def peaks(rows: list[dict], threads: str) -> list[str]:
    """What all products of a network reach of the peak, and what is spent outside kernels."""
    head = ["network"]
    for key in RIVALS:
        name = key.replace("bf16", "bfloat16")
        head += [f"{name}: of peak, 1 thread", f"{threads} threads", "outside kernels"]
    body = []
    for row in rows:
        cells = [row["name"]]
        for key in RIVALS:
            one, all_of_them = row["profile"][key]["1"], row["profile"][key][threads]
            cells += [percent(one["of_peak"]), percent(all_of_them["of_peak"]), f"{outside(all_of_them):.1%}"]
        body.append(cells)
    found = median_peaks(rows, threads)
    said = ", ".join(f"{kind} {gmacs:.0f} GMAC/s" for kind, gmacs in found.items())
    return [
        *markdown(head, body),
        "",
        f"Of peak: the time in which all products would be done at the processor's peak, over the time that their "
        f"kernels take; Winograd's convolutions count the products that they stand for. The peak is measured between "
        f"the runs; on {threads} threads its medians are {said}.",
    ]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def outside(profile: dict) -> float:
    """The share of a run that is spent outside kernels."""
    return profile["overhead_ms"] / (profile["overhead_ms"] + sum(k["ms"] for k in profile["kernels"]))


def median_peaks(rows: list[dict], threads: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for profile in row["profile"].values():
            for kind, peak in profile[threads]["peaks"].items():
                found.setdefault(kind, []).append(peak["gmacs"])
    return {kind: float(np.median(values)) for kind, values in sorted(found.items())}


def quality(rows: list[dict]) -> list[str]:
    head = [
        "network", "float32 ONNX", "int8 package", "4-bit package", "MACs in integers", "int8 SNR",
        "ONNX Runtime's int8 SNR", "same QDQ file, ours against ONNX Runtime", "4-bit SNR", "compile int8",
    ]  # fmt: skip
    body = []
    for row in rows:
        size, snr = row["bytes"], row["snr_db"]
        body.append(
            [
                row["name"],
                f"{size['onnx'] / 1e6:.1f} MB",
                f"{size['int8'] / size['onnx']:.3f}",
                f"{size['int4-weights'] / size['onnx']:.3f}",
                f"{row['integer_share']:.1%}",
                *(decibels(snr[key]) for key in ("int8", "onnxruntime_int8", "same_qdq_file", "int4-weights")),
                f"{row['compile_s']['int8']:.0f} s",
            ]
        )
    return markdown(head, body)


def decibels(value: float) -> str:
    return "identical" if value > 200 else f"{value:.1f} dB"


def kernels(result: dict) -> str:
    """Every profile, kernel by kernel; not for README."""
    lines = []
    for row in result["networks"]:
        for key, by_threads in row.get("profile", {}).items():
            for threads, profile in by_threads.items():
                title = f"{row['name']} {key}, {threads} thread{'s' if threads != '1' else ''}"
                lines += [f"## {title}", "", *profile_table(profile), ""]
    return "\n".join(lines)


def profile_table(profile: dict) -> list[str]:
    body = [
        [
            f"`{k['name'].removeprefix('fused_')}`", "x".join(map(str, k["result"])), str(k["calls"]),
            f"{k['ms']:.4f}", f"{k['share']:.1%}", f"{k['macs'] * k['calls'] / 1e6:.1f}" if "macs" in k else "",
            f"{k['gmacs']:.0f}" if "macs" in k else "", f"{k['of_peak']:.0%}" if "macs" in k else "", f"{k['gbs']:.0f}",
        ]
        for k in profile["kernels"]
        if k["share"] >= LEAST_SHARE
    ]  # fmt: skip
    rest = [k for k in profile["kernels"] if k["share"] < LEAST_SHARE]
    if rest:
        calls, ms, share = (sum(k[key] for k in rest) for key in ("calls", "ms", "share"))
        body.append([f"{len(rest)} more", "", str(calls), f"{ms:.4f}", f"{share:.1%}", "", "", "", ""])
    body.append(["outside kernels", "", "", f"{profile['overhead_ms']:.4f}", f"{outside(profile):.1%}", *[""] * 4])
    said = ", ".join(f"{kind} {p['gmacs']:.0f} GMAC/s ({p['instruction']})" for kind, p in profile["peaks"].items())
    head = ["kernel", "result", "calls", "ms", "share", "10^6 MACs", "GMAC/s", "of peak", "GB/s"]
    return [
        *markdown(head, body),
        "",
        f"A run takes {profile['ms']:.3f} ms. Peak: {said}; copying memory {profile['copy_gbs']:.0f} GB/s.",
    ]


def layers(result: dict) -> str:
    """Single convolutions, and how many of them meet the bar."""
    rows, cell = result["layers"], dict[str, Callable[[dict], str]]()
    cell["ms"] = lambda found: f"{found['ms']:.4f}"
    cell["GMAC/s"] = lambda found: f"{found['gmacs']:.0f}"
    cell["of peak"] = lambda found: f"{found['of_peak']:.0%}" + ("*" if found["family"] == "winograd" else "")
    head, body = ["convolution"], [[row["layer"]] for row in rows]
    for key in BARS:
        head += [f"{key} {name}" for name in cell]
        for line, row in zip(body, rows):
            line += [text(row[key]) for text in cell.values()]
    lines = [
        f"{where(result)}: kernels alone, with bias and activation.",
        "",
        *markdown([*head, "networks"], [[*line, ", ".join(row["networks"])] for line, row in zip(body, rows)]),
        "",
    ]
    for key, bar in BARS.items():
        met = sum(meets(row, key) for row in rows)
        peak = np.median([row[key]["peak_gmacs"] for row in rows])
        share = np.median([row[key]["of_peak"] for row in rows])
        lines.append(
            f"- {key}: {met} of {len(rows)} reach {bar:.0%} of the peak ({peak:.0f} GMAC/s); median {share:.0%}."
        )
    lines += ["", "\\* by Winograd's method, which multiplies less: the products that it stands for, over the peak."]
    return "\n".join(lines)
