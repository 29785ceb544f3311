"""What a build says of layers whose weights are compressed: a row for each, by kind.

`sparse`: weights with zeros; `shared`: weights that share values. A row has `density` (the share that is not zero),
`format`, `kept` (whether the layer has a kernel made for such weights), `why` not, `bytes` as a package stores them,
`dense_bytes` without that kernel; `estimate`, its time over that of the dense kernel, where there is one; and `whole`,
the same of the whole program, where that was timed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tvmcompress.coding import parts

Row = dict[str, Any]
PLAIN = {"sparse": "dense", "shared": "unpacked"}  # by kind the format of what has no kernel of its own


class Told(NamedTuple):
    """A row, whose it is, and of what kind."""

    layer: Row
    kind: str
    row: Row


def told(layers: Sequence[Row]) -> Iterator[Told]:
    """Everything that the rows of layers say of compressed weights."""
    return (Told(layer, kind, layer[kind]) for layer in layers for kind in PLAIN if layer.get(kind))


def said(layers: Sequence[Row], rows: Mapping[str, Mapping[str, Row]]) -> list[Row]:
    """Layers with `rows`, by kind and by the layer's name, among what is said of them."""
    return [
        layer | {kind: named[layer["name"]] for kind, named in rows.items() if layer.get("name") in named}
        for layer in layers
    ]


def plain(kind: str, density: float, arrays: Iterable[np.ndarray], storage: str) -> Row:
    """The row of a layer without a kernel of its own, but for `why`. `arrays`: what is stored for its weights."""
    bytes_ = round(sum(parts.expected(array, storage) for array in arrays))
    return {"density": density, "format": PLAIN[kind], "kept": False, "dense_bytes": bytes_, "bytes": bytes_}


def lost(kind: str, row: Row, why: str) -> Row:
    """The row of a layer that does not keep its kernel after all."""
    left = {"format": PLAIN[kind], "kept": False, "bytes": row["dense_bytes"], "why": why}
    return {name: value for name, value in row.items() if name != "blocks"} | left
