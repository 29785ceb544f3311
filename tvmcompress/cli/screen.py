"""What is shown: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tvmcompress.ir.files import atomic_write

PATIENCE_S = 2.0  # what is done sooner needs no bar


def show(what: RenderableType) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    console.print(Text(what) if isinstance(what, str) else what)  # names may hold what rich takes for markup


def result(value: dict | list, text: Callable[[], RenderableType], json_path: str | None) -> None:
    """Print `text()`, or with `--json -` the value alone; `--json PATH` writes a file besides."""
    if json_path == "-":
        json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
        print()
        return
    if json_path is not None:
        with atomic_write(Path(json_path)) as temporary:
            temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    show(text())


@contextmanager
def progress() -> Iterator[Callable[[int, int | None, str], None]]:
    """A function to call with (done, total, text): a bar with the time left, once it has taken two seconds."""
    console = Console(file=sys.stderr)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    start, tasks = time.monotonic(), dict[str, Any]()

    def update(done: int, total: int | None, text: str) -> None:
        if text not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[text] = bar.add_task(text, total=total)
        bar.update(tasks[text], completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - start > PATIENCE_S:
            bar.start()

    try:
        yield update
    finally:
        bar.stop()
