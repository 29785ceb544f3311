"""TVM's runtime library, loaded by itself: without the compiler, which takes seconds and a quarter of a gigabyte."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

from tvmcompress.errors import MissingDependencyError


@functools.cache
def ffi() -> Any:
    """The module `tvm_ffi`, with TVM's runtime library loaded."""
    if "tvm" in sys.modules:
        import tvm_ffi

        return tvm_ffi
    if "tvm_ffi" not in sys.modules:
        _import_ffi_without_torch()
    import tvm_ffi

    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("TVM is not installed: pip install apache-tvm==0.27.0.post1")
    folder = Path(spec.origin).parent / "lib"
    for name in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _import_ffi_without_torch() -> None:
    """tvm_ffi imports torch when it can, for the sake of torch tensors, and that takes over a second."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # what the import system takes as "not there"
    try:
        import tvm_ffi  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"TVM is not installed ({error}): pip install apache-tvm==0.27.0.post1") from error
    finally:
        if hidden:
            del sys.modules["torch"]
