"""CUDA C to machine code: by NVRTC from the Python packages where they are installed, else by nvcc.

No GPU and no driver are needed. The code is for one architecture (a cubin), without fast-math: a division that is off
by one unit in the last place moves a quantized value to its neighbour.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tvmcompress import external
from tvmcompress.errors import MissingDependencyError, TvmcompressError

INSTALL = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-cccl-cu12"
CudaCompiler = Callable[[str], bytes]


def find(arch: str) -> CudaCompiler:
    """What compiles for `arch` (`sm_87`) on this machine; raises MissingDependencyError with the pip line."""
    for library in _nvrtc_libraries():
        if _number(arch) in _nvrtc_archs(library):
            return lambda source: compile_nvrtc(library, source, arch)
    nvcc = shutil.which("nvcc")
    if nvcc and arch in subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout:
        return lambda source: compile_nvcc(nvcc, source, arch)
    found = f"the nvcc that is installed cannot compile for {arch}" if nvcc else "neither NVRTC nor nvcc is installed"
    raise MissingDependencyError(f"compiling for {arch}: {found}: {INSTALL}")


def compile_nvcc(nvcc: str, source: str, arch: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        # Names are relative and always the same: nvcc hashes them into symbols.
        (Path(folder) / "kernels.cu").write_text(source)
        command = [nvcc, "--cubin", "-O3", f"-arch={arch}", "-std=c++17", "-o", "kernels.cubin", "kernels.cu"]
        done = external.run(command, folder)
        if done.returncode:
            raise TvmcompressError(f"nvcc failed for {arch}: {_first_error(done.stderr)}")
        return (Path(folder) / "kernels.cubin").read_bytes()


def compile_nvrtc(library: Path, source: str, arch: str) -> bytes:
    """Through NVRTC's C interface (nvrtc.h)."""
    nvrtc = _load(library)
    program = ctypes.c_void_p()
    # TVM's source names no header of the host under NVRTC, but uses INFINITY, which nvcc takes from the host's.
    text = "#define INFINITY __int_as_float(0x7f800000)\n" + source
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None), arch)
    try:
        options = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", "--device-int128"]
        options += [f"--include-path={folder}" for folder in _include_folders()]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), array)
        if status:
            raise TvmcompressError(
                f"NVRTC failed for {arch}: {_first_error(_text(nvrtc, program, 'ProgramLog').decode())}"
            )
        return _text(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _check(status: int, what: str) -> None:
    if status:
        raise TvmcompressError(f"NVRTC failed with status {status} ({what})")


def _load(library: Path) -> ctypes.CDLL:
    nvrtc = ctypes.CDLL(str(library))
    nvrtc.nvrtcCreateProgram.argtypes = [
        *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    ]
    return nvrtc


def _nvrtc_archs(library: Path) -> list[int]:
    try:
        nvrtc = _load(library)
        count = ctypes.c_int()
        _check(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "archs")
        archs = (ctypes.c_int * count.value)()
        _check(nvrtc.nvrtcGetSupportedArchs(archs), "archs")
    except (OSError, AttributeError, TvmcompressError):  # a library that is broken or too old does not count
        return []
    return list(archs)


def _nvidia_folders() -> Iterator[Path]:
    """The folders of NVIDIA's Python packages: site-packages/nvidia/<part>."""
    spec = importlib.util.find_spec("nvidia")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(location).iterdir())


def _nvrtc_libraries() -> list[Path]:
    """Newest first, and only with the headers of CUDA's own C++ library, which all of TVM's kernels include."""
    if not any((folder / "cuda" / "std" / "cstdint").is_file() for folder in _include_folders()):
        return []
    found = [path for folder in _nvidia_folders() for path in folder.glob("lib/libnvrtc.so.*")]
    return sorted(found, key=lambda path: int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0, reverse=True)


def _include_folders() -> list[Path]:
    folders = [folder / "include" for folder in _nvidia_folders() if (folder / "include").is_dir()]
    return folders + [folder / "cccl" for folder in folders if (folder / "cccl").is_dir()]


def _number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def _first_error(log: str) -> str:
    return next((line.strip() for line in log.splitlines() if "error" in line), log.strip()[:200])
