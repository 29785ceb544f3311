"""How many threads run a model, and where. The same in every place that runs or measures code.

On x86 TVM takes half of the logical CPUs, and its own pinning often puts two workers on one core. So the count is ours
(the CPUs that this process may use), and placement is left to the operating system.
"""

from __future__ import annotations

import os

from tvmcompress import cpu
from tvmcompress.errors import UsageError


def count(threads: int | None = None) -> int:
    """The number asked for, or all that this process may use. Raises UsageError for less than one."""
    if threads is None:
        return cpu.usable()
    if threads < 1:
        raise UsageError(f"threads: wanted a number from 1, got {threads}")
    return threads


def prepare_environment(threads: int) -> None:
    """Set what TVM reads once, when a thread starts its pool. Call before anything runs."""
    os.environ["TVM_NUM_THREADS"] = str(max(threads, cpu.usable()))
    os.environ["TVM_BIND_THREADS"] = "0"


def configure(threads: int) -> None:
    """Size the pool of the calling thread (TVM keeps one pool for each thread that runs code)."""
    import tvm_ffi

    prepare_environment(threads)
    any_core = 1  # TVM's name for it is AffinityMode::kBig; without binding it only carries the count
    tvm_ffi.get_global_func("runtime.config_threadpool")(any_core, threads)
