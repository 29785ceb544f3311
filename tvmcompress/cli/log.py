"""tvmcompress log show | export | import | merge | repair | prune"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table
from rich.text import Text

from tvmcompress.cli import options, screen

if TYPE_CHECKING:
    from tvmcompress.trials import Trial


@click.group(epilog="Example:\n\n\b\n  tvmcompress log show")
def command() -> None:
    """What tuning has measured."""


@command.command("show", epilog="Example:\n\n\b\n  tvmcompress log show --target native --all")
@options.log_option
@click.option("--target", help="Only what was measured for this target.")
@click.option("--all", "everything", is_flag=True, help="Every trial, not only the best of each kernel.")
@options.json_option
def show(log: str | None, target: str | None, everything: bool, json_path: str | None) -> None:
    """The best trial of each kernel, target and board."""
    from tvmcompress.trials import record

    with options.opened_log(log) as opened:
        trials = opened.trials(_key(target))
        rows = trials if everything else opened.chosen(trials)
    screen.result([record(t) for t in rows], lambda: _table(rows, trials, everything), json_path)


@command.command("export", epilog="Example:\n\n\b\n  tvmcompress log export --target native -o base.jsonl")
@options.log_option
@click.option("--target", help="Only what was measured for this target.")
@click.option("--all", "everything", is_flag=True, help="Every trial, not only the best of each kernel.")
@options.output_option("file of records, one a line,")
def export(log: str | None, target: str | None, everything: bool, output: Path) -> None:
    """Write records that stand for themselves, one a line."""
    options.check_output(output, options.log_file(log))
    with options.opened_log(log) as opened:
        trials = opened.trials(_key(target))
        count = opened.export(output, trials if everything else opened.chosen(trials))
    screen.show(f"{output}: {count} records")


@command.command("import", epilog="Example:\n\n\b\n  tvmcompress log import base.jsonl")
@click.argument("files", nargs=-1, required=True, type=options.PATH)
@options.log_option
def import_(files: tuple[Path, ...], log: str | None) -> None:
    """Read records that `log export` wrote, or a folder with a database of TVM's MetaSchedule.

    Lines that are none are set aside, in FILE.bad, each behind its number and the reason. What MetaSchedule measured is
    for `log show` alone: neither `compile` nor `tune` goes by it.
    """
    from tvmcompress import tuning_log_metaschedule as metaschedule
    from tvmcompress.errors import UsageError

    for path in files:
        if path.is_dir() and not metaschedule.is_database(path):
            raise UsageError(f"folder '{path}' has no database of MetaSchedule ({metaschedule.RECORDS})")
        if not path.exists():
            raise UsageError(f"no file '{path}'")
    with options.opened_log(log, must_exist=False) as opened:
        for path in files:
            if metaschedule.is_database(path):
                trials, read = metaschedule.read(path)
                new = sum(opened.add(trial) for trial in trials)
                known, bad = len(trials) - new, {lines.path: lines.bad for lines in read}
            else:
                with path.open(encoding="utf-8", errors="replace") as lines:
                    new, known, found = opened.import_lines(lines)
                bad = {path: found}
            screen.show(
                f"{path}: {new} new, {known} known, {sum(map(len, bad.values()))} bad"
                + "".join(_set_aside(*one) for one in bad.items())
            )


@command.command("merge", epilog="Example:\n\n\b\n  tvmcompress log merge other.db")
@click.argument("others", nargs=-1, required=True)
@options.log_option
def merge(others: tuple[str, ...], log: str | None) -> None:
    """Take over all trials of other logs, paths or URLs, and what was confirmed there."""
    with contextlib.ExitStack() as stack:
        read = [stack.enter_context(options.opened_log(other)) for other in others]
        opened = stack.enter_context(options.opened_log(log, must_exist=False))
        for one in read:
            screen.show(f"{one.name}: {opened.merge(one)} new trials")


@command.command("repair", epilog="Example:\n\n\b\n  tvmcompress log repair --log tuning.db")
@options.log_option
def repair(log: str | None) -> None:
    """Save what can be read of a damaged log into a new file, which takes its place; the old one is kept beside it."""
    from tvmcompress.tuning_log_repair import repaired

    path, kept, aside = repaired(options.log_path(log))
    screen.show(
        f"{path}: {kept} trials saved" + (f"; the damaged file is {aside}" if aside else "; it was not damaged")
    )


@command.command("prune", epilog="Example:\n\n\b\n  tvmcompress log prune --failed")
@options.log_option
@click.option("--target", help="Only what was measured for this target.")
@click.option("--failed", is_flag=True, help="Trials that failed.")
@click.option("--old", is_flag=True, help="Trials of other versions of TVM or of our schedules.")
def prune(log: str | None, target: str | None, failed: bool, old: bool) -> None:
    """Remove trials of no more use."""
    from tvmcompress.kernels.choices import versions

    if not failed and not old:
        raise click.UsageError("say what to remove: --failed, --old or both")
    with options.opened_log(log) as opened:
        now = versions()
        found = [t for t in opened.trials(_key(target)) if (failed and t.status != "ok") or (old and t.versions != now)]
        screen.show(f"{opened.name}: {opened.remove(found)} trials removed")


def _key(target: str | None) -> str | None:
    from tvmcompress.target import Target
    from tvmcompress.trials import target_key

    return target_key(Target.load(target)) if target else None


def _set_aside(path: Path, bad: list[tuple[int, str, str]]) -> str:
    from tvmcompress.ir.files import atomic_write

    if not bad:
        return ""
    aside = path.with_name(f"{path.name}.bad")
    with atomic_write(aside) as temporary:
        temporary.write_text("".join(f"{number}: {reason}: {line}\n" for number, line, reason in bad))
    number, _, reason = bad[0]
    return f" (in {aside}; the first, line {number}: {reason})"


def _table(rows: list[Trial], trials: list[Trial], everything: bool) -> Table:
    from tvmcompress.trials import PASSING

    counts: dict[tuple, int] = {}
    for trial in trials:
        counts[trial.place] = counts.get(trial.place, 0) + (trial.status not in PASSING)
    table = Table(box=box.SIMPLE_HEAD)
    if cancelled := sum(trial.status in PASSING for trial in trials):
        table.caption = f"and {cancelled} cancelled, which the next run measures"
    for column in ("target", "kernel", "board", "ms", "trials" if not everything else "status", "decisions"):
        table.add_column(column, justify="right" if column in ("ms", "trials") else "left")
    for row in rows:
        ms = f"{row.ms:.4f}" if row.status == "ok" else "-"
        last = row.status if everything else str(counts[row.place])
        said = " ".join(f"{name}={_short(value)}" for name, value in row.decisions.items())
        table.add_row(*map(Text, (row.target.split(":")[0], row.workload, row.board.split(",")[0], ms, last, said)))
    return table


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "x".join(_short(inner) for inner in value.values())
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and len(value[0]) > 8:
        return f"{len(value[0])} steps"  # a trace of TVM's
    if isinstance(value, list):
        return ",".join(_short(inner) for inner in value)
    return str(value)
