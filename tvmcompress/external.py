"""Programs of others (compilers, linkers) run so that stopping in the middle leaves nothing of theirs behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str], folder: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in `folder`, which also takes its temporary files; raises nothing over its exit status.

    Compilers start programs in turn: whatever interrupts the wait (Ctrl-C, a signal) kills the whole group, so that
    none of them writes on after its caller has cleaned up.
    """
    process = subprocess.Popen(
        list(arguments),
        cwd=folder,
        env={**os.environ, "TMPDIR": str(Path(folder).absolute())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        output, error = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, output, error)
