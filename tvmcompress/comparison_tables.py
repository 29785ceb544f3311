"""A Comparison's figures as tables of text, the same for terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvmcompress.comparison import Comparison
from tvmcompress.report import bytes_text, ms_text, number_text, percent_text, snr_text

EMULATED = "emulated"
WIDE = 0.2  # half of an interval, of the median
NONE = "–"
UNTUNED = "untuned"
GROUPS = ("dot product", "multiply-add", "vector", "memory", "branch", "scalar")


@dataclass(frozen=True)
class Cell:
    """What is shown, and what it is sorted by: a number, or the text itself. `note`: what a reader may ask."""

    text: str
    value: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """`columns`: a name each; those in `words` hold words, the others numbers."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    words: frozenset[str] = frozenset({"place", "variant"})


def time_text(ms: float | None) -> str:
    """`23.4 ms`, `51.2 µs`."""
    return ms_text(ms) if ms is None or ms >= 0.0995 else f"{ms * 1e3:.3g} µs"


def number(value: float | None, text: str, note: str = "") -> Cell:
    return Cell(NONE if value is None else text, value, note)


def end_to_end(found: Comparison) -> Table:
    """Every variant at every place. Columns that nobody has a figure for are left out."""
    faster = {(r["place"], r["variant"]): r for r in found.ratios["variants"]}
    rows = [{**names(row), **figures(row, faster.get((row["place"], row["variant"])))} for row in found.results]
    columns = tuple(c for c in rows[0] if any(row[c].text != NONE for row in rows)) if rows else ()
    first = found.variants[0]["name"]
    notes = [f"Latency: the median of single inferences, ± half of its 95% interval; faster: than {first} there."]
    if any(place["emulated"] for place in found.places):
        notes.append("Emulated boards show that results are right; their times would mean nothing, so there are none.")
    if found.how["example_inputs"]:
        notes.append("Outputs were compared on made-up inputs: give --samples for figures that mean something.")
    return Table("End to end", " ".join(notes), columns, [[row[c] for c in columns] for row in rows])


def names(row: Mapping[str, Any]) -> dict[str, Cell]:
    return {"place": Cell(row["place"]), "variant": Cell(row["variant"])}


