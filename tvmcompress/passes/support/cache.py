"""Calibration kept in a file, and reused for the same program."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import tvm

from tvmcompress.errors import InputError
from tvmcompress.ir.files import atomic_write
from tvmcompress.model import lift_constants

SCHEMA = 1


def program_hash(mod: tvm.IRModule) -> str:
    """SHA-256 of the program's text and of every weight."""
    lifted, arrays = lift_constants(mod)
    digest = hashlib.sha256(lifted.script(show_meta=True).encode())
    for array in arrays:
        digest.update(array.reshape(-1).view("uint8").data)
    return digest.hexdigest()


def read(path: Path, key: dict[str, Any]) -> tuple[dict | None, str]:
    """What was stored under exactly `key`, and a sentence on it. A file that is not ours raises InputError."""
    if not path.exists():
        return None, f"calibration written to {path.name}"
    try:
        stored = json.loads(path.read_text())
        stored_key, tensors = stored["key"], stored["tensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a calibration file of tvmcompress; name another, or delete it") from error
    if stored_key != key:
        changed = [name for name in key if stored_key.get(name) != key[name]]
        return None, f"calibration in {path.name} was for another {', '.join(changed)}; made again"
    return tensors, f"calibration taken from {path.name} ({stored.get('samples')} samples)"


def write(path: Path, key: dict[str, Any], tensors: dict, samples: int) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"key": key, "samples": samples, "tensors": tensors}, indent=1))
