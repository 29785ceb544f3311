"""TVM's runtime library, loaded by itself: without the compiler, which takes seconds and a quarter of a gigabyte."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvmcompress.errors import MissingDependencyError


@functools.cache
def ffi(bare: bool = False) -> Any:
    """The module `tvm_ffi`, with TVM's runtime library loaded; `bare`: where it was not imported before, it does
    without NumPy, and takes half the memory."""
    if "tvm" in sys.modules:
        import tvm_ffi

        return tvm_ffi
    if "tvm_ffi" not in sys.modules:
        _import_ffi("torch", *(["numpy", "ml_dtypes"] if bare else []))
    import tvm_ffi

    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("TVM is not installed: pip install apache-tvm==0.27.0.post1")
    folder = Path(spec.origin).parent / "lib"
    for name in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _import_ffi(*without: str) -> None:
    """tvm_ffi imports torch when it can, for the sake of torch tensors, and that takes over a second."""
    with _hidden(*without):
        try:
            import tvm_ffi  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"TVM is not installed ({error}): pip install apache-tvm==0.27.0.post1"
            ) from error


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Has the import system take modules as not there, unless they are in use already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
