"""Linking compiled code into a shared library, for this machine or another, the same bytes every time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tvmcompress import cpu, external
from tvmcompress.errors import MissingDependencyError, TvmcompressError
from tvmcompress.target import Target

# GNU's name of a triple where it is not LLVM's, and Debian's package of its C compiler.
_GNU = {"armv7l": "arm-linux-gnueabihf"}
_PACKAGE = {
    "x86_64": "gcc-x86-64-linux-gnu",
    "aarch64": "gcc-aarch64-linux-gnu",
    "armv7l": "gcc-arm-linux-gnueabihf",
    "riscv64": "gcc-riscv64-linux-gnu",
}
# Debian's package of its C library, which Debian recommends to the compiler but does not insist on.
_LIBC = {
    "x86_64": "libc6-dev-amd64-cross",
    "aarch64": "libc6-dev-arm64-cross",
    "armv7l": "libc6-dev-armhf-cross",
    "riscv64": "libc6-dev-riscv64-cross",
}
# No build id, no symbols but the exported ones: those that are left out would carry names of temporary files.
_FLAGS = ("-O2", "-shared", "-fPIC", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack")
_LIBRARIES = ("-lm", "-lpthread")
THREADS = Path(__file__).with_name("threads.c")

Fcompile = Callable[..., None]


def compiler(target: Target) -> str:
    """The C compiler that links for `target`; raises MissingDependencyError with the command that installs it."""
    if target.linker:
        wanted = [target.linker]
    elif target.arch == cpu.architecture():
        wanted = ["gcc", "cc", "clang", "g++"]
    else:
        gnu = _GNU.get(target.arch, target.triple)
        wanted = [f"{gnu}-gcc", f"{gnu}-g++"]
    for name in wanted:
        if shutil.which(name):
            return name
    package = "gcc" if target.arch == cpu.architecture() else _PACKAGE[target.arch]
    raise MissingDependencyError(
        f"linking for {target.triple} wants {wanted[0]}, which is not installed: apt-get install {package}"
    )


def linker(target: Target) -> Fcompile:
    """What `export_library(path, fcompile=…)` takes; call it before the work, as it raises MissingDependencyError."""
    command = compiler(target)

    def link(output: str, objects: str | Sequence[str], options: Sequence[str] = (), **_: object) -> None:
        """Links `objects` into `output`. They are named relative to their folder, whose own name is by chance."""
        paths = [objects] if isinstance(objects, str) else list(objects)
        folder = os.path.dirname(os.path.abspath(paths[0]))
        names = [os.path.relpath(os.path.abspath(path), folder) for path in paths]
        arguments = [
            command,
            *_FLAGS,
            "-o",
            os.path.abspath(output),
            *names,
            str(THREADS),
            *(options or ()),
            *_LIBRARIES,
        ]
        done = external.run(arguments, folder)
        if done.returncode and ("crti.o" in done.stderr or "No such file or directory" in done.stderr):
            libc = "libc6-dev" if target.arch == cpu.architecture() else _LIBC[target.arch]
            raise MissingDependencyError(f"{command} has no C library for {target.triple}: apt-get install {libc}")
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
            raise TvmcompressError(f"{command} could not link for {target.triple}: {said}")

    link.output_format = "so"  # type: ignore[attr-defined]  # read by export_library
    return link
