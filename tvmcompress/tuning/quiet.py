"""Timing with nothing beside it: on one machine runs of the tuner take turns.

Any number of them build at the same time, and none while another times. A lock that a process holds ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

NAME = "tvmcompress-timing.lock"


def building() -> contextlib.AbstractContextManager[None]:
    """Waits until nobody times."""
    return held(fcntl.LOCK_SH)


def timing() -> contextlib.AbstractContextManager[None]:
    """Waits until nobody builds or times."""
    return held(fcntl.LOCK_EX)


@contextlib.contextmanager
def held(kind: int) -> Iterator[None]:
    """Where the file of the lock can be made or read; else there is none."""
    path = Path(tempfile.gettempdir(), NAME)
    file = -1
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY | (0 if path.exists() else os.O_CREAT), 0o644)
    if file < 0:
        yield
        return
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        # Children that were forked meanwhile have the file too: closing it would not be enough.
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)
