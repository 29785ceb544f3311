"""How many threads run a model. Where they run is the business of `threads.c`, which every library is linked with.

TVM's own pool takes half of the logical CPUs on x86, and often puts two threads on one.
"""

from __future__ import annotations

from typing import Any

from tvmcompress import cpu
from tvmcompress.errors import UsageError


def count(threads: int | None = None) -> int:
    """The number asked for, or all that this process may use. Raises UsageError for less than one."""
    if threads is None:
        return cpu.usable()
    if threads < 1:
        raise UsageError(f"threads: wanted a number from 1, got {threads}")
    return threads


def use(module: Any, threads: int) -> None:
    """Have a loaded library, here or behind RPC, run its parallel loops on so many threads."""
    in_imports = True
    module.get_function("use_threads", in_imports)(threads)
