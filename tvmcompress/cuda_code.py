"""GPU code inside a library: compiled when the package is made, so that the device needs no CUDA compiler.

TVM 0.27 stores the source of GPU kernels and has it compiled where the library is loaded. Two of its hooks change that:
`tvm_callback_cuda_postproc` may replace the source when it is stored, `tvm_callback_cuda_compile` turns what was stored
into machine code when it is loaded. So what is stored is the machine code itself, written as text.
"""

from __future__ import annotations

import base64

from tvmcompress.errors import PackageError

_MARK = "// tvmcompress cubin, base64: "


def wrap(code: bytes) -> str:
    return _MARK + base64.b64encode(code).decode()


def unwrap(text: str) -> bytes:
    """The inverse; raises PackageError for anything else, so that no source is ever compiled on a device."""
    if not text.startswith(_MARK):
        raise PackageError("the library's GPU code was not compiled by tvmcompress")
    return base64.b64decode(text[len(_MARK) :], validate=True)


def install_loader() -> None:
    """Call before a library with GPU code is loaded."""
    import tvm_ffi

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", unwrap, override=True)
