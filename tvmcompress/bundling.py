"""bundle(target) -> a tar with the least that a board needs to be served.

TVM's runtime without its compiler (a few megabytes in place of a quarter of a gigabyte), the part of our code that a
server imports, and a script that starts it. No other Python package is needed there, and no compiler.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from tvmcompress import cpu
from tvmcompress.errors import MissingDependencyError, TvmcompressError, UsageError
from tvmcompress.ir.files import atomic_write
from tvmcompress.target import Target

ROOT = "tvmcompress-board"
ENTRY = "tvmcompress.serving.__main__"
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "typing-extensions")
# Of these: the runtime, and the Python that loads it.
WANTED = re.compile(
    r"tvm/lib/libtvm_runtime(_extra)?\.so|tvm_ffi/lib/libtvm_ffi(_testing)?\.so|tvm_ffi/[^/]*\.so|tvm_ffi/.*\.py"
    r"|typing_extensions\.py|[^/]*\.dist-info/(METADATA|(licenses/)?(LICENSE|NOTICE))"
)
START = """#!/bin/sh
# Serves this board to tvmcompress, to this machine alone unless told otherwise; --help tells more.
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/lib" PYTHONDONTWRITEBYTECODE=1 exec "${PYTHON:-python3}" -s -m tvmcompress.serving "$@"
"""


def bundle(target: Target, output: Path, python: str = "3.11") -> int:
    """Writes the tar for boards of `target` that have this Python; returns its bytes.

    Raises UsageError for a version that cannot be one, TvmcompressError when TVM is not published for such boards or
    cannot be fetched.
    """
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise UsageError(f"python '{python}': wanted a version like 3.11")
    if target.kind != "cpu":
        raise UsageError(f"{target.name}: only boards whose CPU is used are served from a bundle")
    files: dict[str, bytes] = {"start": START.encode(), "lib/tvm/__init__.py": b""}
    files |= {f"lib/{name}": path.read_bytes() for name, path in own(ENTRY).items()}
    version = metadata.version("tvmcompress")
    files[f"lib/tvmcompress-{version}.dist-info/METADATA"] = f"Name: tvmcompress\nVersion: {version}\n".encode()
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        for wheel in fetched(target.arch, python, Path(folder)):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if WANTED.fullmatch(name):
                        files[f"lib/{name}"] = archive.read(name)
    packed = gzip.compress(tar(files), 9, mtime=0)
    with atomic_write(output) as temporary:
        temporary.write_bytes(packed)
    return len(packed)


def own(entry: str) -> dict[str, Path]:
    """The files of ours that a module needs, by their places in the package."""
    found: dict[str, Path] = {}
    todo = [entry, "tvmcompress"]
    while todo:
        name = todo.pop()
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not name.startswith("tvmcompress"):
            continue
        path = Path(spec.origin)
        place = "/".join(name.split(".")) + ("/__init__.py" if path.name == "__init__.py" else ".py")
        if place in found:
            continue
        found[place] = path
        todo.append(name.rpartition(".")[0] or "tvmcompress")
        if name != "tvmcompress":  # whose names are imported when they are used
            todo += imported(path)
    return found


def imported(path: Path) -> list[str]:
    """The modules of ours that a file imports, but for the sake of types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith("tvmcompress") and exists(name)]


def exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def fetched(arch: str, python: str, folder: Path) -> list[Path]:
    """TVM's wheels for a kind of machine, as pip finds them."""
    platforms = [f"manylinux_2_{minor}_{arch}" for minor in (28, 27, 24, 17)] + [f"manylinux2014_{arch}"]
    wanted = [f"{name}=={metadata.version(name)}" for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={python}", "--dest", str(folder)]
    command += [f"--platform={name}" for name in platforms]
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError("a bundle is fetched by pip, which this Python lacks: python3 -m ensurepip")
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        if "from versions: none" in done.stderr:
            raise TvmcompressError(
                f"TVM {metadata.version('apache-tvm')} is not published for {arch} and Python {python}"
            )
        said = next((line for line in done.stderr.splitlines() if "ERROR" in line), done.stderr.strip()[-200:])
        known = f"{arch} and Python {python}" if arch != cpu.architecture() else f"Python {python}"
        raise TvmcompressError(f"TVM {metadata.version('apache-tvm')} for {known} cannot be fetched: {said}")
    return sorted(folder.glob("*.whl"))


def tar(files: dict[str, bytes]) -> bytes:
    """In the order of names, with nothing of this machine in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(f"{ROOT}/{name}")
            info.size, info.mode = len(data), 0o755 if name == "start" or name.endswith(".so") else 0o644
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()
