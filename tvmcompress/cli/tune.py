"""tvmcompress tune"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tvmcompress import process
from tvmcompress.cli import models, options, screen

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_budget(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """`90`, `90s`, `30m`, `1h30m` to seconds."""
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise click.BadParameter(f"wanted a time like 90s, 30m or 1h30m, got '{text}'")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def parse_share(_context: click.Context, _option: click.Parameter, text: str) -> float:
    """`5%` or `0.05`."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise click.BadParameter(f"wanted a share like 5%, got '{text}'") from None


@click.command(
    epilog="Examples:\n\n\b\n"
    "  tvmcompress tune model.onnx --target native --budget 30m\n"
    "  tvmcompress tune model.onnx --target native --device localhost:9090 --budget 30m\n"
    "  tvmcompress tune model.onnx --recipe int8 --samples calib.npz --trials 500\n"
    "  tvmcompress compile model.onnx --target native -o tuned.tar",
)
@options.model_options
@options.recipe_options(required=False)
@click.option("--target", default="native", show_default=True, help="What it is for: by name, file or triple.")
@click.option(
    "--device", "devices", multiple=True, metavar="ADDRESS",
    help="A board, HOST:PORT, or all that a tracker knows by a name, NAME@HOST:PORT; may be repeated.",
)  # fmt: skip
@options.route_options
@click.option(
    "--trials", type=int, default=1000, show_default=True, help="Candidates in all, with those of earlier runs."
)
@click.option(
    "--budget", callback=parse_budget, metavar="TIME", help="Time in all, such as 30m; with that of earlier runs."
)
@click.option(
    "--until", default="0%", callback=parse_share, metavar="SHARE",
    help="Stop when no kernel promises to save this share of the time, such as 5%.",
)  # fmt: skip
@click.option("--tasks", default="*", metavar="PATTERN", help="Only kernels named like this; * and ? are wildcards.")
@click.option("--from", "start_from", metavar="TARGET", help="Try first what the log has as best for another target.")
@options.log_option
@click.option("--events", type=options.PATH, metavar="FILE", help="Also write what happens as lines of JSON.")
@options.json_option
def command(
    model: Path,
    shapes: dict,
    values: dict,
    recipe: str | None,
    samples: Path | None,
    limit: int | None,
    cache: Path | None,
    target: str,
    devices: tuple[str, ...],
    ssh: str,
    tls: str,
    trials: int,
    budget: float | None,
    until: float,
    tasks: str,
    start_from: str | None,
    log: str | None,
    events: Path | None,
    json_path: str | None,
) -> None:
    """Measure what a model's kernels leave open, so that `compile` can make them faster.

    On this machine, or on boards that run `tvmcompress device serve`.

    Every measurement is kept in the log. Stop it with Ctrl-C whenever you like; the same command goes on.
    """
    process.import_without_torch("tvm")
    from tvmcompress.target import Target
    from tvmcompress.tuning import tune
    from tvmcompress.tunnels import Route

    if samples is not None and recipe is None:
        raise click.UsageError("--samples are for calibration; give a --recipe that uses them")
    for output in (events, Path(json_path) if json_path not in (None, "-") else None):
        if output is not None:
            options.check_output(output, model, samples, options.log_file(log))
    resolved = Target.load(target)
    loaded = models.open_model(model, shapes, values)
    if recipe is not None:
        with screen.progress() as progress:
            loaded = models.compress_model(loaded, recipe, samples, limit, cache, progress)
    summary = Summary()
    with shown(budget) as show, written(events) as write:

        def tell(name: str, facts: Mapping[str, Any]) -> None:
            summary(name, facts)
            show(name, facts)
            write(name, facts)

        tune(
            loaded, resolved, devices=devices, route=Route(ssh, tls), log=log, trials=trials, budget_s=budget,
            until=until, only=tasks, start_from=start_from, events=tell, seed=None,
        )  # fmt: skip
    screen.result(summary.json(), summary.table, json_path)


