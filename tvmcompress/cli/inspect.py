"""tvmcompress inspect"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tvmcompress import process
from tvmcompress.cli import options, screen

if TYPE_CHECKING:
    from tvmcompress.inspection import Inspection
    from tvmcompress.package import Package


@click.command(epilog="Example:\n\n\b\n  tvmcompress inspect model.onnx --target rpi4")
@options.model_options
@click.option("--target", help="Also say what share of the work would run in integers there.")
@click.option("--layers", is_flag=True, help="List every layer; of a package those with zeros, and its arrays.")
@click.option("--load", is_flag=True, help="Also load a package here, and say how long that takes.")
@options.json_option
def command(
    model: Path, shapes: dict, values: dict, target: str | None, layers: bool, load: bool, json_path: str | None
) -> None:
    """What a model is: inputs, outputs, parameters, work, and operators that cannot be imported.

    MODEL is an .onnx, .pt2 or .tflite file, what `compress` wrote, or a package.
    """
    if is_package(model):
        from tvmcompress.package import Package

        package = Package.load(model)
        value = {"sizes": package.sizes, **package.manifest}
        if load:
            from tvmcompress.deployment import deploy

            value["load_ms"] = deploy(package).load_ms
        screen.result(value, lambda: _package(value, package.builds, layers), json_path)
        return
    if load:
        raise click.UsageError("--load is for packages")
    process.import_without_torch("tvm")
    from tvmcompress.inspection import inspect

    found = inspect(model, target, shapes or None, values or None)
    screen.result(found.to_json(), lambda: _model(found, layers), json_path)


def is_package(path: Path) -> bool:
    """By content: the mark that every tar has."""
    try:
        with open(path, "rb") as file:
            return file.read(512)[257:262] == b"ustar"
    except OSError:
        return False  # the loader of models says what is wrong with it


def _model(found: Inspection, layers: bool) -> RenderableType:
    parts: list[RenderableType] = [_pairs(found.rows())]
    if layers and found.layers:
        parts.append(_table(("layer", "operator", "MACs", "in", "zeros", "pattern"), found.layer_rows()))
    elif sparse := found.sparse_rows():
        parts.append(_table(("sparse layer", "density", "pattern"), sparse))
    return Group(*parts)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for title in titles:
        table.add_column(title, justify="right" if title in ("MACs", "zeros", "density") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _package(value: dict, builds: tuple[Package, ...], layers: bool) -> RenderableType:
    from tvmcompress.report import bytes_text, ms_text

    def tensors(kind: str) -> list[tuple[str, str]]:
        return [(kind[:-1], f"{t['name']}: {t['dtype']} {'x'.join(map(str, t['shape']))}") for t in value[kind]]

    needs, source, target = value["needs"], value["source"], value["target"]
    rows = [("package", value["name"]), ("target", f"{target.get('name', '')} ({needs['arch']})"), *tensors("inputs")]
    rows += tensors("outputs")
    rows += [(part, bytes_text(size)) for part, size in value["sizes"].items() if part != "unpacked"]
    rows += _storage(value["weights"])
    rows += [("made from", f"{source['name']}, {bytes_text(source['bytes'])}, SHA-256 {source['sha256']}")]
    rows += [("passes applied", "; ".join(value["applied"]) or "none")]
    if pruned := _pruned(value["notes"]):
        rows += [("pruned", pruned)]
    if macs := value.get("macs"):
        share = f"{macs['integer'] / macs['total']:.1%}" if macs["total"] else "-"
        rows += [("multiply-adds", f"{macs['total']:,}, {share} in integers")]
    if memory := value.get("memory"):
        rows += [("memory of weights", bytes_text(memory["weights"])), ("between layers", bytes_text(memory["arena"]))]
    if ms := value.get("load_ms"):
        parts = f"{ms_text(ms['unpack'])} unpacking weights, {ms_text(ms['prepare'])} bringing them into kernels' form"
        rows += [("loading", f"{ms_text(ms['load'])}, of it {parts}")]
    rows += [("needs", " ".join(needs["features"]) or "nothing special")]
    if len(builds) > 1:
        rows += [("build", _build(build, needs["features"])) for build in builds]
    rows += [("versions", ", ".join(f"{name} {version}" for name, version in value["versions"].items()))]
    return Group(_pairs(rows), *_kernels(value, builds), _arrays(value["weights"])) if layers else _pairs(rows)


def _kernels(value: dict, builds: tuple[Package, ...]) -> list[RenderableType]:
    """Which kernels layers with zeros or shared values have got, of every build."""
    from tvmcompress import compressed_table

    if len(builds) < 2:
        return compressed_table.parts(value.get("layers", []))
    return compressed_table.of_builds(builds)


def _storage(weights: list[dict]) -> list[tuple[str, str]]:
    """For each way in which arrays are stored how many and how large; nothing when all lie there as they are."""
    from tvmcompress import arrays
    from tvmcompress.report import bytes_text

    ways: dict[str, list[dict]] = {}
    for row in weights:
        ways.setdefault(f"{row['dtype']} {arrays.how(row)}", []).append(row)
    sizes = {way: [sum(map(count, rows)) for count in (arrays.nbytes, arrays.stored)] for way, rows in ways.items()}
    total = sum(unpacked for unpacked, _ in sizes.values())
    told = [
        ("  stored", f"{way}: {len(ways[way])} arrays, {bytes_text(unpacked)} in {bytes_text(stored)}")
        for way, (unpacked, stored) in sorted(sizes.items(), key=lambda item: -item[1][1])
    ]
    return [("weights unpacked", bytes_text(total)), *told] if any("coding" in row for row in weights) else []


def _arrays(weights: list[dict]) -> Table:
    """Every array as the file holds it."""
    from tvmcompress import arrays
    from tvmcompress.report import bytes_text

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("array", "dtype", "shape", "stored", "bytes", "unpacked"):
        table.add_column(title, justify="right" if title in ("bytes", "unpacked") else "left")
    for row in weights:
        sizes = (bytes_text(arrays.stored(row)), bytes_text(arrays.nbytes(row)))
        shape = "x".join(map(str, row["shape"])) or "scalar"
        table.add_row(*map(Text, (row["name"], row["dtype"], shape, arrays.how(row), *sizes)))
    return table


def _pruned(notes: list[dict]) -> str:
    """`12 of 14 layers, to densities 0.1 … 0.2: unstructured`, or nothing."""
    layers = {note["layer"] for note in notes if "pattern" in note}
    rows = {note["layer"]: note for note in notes if note.get("pruned") and "pattern" in note}
    if not rows:
        return ""
    patterns = ", ".join(sorted({note["pattern"] for note in rows.values()}))
    densities = [note["density"] for note in rows.values()]
    return f"{len(rows)} of {len(layers)} layers, to densities {min(densities):.3g} … {max(densities):.3g}: {patterns}"


def _build(build: Package, common: list[str]) -> str:
    """One line; `common` are the features that every build needs."""
    from tvmcompress.report import bytes_text

    more = " ".join(sorted({*build.manifest["needs"]["features"]} - {*common}))
    here = "" if build.refusal() else ", runs here"
    return f"{build.target}, {bytes_text(build.library_bytes)}{here}" + f"; needs also {more}" * bool(more)


def _pairs(rows: list[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for left, right in rows:
        table.add_row(Text(left), Text(right))
    return table
