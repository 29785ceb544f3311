"""Writes the file of a new package: weights first, since the manifest says what became of them."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tvmcompress import archive, arrays, manifest


def write(
    path: Path,
    library: str | os.PathLike | Mapping[str, str | os.PathLike],
    weights: Iterable[tuple[str, arrays.Array]],
    contents: dict,
    golden_inputs: Mapping[str, np.ndarray],
    golden_outputs: Mapping[str, np.ndarray],
    storage: str,
) -> None:
    """See `Package.build`; `contents` is the manifest as it is given there. Raises PackageError and OSError."""
    contents = manifest.check(dict(contents), "new package", written=False)
    contents["tolerance"] = manifest.TOLERANCE | contents.get("tolerance", {})
    contents["versions"] = manifest.versions()
    members: dict[str, dict] = {}

    def write_weights(file: BinaryIO) -> None:
        contents["weights"], members["weights.bin"] = arrays.write(file, weights, storage)
        contents["schema"] = manifest.schema(contents["weights"])

    def rest() -> dict[str, bytes]:
        plain = io.BytesIO()
        given, expected = list(golden_inputs.items()), list(golden_outputs.items())
        rows, _ = arrays.write(plain, given + expected)
        contents["golden"] = {"inputs": rows[: len(given)], "outputs": rows[len(given) :]}
        libraries = library if isinstance(library, Mapping) else {archive.library(): library}
        unpacked = {"golden.bin.xz": plain.getvalue(), **{n: Path(file).read_bytes() for n, file in libraries.items()}}
        packed = {name: lzma.compress(data, preset=6) for name, data in unpacked.items()}
        for name, data in packed.items():
            digest = hashlib.sha256(data).hexdigest()
            members[name] = {"size": len(data), "sha256": digest, "unpacked": len(unpacked[name])}
        contents["members"] = members
        return packed | {"manifest.json": manifest.dump(contents)}

    with open(path, "w+b") as file:
        archive.write(file, write_weights, rest)
