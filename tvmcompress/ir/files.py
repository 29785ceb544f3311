"""Writing files so that nothing half-written is ever found under its final name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvmcompress.errors import TvmcompressError


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to `path` on success, removes it on any failure.

    A full disk or a missing folder becomes a TvmcompressError of one line.
    """
    final = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    except OSError as error:
        raise TvmcompressError(f"cannot write {final}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(final)
    except OSError as error:
        raise TvmcompressError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
