"""Opening an ONNX file without reading its weights: the large ones stay in the file until they are asked for.

A 400 MB model parsed whole takes its size twice over before work begins. So the file is mapped, its protobuf framing is
walked, and what is parsed is a copy in which large tensors have no data; `Tensors` knows where that lies.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tvmcompress.errors import ModelError
from tvmcompress.frontend.onnx.tensors import Tensors

LARGE = 1024  # bytes; smaller tensors are parsed with the rest
GRAPH, INITIALIZER = 7, 5  # field numbers of ModelProto and GraphProto
DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 2, 4, 8, 9  # and of TensorProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types


class Truncated(ValueError):
    """The framing points beyond the end, or is none."""


def open_model(path: Path) -> tuple[onnx.ModelProto, Tensors]:
    """The model without its large initializers, and what reads those. Raises ModelError."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path}: the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                slim, blobs = slimmed_model(data)
        proto = onnx.ModelProto()
        proto.ParseFromString(slim)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (Truncated, DecodeError) as error:
        raise ModelError(f"{path}: not an ONNX model, or a damaged one (its structure ends in the middle)") from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{path}: not an ONNX model (it has no graph)")
    return proto, Tensors({name: (path, *where) for name, where in blobs.items()}, path.resolve().parent)


def looks_like_onnx(path: Path) -> bool:
    """Whether the file is framed as a ModelProto: every top-level field is one that it has."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(number == GRAPH for number, *_ in fields(data, 0, len(data)))
    except (Truncated, ValueError, OSError):
        return False


def slimmed_model(data: mmap.mmap) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The message without the bytes of large initializers, and where those are: (offset, length) by name."""
    blobs: dict[str, tuple[int, int]] = {}
    parts = []
    for number, wire, start, body, end in fields(data, 0, len(data)):
        if number == GRAPH and wire == BYTES:
            parts.append(framed(GRAPH, slimmed_graph(data, body, end, blobs)))
        else:
            parts.append(data[start:end])
    return b"".join(parts), blobs


def slimmed_graph(data: mmap.mmap, begin: int, stop: int, blobs: dict[str, tuple[int, int]]) -> bytes:
    parts = []
    for number, wire, start, body, end in fields(data, begin, stop):
        if number == INITIALIZER and wire == BYTES and end - body > LARGE:
            parts.append(framed(INITIALIZER, slimmed_tensor(data, body, end, blobs)))
        else:
            parts.append(data[start:end])
    return b"".join(parts)


def slimmed_tensor(data: mmap.mmap, begin: int, stop: int, blobs: dict[str, tuple[int, int]]) -> bytes:
    """raw_data is left out, and float_data too, which is the same bytes when it comes packed and in one piece."""
    parts, name, kind, where = [], "", 0, []
    for number, wire, start, body, end in fields(data, begin, stop):
        if number == NAME and wire == BYTES:
            name = data[body:end].decode("utf-8", "replace")
        elif number == DATA_TYPE and wire == VARINT:
            kind, _ = varint(data, body, end)
        large = wire == BYTES and end - body > LARGE
        if large and (number == RAW_DATA or (number == FLOAT_DATA and kind in (0, onnx.TensorProto.FLOAT))):
            where.append((body, end - body))
        else:
            parts.append(data[start:end])
    if len(where) != 1 or not name:
        return data[begin:stop]
    blobs[name] = where[0]
    return b"".join(parts)


def fields(data: mmap.mmap, begin: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field number, wire type, start of the field, start of its content, end) of a message in data[begin:stop]."""
    at = begin
    while at < stop:
        start = at
        tag, at = varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        body = at
        if wire == VARINT:
            _, at = varint(data, at, stop)
        elif wire == FIXED64:
            at += 8
        elif wire == FIXED32:
            at += 4
        elif wire == BYTES:
            length, body = varint(data, at, stop)
            at = body + length
        else:
            raise Truncated
        if at > stop or number == 0:
            raise Truncated
        yield number, wire, start, body, at


def varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise Truncated


def framed(number: int, content: bytes) -> bytes:
    """`content` as a length-delimited field."""
    head, length = bytearray([number << 3 | BYTES]), len(content)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + content