def figures(row: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> dict[str, Cell]:
    if row["error"]:
        cells = dict.fromkeys(figures({**row, "error": ""}, None), Cell(NONE))
        return {**cells, "latency": Cell("failed", note=row["error"])}
    latency, memory, plan = row["latency"] or {}, row["memory"] or {}, row["plan"]
    overall, accuracy = (row["quality"] or {}).get("overall"), (row["quality"] or {}).get("accuracy")
    size, holds = row["size"]["package"], plan["weights"] + plan["arena"] if plan else None
    joules = sum(row["energy"].values()) if row["energy"] else None
    agreement = overall["top1_agreement"] if overall else None
    snr = None if not overall else float("inf") if overall["exact"] else overall["snr_db"]
    return {
        "latency": latency_cell(row),
        "faster": faster_cell(ratio),
        "package": Cell(bytes_text(size), size, "the file, on disk"),
        "SNR": number(snr, snr_text(overall), "of outputs against the float model"),
        "same class": number(agreement, percent_text(agreement), "top-1 agreement with the float model"),
        "accuracy": number(accuracy and accuracy["package"], percent_text(accuracy and accuracy["package"])),
        "memory": number(holds, bytes_text(holds), "weights as kernels read them, and what is between layers"),
        "loading": number(latency.get("load"), time_text(latency.get("load")), loading_note(latency)),
        "p90": number(latency.get("p90"), time_text(latency.get("p90"))),
        "spread": number(latency.get("spread"), f"{latency.get('spread', 0):+.0%}", "p90 against the median"),
        "largest error": number(overall and overall["max_error"], number_text(overall and overall["max_error"], "", 3)),
        "process": number(memory.get("peak"), bytes_text(memory.get("peak")), "largest memory of the process"),
        "energy": number(joules, number_text(joules, " J", 3), "of the whole machine, for one inference"),
    }


def loading_note(latency: Mapping[str, Any]) -> str:
    parts = {"unpack": "to unpack weights", "prepare": "to bring them into kernels' form"}
    known = [f"{time_text(latency[key])} {what}" for key, what in parts.items() if latency.get(key) is not None]
    return ", ".join(["of a fresh process", *known])


def latency_cell(row: Mapping[str, Any]) -> Cell:
    found = row["latency"]
    if row["emulated"]:
        return Cell(EMULATED, note="an emulated board: results are checked, times would mean nothing")
    if not found:
        return Cell(NONE)
    note = f"95% interval {time_text(found['low'])} to {time_text(found['high'])}, {found['runs']} runs"
    return Cell(latency_text(found), found["median"], note)


def latency_text(found: Mapping[str, Any]) -> str:
    """`7.4 ms ±1.2%`, by half of the interval; a wide one as it is."""
    half = (found["high"] - found["low"]) / 2 / found["median"]
    if half > WIDE:
        return f"{time_text(found['median'])} ({time_text(found['low'])} to {time_text(found['high'])})"
    return f"{time_text(found['median'])} ±{half:.1%}"


def faster_cell(ratio: Mapping[str, Any] | None) -> Cell:
    if not ratio:
        return Cell(NONE)
    note = f"95% interval {1 / ratio['high']:.2f} to {1 / ratio['low']:.2f}, against {ratio['against']}"
    return Cell(f"{1 / ratio['ratio']:.2f}×", 1 / ratio["ratio"], note)


def kernels(found: Comparison) -> Table:
    """Every kernel of every variant at every place, the dearest first."""
    differing = {(row["variant"], row["kernel"]): [] for row in found.decisions}  # type: ignore[var-annotated]
    for row in found.decisions:
        differing[row["variant"], row["kernel"]].append(row["decision"])
    rows = []
    for table in found.kernels:
        for kernel in table["rows"]:
            differs = differing.get((table["variant"], kernel["key"]), []) if kernel["key"] else []
            rows.append([*names(table).values(), *kernel_cells(kernel, table, differs)])
    columns = ("place", "variant", "kernel", "result", "calls", "time", "share", "GFLOP/s", "of peak", "arithmetic",
               "inner loops", "decided otherwise")  # fmt: skip
    note = (
        "GFLOP/s counts a multiply-accumulate as two (integers too); of peak: of what that board's own instructions "
        "reached in a loop without memory, measured in between; Winograd's convolutions count the products that they "
        "stand for, and may exceed it. Inner loops: instructions of innermost loops, by what they do."
    )
    if any(table["apart"] for table in found.kernels):
        note += " On boards kernels are timed one by one, by the board's clock, their operands in the cache."
    words = frozenset({"place", "variant", "kernel", "result", "arithmetic", "inner loops", "decided otherwise"})
    return Table("Kernels", note, columns, rows, words)


def kernel_cells(kernel: Mapping[str, Any], table: Mapping[str, Any], differs: list[str]) -> list[Cell]:
    time = Cell(EMULATED) if table["emulated"] else number(kernel["ms"], time_text(kernel["ms"]))
    inner = kernel["mix"]["inner"]
    mix = ", ".join(f"{inner[group]} {group}" for group in GROUPS if inner[group])
    return [
        Cell(kernel["name"].removeprefix("fused_"), note=kernel["key"]),
        Cell("×".join(map(str, kernel["result"]))),
        Cell(str(kernel["calls"]), kernel["calls"]),
        time,
        number(kernel["share"], percent_short(kernel["share"])),
        number(kernel["gflops"], number_text(kernel["gflops"], "", 3)),
        number(kernel["of_peak"], percent_short(kernel["of_peak"])),
        Cell(kernel["arithmetic"] or NONE),
        Cell(mix or NONE),
        Cell(", ".join(differs) or NONE, note=told(kernel["decisions"])),
    ]


def percent_short(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def told(value: Any) -> str:
    """A decision: `true`, `8`, `pixels 6, vectors 2`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {told(inner)}" for name, inner in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def decisions(found: Comparison) -> Table:
    """Decisions that differ, a column for each place."""
    places = [place["name"] for place in found.places]
    rows = [
        [Cell(row["variant"]), Cell(row["kernel"]), Cell(row["decision"])]
        + [decision_cell(row["values"], place) for place in places]
        for row in found.decisions
    ]
    note = "The same kernel on several places: what tuning, or the analytic model, decided otherwise."
    return Table("Decisions that differ", note, ("variant", "kernel", "decision", *places), rows,
                 frozenset({"variant", "kernel", "decision", *places}))  # fmt: skip


def decision_cell(values: Mapping[str, Any], place: str) -> Cell:
    if place not in values:
        return Cell(NONE)
    value = values[place]
    return Cell(told(value), float(value) if isinstance(value, int | float) else None)


def matrices(found: Comparison) -> list[Table]:
    """For each variant: whose decisions, by row; on which board, by column."""
    tables = []
    for variant in (v["name"] for v in found.variants):
        cells = {(row["of"], row["on"]): row for row in found.matrix if row["variant"] == variant}
        if not cells:
            continue
        columns = [p["name"] for p in found.places if any(on == p["name"] for _, on in cells)]
        of = [*columns, *([UNTUNED] if any(whose == UNTUNED for whose, _ in cells) else [])]
        rows = [[Cell(name), *(matrix_cell(cells.get((name, on)), name == on) for on in columns)] for name in of]
        note = (
            "How many times as long the board of a column takes with the decisions of a row; 1.00 is with its own. "
            "In brackets, the kernels that took the other's decisions, of those that both have."
        )
        tables.append(Table(f"A's decisions on B: {variant}", note, ("decisions of", *columns), rows,
                            frozenset({"decisions of"})))  # fmt: skip
    return tables


def matrix_cell(row: Mapping[str, Any] | None, own: bool) -> Cell:
    if row is None:
        return Cell("own", 1.0, "its own decisions") if own else Cell(NONE)
    taken = f" ({row['carried']} of {row['shared']})" if row["of"] != UNTUNED else ""
    note = f"{row['shared']} of {row['kernels']} kernels in common"
    if row["error"]:
        return Cell("failed", note=row["error"])
    if row["same_code"]:
        return Cell(f"same code{taken}", row["ratio"], note)
    quality = row["quality"]
    right = "" if not quality else "exact" if quality["exact"] else f"{number_text(quality['snr_db'], ' dB', 3)}"
    note += f"; outputs against its own: {right}" if right else ""
    if row["emulated"]:
        return Cell(f"{EMULATED}, {right}{taken}", note=note)
    if row["ratio"] is None:
        return Cell(NONE, note=note)
    interval = f"; 95% interval {row['low']:.2f} to {row['high']:.2f}"
    return Cell(f"{row['ratio']:.2f}{taken}", row["ratio"], note + interval)


def instructions(found: Comparison) -> Table:
    """What code is made of, of all kernels of a variant at a place."""
    rows = []
    for table in found.kernels:
        cells = [number(table["mix"]["inner"][g], f"{table['mix']['inner'][g]:,}") for g in GROUPS]
        total = sum(table["mix"]["all"].values())
        rows.append([*names(table).values(), *cells, Cell(f"{total:,}", total)])
    note = "Instructions of innermost loops, as they stand in the code, by what they do; and all of the kernels' code."
    return Table("Instructions", note, ("place", "variant", *GROUPS, "all code"), rows)


def gated(found: Comparison) -> Table | None:
    """What the gate looked at."""
    if found.gate is None:
        return None
    rows = []
    for row in found.gate["rows"]:
        verdict = (row["skipped"] and f"not compared: {row['skipped']}") or ("slower" if row["slower"] else "good")
        interval = NONE if row["skipped"] else f"{row['low']:.3f} to {row['high']:.3f}"
        rows.append([*names(row).values(), Cell(row["against"]), number(row["ratio"], f"{row['ratio'] or 0:.3f}"),
                     Cell(interval, row["low"]), Cell(verdict)])  # fmt: skip
    note = (
        f"Against {found.gate['against']}: fails where the whole 95% interval of the ratio of medians lies above "
        f"{1 + found.gate['limit']:.3g}. {'Passed' if found.gate['passed'] else 'Failed'}: {found.gate['told']}."
    )
    columns = ("place", "variant", "against", "ratio", "95% interval", "verdict")
    return Table("Gate", note, columns, rows, frozenset({"place", "variant", "against", "verdict"}))


def boards(found: Comparison) -> Table:
    """Where it ran."""
    rows = []
    for place in found.places:
        machine = place["machine"] or {}
        state = EMULATED if place["emulated"] else "measured" if place["reached"] else f"not reached: {place['error']}"
        peaks = {
            kind: p for table in found.kernels if table["place"] == place["name"] for kind, p in table["peaks"].items()
        }
        told_peaks = ", ".join(f"{kind} {2 * p['gmacs']:.0f} ({p['instruction']})" for kind, p in sorted(peaks.items()))
        cores = number(machine.get("cores"), str(machine.get("cores")))
        named = [Cell(place["name"]), Cell(place["target"]), Cell(machine.get("model") or NONE), cores]
        rows.append([*named, Cell(told_peaks or NONE), Cell(state)])
    columns = ("place", "target", "processor", "cores", "peak, GFLOP/s", "state")
    return Table("Places", "", columns, rows, frozenset(columns) - {"cores"})


def every(found: Comparison) -> list[Table]:
    """In the order of interest."""
    gate = gated(found)
    several = [decisions(found)] if found.decisions else []
    return [end_to_end(found), *([gate] if gate else []), boards(found), *matrices(found), kernels(found), *several,
            instructions(found)]  # fmt: skip


def doubts(found: Comparison) -> list[str]:
    """What a reader should know before believing the figures."""
    told = []
    load, cores = found.how["load_before"], found.how["cores"]
    if load > 0.5 * cores:
        told.append(f"This machine was busy (load {load:.1f} on {cores} CPUs): do not trust its times.")
    for place in found.places:
        if place["energy"] and not place["emulated"]:
            told.append(f"Energy on {place['name']} was not measured: {place['energy']}.")
    return told
