"""The package's file: an uncompressed tar with a fixed order, so that equal contents are equal bytes.

    offset 0      a pax header that holds nothing but filler
    offset 3584   the header of weights.bin
    offset 4096   weights.bin, on a page boundary so that it can be mapped straight from the tar
    …             golden.bin.xz, library.so.xz (of several builds library-<build>.so.xz, in order), manifest.json (last:
                  it holds the hashes of the others)

`tar tf` and `tar xf` read it. This file knows names, sizes and limits, and nothing of what the members mean.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tvmcompress.errors import PackageError

BLOCK = 512
PAGE = 4096
MEMBERS = ("weights.bin", "golden.bin.xz", "library.so.xz", "manifest.json")
LIBRARY = re.compile(r"library(-[\w.:+-]+)?\.so\.xz", re.ASCII)
MAX_BYTES = 8 * 2**30 - 1  # what eleven octal digits can say


@dataclass(frozen=True)
class Limits:
    """What a package may at most hold, in bytes; anything beyond is refused before it is read."""

    total: int = MAX_BYTES
    library: int = 512 * 2**20  # unpacked
    golden: int = 1024 * 2**20  # unpacked
    manifest: int = 64 * 2**20
    weights: int = MAX_BYTES  # unpacked, of those that are stored coded


@dataclass(frozen=True)
class Member:
    offset: int  # of its data in the file
    size: int


def library(build: str = "") -> str:
    """The member that holds the library: of a package's only build, or of one of several, by its name."""
    return f"library-{build}.so.xz" if build else MEMBERS[2]


def write(file: BinaryIO, write_weights: Callable[[BinaryIO], None], rest: Callable[[], dict[str, bytes]]) -> None:
    """Write a whole archive. `rest` is called once the weights are written and gives the other members."""
    filler = tarfile.TarInfo("././@PaxHeader")
    filler.type = tarfile.XHDTYPE
    filler.size = PAGE - 2 * BLOCK
    comment = f"{filler.size} comment="
    file.write(_header(filler) + f"{comment:<{filler.size - 1}}\n".encode())
    file.seek(PAGE)
    write_weights(file)
    weights = tarfile.TarInfo(MEMBERS[0])
    weights.size = file.tell() - PAGE
    _pad(file)
    file.seek(PAGE - BLOCK)
    file.write(_header(weights))
    file.seek(0, os.SEEK_END)
    members = rest()
    for name in [MEMBERS[1], *filter(LIBRARY.fullmatch, members), MEMBERS[3]]:
        info = tarfile.TarInfo(name)
        info.size = len(members[name])
        file.write(_header(info) + members[name])
        _pad(file)
    file.write(bytes(2 * BLOCK))


def read(path: str | os.PathLike, limits: Limits) -> dict[str, Member]:
    """Where each member lies. Nothing is extracted. Raises PackageError for anything that `write` does not write."""
    members: dict[str, Member] = {}
    try:
        size = Path(path).stat().st_size
        if size > limits.total:
            raise PackageError(f"{path}: {size:,} bytes is beyond the limit of {limits.total:,}")
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:", format=tarfile.PAX_FORMAT) as tar:
            while info := tar.next():
                _check(path, info, members, size)
                members[info.name] = Member(info.offset_data, info.size)
    except OSError as error:
        raise PackageError(f"{path}: {error.strerror or error}") from error
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise PackageError(f"{path}: not a package of tvmcompress: {error}") from error
    there = [MEMBERS[2] if LIBRARY.fullmatch(name) else name for name in members]
    if absent := [name for name in MEMBERS if name not in there]:
        raise PackageError(f"{path}: not a whole package; missing {', '.join(absent)}")
    if members[MEMBERS[0]].offset % PAGE:
        raise PackageError(
            f"{path}: the weights do not start on a page boundary; the package was packed by something else"
        )
    return members


def _check(path: str | os.PathLike, info: tarfile.TarInfo, seen: dict[str, Member], size: int) -> None:
    name = info.name[:80]
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise PackageError(f"{path}: unsafe member name '{name}'")
    if info.type != tarfile.REGTYPE or info.sparse is not None:
        raise PackageError(f"{path}: member '{name}' is not a plain file")
    if info.name not in MEMBERS and not LIBRARY.fullmatch(info.name):
        raise PackageError(f"{path}: unknown member '{name}'; wanted {', '.join(MEMBERS)}")
    if info.name in seen:
        raise PackageError(f"{path}: member '{name}' occurs twice")
    if info.size < 0 or info.offset_data + info.size > size:
        raise PackageError(f"{path}: cut short inside '{name}'")


def _header(info: tarfile.TarInfo) -> bytes:
    """512 bytes with no time, owner or place in them."""
    info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname = 0o644, 0, 0, 0, "", ""
    if info.size > MAX_BYTES:
        raise PackageError(f"'{info.name}' has {info.size:,} bytes; a package holds at most {MAX_BYTES:,}")
    return info.create_ustar_header(info.get_info(), "utf-8", "strict")


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % BLOCK))
