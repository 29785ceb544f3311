"""What passes have to say of a model's layers, in lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# What passes say of a layer that they took, and what is said of one that they left.
DONE = {
    "pruned": "is not pruned",
    "quantized": "stays float",
    "clustered": "keeps its weights",
    "factorized": "stays whole",
}
MOST = 10  # layers that were left, of a pass


def lines(notes: Sequence[dict], most: int = MOST) -> list[str]:
    """For each pass how many layers it took, and why not the others; `most` of these."""
    return [line for rows in runs(notes) for line in _of_pass(rows, most)]


def runs(notes: Sequence[dict]) -> Iterator[list[dict]]:
    """Notes of one pass each: where a layer comes again the pass runs again."""
    rows: list[dict] = []
    for note in notes:
        again = "layer" in note and note["layer"] in {row.get("layer") for row in rows}
        if rows and (again or note.get("pass") != rows[0].get("pass")):
            yield rows
            rows = []
        rows.append(note)
    if rows:
        yield rows


def _of_pass(notes: Sequence[dict], most: int) -> Iterator[str]:
    for done, left in DONE.items():
        rows = [row for row in notes if done in row]
        kept = [row for row in rows if not row[done]]
        if rows:
            yield f"  {rows[0].get('pass', 'the recipe')}: {len(rows) - len(kept)} of {len(rows)} layers {done}"
        yield from (f"    {row['layer']} {left}: {row.get('why') or row.get('not_pruned', '')}" for row in kept[:most])
        if len(kept) > most:
            yield f"    … and {len(kept) - most} more; --json has them all"
    yield from (_left(row) for row in notes if "macs_before" in row and "layer" not in row)


def _left(row: dict) -> str:
    """What a pass that removes parts of a model left of it."""
    work = (
        f"{row['macs'] / row['macs_before']:.1%} of the multiply-accumulates" if row["macs_before"] else "no products"
    )
    return f"  {row['pass']} leaves {work} and {row['parameters'] / row['parameters_before']:.1%} of the parameters"
