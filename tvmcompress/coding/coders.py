"""What packs streams of bytes: `plain` (nothing), `deflate` and `xz` of the standard library, and `zstd`, an extra.

Weights are noise with a skewed histogram and hardly ever repeat. Deflate's Huffman codes alone come within 2% of their
entropy and unpack several times faster than xz, whose search for what was there before finds matches that cost more.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from tvmcompress.errors import MissingDependencyError

MEMORY = 64 * 2**20  # bytes that unpacking may take beside its result
LEVEL = 12  # of zstd
# Literals do not depend on the one before them, nor on where they lie.
LITERALS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}]


class Coder(NamedTuple):
    """`unpack` gives exactly so many bytes or raises ValueError."""

    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes, int], bytes]


def _pack_deflate(data: bytes) -> bytes:
    """The shorter of Huffman codes alone, and with runs of equal bytes."""
    packed = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):
        packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        packed.append(packer.compress(data) + packer.flush())
    return min(packed, key=len)


def _unpack_deflate(packed: bytes, size: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise ValueError(f"deflate: {error}") from error
    return _whole(data, size, unpacker.eof)


def _pack_xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=LITERALS)


def _unpack_xz(packed: bytes, size: int) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    try:
        data = unpacker.decompress(packed, max_length=size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"xz: {error}") from error
    return _whole(data, size, unpacker.eof)


def zstandard() -> Any:
    """The library. Raises MissingDependencyError."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingDependencyError("weights in zstd want zstandard: pip install 'tvmcompress[zstd]'") from error
    return zstandard


def _pack_zstd(data: bytes) -> bytes:
    return zstandard().ZstdCompressor(level=LEVEL, write_checksum=True).compress(data)


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    library = zstandard()
    try:
        # What the frame says is what will be allocated for it.
        _whole(b"", 0, library.frame_content_size(packed) == size)
        return library.ZstdDecompressor(max_window_size=MEMORY).decompress(packed, max_output_size=size)
    except library.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error


def _whole(data: bytes, size: int, ended: bool) -> bytes:
    if len(data) != size or not ended:
        raise ValueError("a piece of it does not unpack to as many bytes as the manifest says")
    return data


def _plain(data: bytes) -> bytes:
    return data


def _unpack_plain(packed: bytes, size: int) -> bytes:
    return _whole(packed, size, True)


CODERS = {
    "plain": Coder(_plain, _unpack_plain),
    "deflate": Coder(_pack_deflate, _unpack_deflate),
    "xz": Coder(_pack_xz, _unpack_xz),
    "zstd": Coder(_pack_zstd, _unpack_zstd),
}
