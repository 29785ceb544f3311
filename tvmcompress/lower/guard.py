"""Kernels for compressed weights stay only where the whole program is faster with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from tvmcompress.lower import compressed, twins
from tvmcompress.lower.builds import Begun, Build
from tvmcompress.lower.compressed import Row
from tvmcompress.lower.sparse import Keep

FEW_MACS = 1 << 26  # of all layers in question: what no estimate counts, starting threads above all, is much of so few


def guarded(
    made: Begun, begin: Callable[[Keep], Begun], finish: Callable[[Begun], Build], inputs: list[np.ndarray], keep: Keep
) -> Build:
    """`made`, which is what `keep` says, or where that is faster here a build with fewer such kernels: those that
    promise most, or none.

    Nothing is timed where together they promise much of much work. What is timed is noted in the rows of the layers.
    """
    kept = [told for told in compressed.told(made.layers) if told.row["kept"]]
    estimates = {layer["name"]: row["estimate"] for layer, _, row in kept}
    work = sum(layer["macs"] for layer, _, _ in kept)
    promised = sum(layer["macs"] * row["estimate"] for layer, _, row in kept)
    if not kept or (work >= FEW_MACS and promised <= twins.SURE * work):
        return finish(made)
    with ThreadPoolExecutor(1) as beside:
        building = beside.submit(finish, made)
        twin = finish(begin(replace(keep, policy="never")))
        first = building.result()
    if (whole := twins.ratio(first, twin, inputs)) < twins.WON:
        return noted(first, estimates, whole)
    doubtful = frozenset(name for name, estimate in estimates.items() if estimate > twins.SURE)
    if doubtful and len(doubtful) < len(estimates):
        fewer = finish(begin(replace(keep, dense=doubtful)))
        if (second := twins.ratio(fewer, twin, inputs)) < twins.WON:
            return noted(fewer, estimates, second)
    return noted(dense(twin, first), estimates, whole)


def dense(twin: Build, made: Build) -> Build:
    """The dense twin, in whose rows stands why: what is said of the compressed layers of `made`."""
    rows: dict[str, dict[str, Row]] = {}
    for layer, kind, row in compressed.told(made.lowered.layers):
        measured = f"measured: {row['format']} are slower"
        rows.setdefault(kind, {})[layer["name"]] = compressed.lost(kind, row, measured) if row["kept"] else row
    return replace(twin, lowered=replace(twin.lowered, layers=compressed.said(twin.lowered.layers, rows)))


def noted(made: Build, names: Mapping[str, float], whole: float) -> Build:
    """With what was measured of the whole program: its time over that of the dense one. `names`: of the layers whose
    kernels that was about."""
    rows: dict[str, dict[str, Row]] = {}
    for layer, kind, row in compressed.told(made.lowered.layers):
        if layer["name"] in names:
            rows.setdefault(kind, {})[layer["name"]] = row | {"whole": round(whole, 3)}
    return replace(made, lowered=replace(made.lowered, layers=compressed.said(made.lowered.layers, rows)))