class Summary:
    """What is said at the end."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.by_workload: dict[str, dict] = {}

    @property
    def kernels(self) -> list[dict]:
        return list(self.by_workload.values())

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        if name == "confirmed":
            self.by_workload[facts["workload"]] = dict(facts)  # the last time counts: what won may be withdrawn
        elif name in ("start", "done"):
            self.facts |= facts

    def json(self) -> dict:
        return {**self.facts, **self.totals(), "kernels": self.kernels}

    def totals(self) -> dict:
        before, after = (sum(k[which] * k["calls"] for k in self.kernels) for which in ("untuned_ms", "ms"))
        return {"untuned_ms": before, "ms": after, "gain": before / after if after else 1.0}

    def table(self) -> Table:
        totals, facts = self.totals(), self.facts
        table = Table(box=box.SIMPLE_HEAD, title_justify="left")
        table.title = (
            f"{facts['new']} new trials, {facts['trials']} in {facts['log']}: "
            f"{totals['untuned_ms']:.3g} to {totals['ms']:.3g} ms in these kernels ({totals['gain']:.2f} times faster)"
        )
        table.caption = f"ended because {facts['ended']}" if facts["new"] else f"nothing new: {facts['ended']}"
        table.caption_justify = "left"
        if model := facts.get("model_ms"):
            before, after = model["untuned"], model["tuned"]
            table.title += f"\nthe model: {before:.3g} to {after:.3g} ms ({before / after:.2f} times faster)"
        if transfer := facts.get("transfer"):
            name, seeds, saved = transfer["from"].split(":")[0], transfer["seeds"], transfer["saved"]
            table.title += (
                f"\n{seeds} trials were best on {name}, and stayed best in {transfer['kernels']} kernels: "
                f"{abs(saved)} trials {'saved' if saved >= 0 else 'lost'}"
            )
        for column in ("kernel", "calls", "untuned ms", "ms", "times faster", "trials"):
            table.add_column(column, justify="left" if column == "kernel" else "right")
        for row in sorted(self.kernels, key=lambda k: -k["untuned_ms"] * k["calls"]):
            numbers = (f"{row['untuned_ms']:.4f}", f"{row['ms']:.4f}", f"{row['untuned_ms'] / row['ms']:.2f}")
            table.add_row(Text(row["workload"]), str(row["calls"]), *numbers, str(row["trials"]))
        return table


@contextmanager
def shown(budget: float | None) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """One line that says how far it is; on a screen that is no terminal, one line a minute."""
    console, begun = Console(file=sys.stderr, highlight=False), time.monotonic()
    state: dict[str, Any] = {"limit": 0, "trials": 0}
    said = [begun]
    with Live(Text(""), console=console, transient=True, auto_refresh=False, redirect_stdout=False) as live:

        def tell(name: str, facts: Mapping[str, Any]) -> None:
            state.update(facts if name in ("start", "progress") else {})
            if name == "start":
                state["before"] = facts["trials"]
            if name == "trial":
                state["trials"] = facts["count"]
            if name == "first_error":
                console.print(Text(f"the first failure: {facts['workload']}: {facts['status']}: {facts['error']}"))
            if name == "board" and facts["error"]:
                console.print(Text(f"{facts['state']}: {facts['error']}"))
            if name == "board" and facts.get("emulated") and "emulated" not in state:
                state["emulated"] = True
                console.print(Text("an emulated board: results are checked, its times mean nothing to `compile`"))
            if name == "paused":
                console.print(Text("no board is left: waiting for one; what was measured is kept"))
            if name == "resumed":
                console.print(Text("a board is back"))
            line = status(state, time.monotonic() - begun, budget)
            if console.is_terminal:
                live.update(Text(line), refresh=True)
            elif time.monotonic() - said[0] > 60:
                said[0] = time.monotonic()
                console.print(Text(line))

        yield tell


def status(state: Mapping[str, Any], seconds: float, budget: float | None) -> str:
    parts = [f"{state['trials']} of {state['limit']} trials"]
    before, now = ("model_untuned_ms", "model_ms") if state.get("model_ms") else ("untuned_ms", "ms")
    if state.get(now):
        what = "the model" if now == "model_ms" else "its kernels"
        parts.append(f"{what} {state[before]:.3g} to {state[now]:.3g} ms ({state[before] / state[now]:.2f} times)")
    if failures := state.get("failures"):
        parts.append("failed: " + ", ".join(f"{count} {kind}" for kind, count in failures.items()))
    if budget is not None:
        left = max(budget - state.get("spent_s", 0.0) - seconds, 0)
        parts.append(f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left")
    elif (new := state["trials"] - state.get("before", 0)) > 20:
        left = (state["limit"] - state["trials"]) * seconds / new
        parts.append(f"at most {left / 60:.0f} min left" if left > 90 else f"at most {left:.0f} s left")
    return ", ".join(parts)


@contextmanager
def written(path: Path | None) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    if path is None:
        yield lambda _name, _facts: None
        return
    with path.open("a", encoding="utf-8") as file:

        def tell(name: str, facts: Mapping[str, Any]) -> None:
            finite = {key: None if value == float("inf") else value for key, value in facts.items()}
            file.write(json.dumps({"event": name, "time": time.time(), **finite}) + "\n")
            file.flush()

        yield tell
