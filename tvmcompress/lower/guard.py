"""Sparse kernels stay only where the whole program is faster with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from tvmcompress.lower import twins
from tvmcompress.lower.builds import Begun, Build
from tvmcompress.lower.sparse import Keep, lost

FEW_MACS = 1 << 26  # of all layers in question: what no estimate counts, starting threads above all, is much of so few


def guarded(
    made: Begun, begin: Callable[[Keep], Begun], finish: Callable[[Begun], Build], inputs: list[np.ndarray], keep: Keep
) -> Build:
    """`made`, which is what `keep` says, or where that is faster here a build with fewer sparse kernels: those that
    promise most, or none.

    Nothing is timed where together they promise much of much work. What is timed is noted in the rows of the layers.
    """
    rows = [row for row in made.layers if row.get("sparse", {}).get("kept")]
    sparse = {row["name"]: row["sparse"] for row in rows}
    work = sum(row["macs"] for row in rows)
    promised = sum(row["macs"] * row["sparse"]["estimate"] for row in rows)
    if not rows or (work >= FEW_MACS and promised <= twins.SURE * work):
        return finish(made)
    with ThreadPoolExecutor(1) as beside:
        building = beside.submit(finish, made)
        twin = finish(begin(replace(keep, policy="never")))
        first = building.result()
    if (whole := twins.ratio(first, twin, inputs)) < twins.WON:
        return noted(first, sparse, whole)
    doubtful = frozenset(name for name, row in sparse.items() if row["estimate"] > twins.SURE)
    if doubtful and len(doubtful) < len(sparse):
        fewer = finish(begin(replace(keep, dense=doubtful)))
        if (second := twins.ratio(fewer, twin, inputs)) < twins.WON:
            return noted(fewer, sparse, second)
    return noted(dense(twin, first), sparse, whole)


def dense(twin: Build, made: Build) -> Build:
    """The dense twin, in whose rows stands why: what is said of the layers of `made` that have zeros."""
    zeros = {row["name"]: row["sparse"] for row in made.lowered.layers if row.get("sparse")}
    said = {name: lost(row) if row["kept"] else row for name, row in zeros.items()}
    rows = [row | {"sparse": said[row["name"]]} if row.get("name") in said else row for row in twin.lowered.layers]
    return replace(twin, lowered=replace(twin.lowered, layers=rows))


def noted(made: Build, sparse: Mapping[str, dict], whole: float) -> Build:
    """With what was measured of the whole program: its time over that of the dense one."""
    rows = [
        row | {"sparse": row["sparse"] | {"whole": round(whole, 3)}} if row.get("name") in sparse else row
        for row in made.lowered.layers
    ]
    return replace(made, lowered=replace(made.lowered, layers=rows))
