"""What this process should be like before TVM is imported; called where a verb or command is first used.

torch stays out: TVM's bindings import it whenever it is installed, which takes a second and 200 MB. And freed weights
go back to the system: glibc raises the size from which it does so with every block that it frees, up to 32 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Iterator

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1
M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE = 1 << 20  # bytes; a block of at least this size is its own mapping, given back when freed

_ready: set[str] = set()


def prepare() -> None:
    """Before anything large is allocated."""
    libc = ctypes.CDLL(None)
    if not _ready and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
    _ready.add("memory")


def import_without_torch(name: str) -> None:
    """Import a module (`tvm`, `tvm_ffi`) as if torch were not installed, unless torch is in use already."""
    if name in _ready or name in sys.modules or "torch" in sys.modules:
        return
    _ready.add(name)
    sys.modules["torch"] = None  # type: ignore[assignment]  # what the import system takes as "not there"
    try:
        importlib.import_module(name)
    finally:
        del sys.modules["torch"]


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Interrupts wait until after it; threads that are started in it never take one.

    Within a fork one would be lost, as Python ignores what its hooks raise there: also one that another thread took.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent: int | None = None) -> None:
    """To be called in a child: it is killed when the thread that made it ends. `parent` tells one that died before."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
