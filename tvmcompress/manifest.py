"""The package's manifest: plain JSON, and the check that it says what it must.

What `compile` hands in (`REQUIRED`):

    name      what the package is called in reports
    target    the target as resolved, as JSON; at least {"name": …}
    needs     {"arch": "x86_64", "features": [as the device spells them], "gpu": null or "sm_80"}
    inputs    [{"name", "shape", "dtype"}] in the order of the library's parameters
    outputs   the same, in the order of its results; a dimension that depends on data is null
    source    {"name", "format", "bytes", "sha256"} of the model's file
    applied   the passes that the model has been through, as text
    notes     what they had to say, a list of JSON objects
    layers    [{"name", "kind", "macs", "bytes", "integer", …}], whatever is known of each
    entry     {"prepare": bool}: whether the library has a function `prepare(stored weights …) -> weights`

and what it may add:

    tolerance  {"relative", "absolute", "quanta"} for the golden outputs
    kernels    [{"name", "family", "macs", "arithmetic", "key", "decisions"}] of the library's functions that multiply:
               the multiply-accumulates of one call, of which instructions ("float32", "float16", "bfloat16" or "int8"),
               what the kernel is known by, and what was decided for it (see kernels.choices)
    macs       {"total", "integer"} of the model
    memory     the bytes that a deployment holds: {"weights": as kernels read them, "arena": for what is in between}
    fallbacks  [{"program", "reason"}]: functions of the library that have no schedule of their family
    builds     of a package with several libraries: for each, the most demanding first, its `target` and whatever else
               the package itself does not say so. `entry` then has also "library", the member, and "weights", the
               indices of those that the build takes; the package's own `target` lists all builds.

The package adds `schema`, `versions`, `weights` and `golden` (where each array lies; those of weights that are stored
smaller than they are have a `coding`, see there), and `members` (size and SHA-256 of each).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from tvmcompress.errors import PackageError

SCHEMA = 1
CODED = 2  # the schema of a package with coded weights: what cannot unpack them must not take them for plain ones
TOLERANCE = {"relative": 1e-3, "absolute": 1e-5, "quanta": 1}
REQUIRED: dict[str, type] = {
    "name": str,
    "target": dict,
    "needs": dict,
    "inputs": list,
    "outputs": list,
    "source": dict,
    "applied": list,
    "notes": list,
    "layers": list,
    "entry": dict,
}
WRITTEN: dict[str, type] = {
    "tolerance": dict,
    "versions": dict,
    "weights": list,
    "golden": dict,
    "members": dict,
}
FIELDS: dict[str, dict[str, type | tuple]] = {
    "needs": {"arch": str, "features": list, "gpu": (str, type(None))},
    "source": {"name": str, "format": str, "bytes": int, "sha256": str},
    "entry": {"prepare": bool},
    "tolerance": {"relative": (int, float), "absolute": (int, float), "quanta": int},
    "golden": {"inputs": list, "outputs": list},
    "memory": {"weights": int, "arena": int},
}
OF_A_BUILD: dict[str, type | tuple] = {"library": str, "weights": list}  # in `entry`, where there are several
SHARED = {"name", "inputs", "outputs", "source", "schema", "builds", *WRITTEN}  # what no build has of its own
LISTS: dict[str, dict[str, type | tuple]] = {
    "inputs": {"name": str, "shape": list, "dtype": str},
    "outputs": {"name": str, "shape": list, "dtype": str},
    "weights": {"name": str, "shape": list, "dtype": str, "offset": int},
    "layers": {"name": str},
    "kernels": {"name": str, "family": str, "macs": int, "arithmetic": str},
}


def check(value: Any, where: str, written: bool) -> dict:
    """`value` itself when it has every field, of the right kind. Raises PackageError naming the first that is wrong."""
    if not isinstance(value, dict):
        raise PackageError(f"{where}: the manifest is not a table")
    if written and value.get("schema") not in (SCHEMA, CODED):
        reads = f"{SCHEMA} and {CODED}"
        raise PackageError(f"{where}: the manifest has schema {value.get('schema')!r}, this version reads {reads}")
    _fields(value, REQUIRED | WRITTEN if written else REQUIRED, f"{where}: manifest")
    for key, fields in FIELDS.items():
        if key in value:
            _fields(value[key], fields, f"{where}: manifest: {key}")
    for key, fields in LISTS.items():
        for index, row in enumerate(value.get(key, [])):
            _fields(row, fields, f"{where}: manifest: {key}[{index}]")
            if any(not isinstance(d, int | None) or (d or 0) < 0 for d in row.get("shape", [])):
                raise PackageError(f"{where}: manifest: {key}[{index}]: 'shape' holds what is not a dimension")
    given = {key: kind for key, kind in OF_A_BUILD.items() if key in value["entry"]}
    _fields(value["entry"], given, f"{where}: manifest: entry")
    if not isinstance(rows := value.get("builds", []), list):
        raise PackageError(f"{where}: manifest: 'builds' is of the wrong kind ({type(rows).__name__})")
    if "builds" in value and not rows:
        raise PackageError(f"{where}: manifest: 'builds' is empty")
    for index, row in enumerate(rows):
        _fields(row, {"target": dict}, f"{where}: manifest: builds[{index}]")
        if wrong := SHARED & row.keys():
            raise PackageError(f"{where}: manifest: builds[{index}]: '{min(wrong)}' is the package's, not a build's")
        _fields(row["target"], {"name": str}, f"{where}: manifest: builds[{index}]: target")
    for contents in of_builds(value) if rows else ():
        _fields(check(contents, where, written)["entry"], OF_A_BUILD, f"{where}: manifest: entry of a build")
    return value


def schema(weights: Sequence[dict]) -> int:
    """The schema of a package with these rows of weights."""
    return CODED if any("coding" in row for row in weights) else SCHEMA


def of_builds(contents: dict) -> list[dict]:
    """The manifest of each build, as if it were the package's only one; the most demanding first."""
    common = {key: value for key, value in contents.items() if key != "builds"}
    return [common | row for row in contents.get("builds", [{}])]


def one_of_several(contents: Sequence[dict], target: dict) -> dict:
    """One manifest from those of several builds, the most demanding first: the inverse of `of_builds`."""
    common = {key: value for key, value in contents[-1].items() if all(key in of for of in contents)}
    common["target"] = target
    return {**common, "builds": [{k: v for k, v in of.items() if common.get(k) != v} for of in contents]}


def _fields(value: Any, fields: Mapping[str, type | tuple], where: str) -> None:
    if not isinstance(value, dict):
        raise PackageError(f"{where}: wanted a table, got {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise PackageError(f"{where}: '{name}' is missing")
        if not isinstance(value[name], kind):
            raise PackageError(f"{where}: '{name}' is of the wrong kind ({type(value[name]).__name__})")


def parse(text: bytes, where: str) -> dict:
    try:
        return check(json.loads(text), where, written=True)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{where}: the manifest is not JSON") from error


def dump(value: dict) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def versions() -> dict[str, str]:
    """Of this project and of what its results depend on."""
    found = {}
    for name in ("tvmcompress", "apache-tvm", "apache-tvm-ffi", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
