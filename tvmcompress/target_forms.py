"""The ways in which a target may be written, each turned into the fields of a Target.

aarch64-linux-gnu:cortex-a72+crc                          a triple, a CPU, features
llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72          TVM's old text form
cuda -arch=sm_87 -host='llvm -mtriple=aarch64-linux-gnu'
{"kind": "llvm", "mtriple": …, "mattr": ["+neon"]}        TVM's dictionary, as JSON
{"triple": …, "cpu": …}                                   a target file's keys, as JSON
x86-64-v4,x86-64-v3                                       several of the above, but TVM's and JSON: builds of one target
"""

from __future__ import annotations

import json
import re
import shlex

from tvmcompress import cpu
from tvmcompress.errors import TargetError, did_you_mean

TRIPLES = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "armv7l-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
}
BASELINE = {"x86_64": "x86-64", "aarch64": "generic", "armv7l": "generic", "riscv64": "generic-rv64"}
_ALIASES = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "arm": "armv7l",
    "armhf": "armv7l",
    "armv7": "armv7l",
    "armv7a": "armv7l",
}

# TVM's option -> our field. Options of TVM that say nothing about the hardware are let through.
_LLVM = {"mtriple": "triple", "mcpu": "cpu", "mattr": "features", "num-cores": "cores", "mfloat-abi": "float_abi"}
_CUDA = {"arch": "cuda_arch", "host": "host"}
_IGNORED = {
    *("kind", "keys", "tag", "device", "model", "libs", "mabi", "opt-level", "vector-width"),
    *(
        "max_num_threads",
        "max_threads_per_block",
        "max_shared_memory_per_block",
        "thread_warp_size",
        "registers_per_block",
    ),
}


def parse(text: str) -> dict | None:
    """The fields that `text` stands for, or None when it has none of the forms above. Raises TargetError."""
    if text.startswith("{"):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise TargetError(f"target: not JSON: {error}") from error
        return from_dictionary(values)
    kind, *options = _split(text) or [""]
    if kind in ("llvm", "cuda"):
        return from_dictionary({"kind": kind, **_options(options)})
    if normal_arch(text.partition("-")[0].partition(":")[0].partition("+")[0]) in TRIPLES:
        return from_triple(text)
    return None


def listed(text: str) -> list[str]:
    """The targets of a list with commas; the whole text where its commas are of another kind: JSON, TVM's, `+a,+b`."""
    if text.startswith("{") or text.split(" ")[0] in ("llvm", "cuda"):
        return [text]
    return [part.strip() for part in re.split(r",(?!\s*\+)", text)]


def from_triple(text: str) -> dict:
    """`aarch64-linux-gnu`, then optionally `:cpu`, then any number of `+feature`."""
    head, *features = text.split("+")
    triple, _, name = head.partition(":")
    features = [feature.strip(" ,") for feature in features]
    return {"name": text, "triple": triple, "cpu": name, "features": features}


def from_dictionary(values: dict) -> dict:
    """TVM's dictionary, or our own keys (told apart by their names)."""
    if values.get("kind") != "llvm" and not values.keys() & (_LLVM.keys() | _CUDA.keys()):
        if values.get("kind") == "cuda" and "cuda_arch" not in values:
            raise TargetError("target: 'cuda' wants its architecture, for instance 'cuda -arch=sm_87'")
        return values
    kind = values.get("kind", "llvm")
    known = _CUDA if kind == "cuda" else _LLVM
    out: dict = {}
    for key, value in values.items():
        if key in known:
            out[known[key]] = value
        elif key not in _IGNORED and not key.startswith("feature."):
            raise TargetError(f"target: unknown option '{key}' of {kind}{did_you_mean(key, [*known, *_IGNORED])}")
    if kind == "cuda":
        host = out.pop("host", None) or {"kind": "llvm"}
        return {**(parse(host) or {} if isinstance(host, str) else from_dictionary(host)), **out, "kind": "cuda"}
    out.setdefault("triple", TRIPLES.get(cpu.architecture(), ""))
    if "features" in out:
        features = out["features"].split(",") if isinstance(out["features"], str) else out["features"]
        out["features"] = [str(feature).strip().removeprefix("+") for feature in features if str(feature).strip()]
    if isinstance(out.get("cores"), str) and out["cores"].isdigit():
        out["cores"] = int(out["cores"])
    return out


def normal_arch(name: str) -> str:
    name = name.lower()
    return _ALIASES.get(name, name)


def canonical_triple(triple: str, where: str) -> str:
    """One of TRIPLES, whatever the vendor's field and the spelling; raises TargetError for other systems."""
    arch, *rest = triple.split("-")
    arch = normal_arch(arch)
    if arch not in TRIPLES:
        raise TargetError(f"{where}: no such triple '{triple}'{did_you_mean(triple, TRIPLES.values())}")
    system = [part for part in rest if part not in ("unknown", "pc", "none", "conda")]
    if system and system not in (["linux"], TRIPLES[arch].split("-")[1:]):
        raise TargetError(f"{where}: '{triple}' is not supported, only Linux with glibc: '{TRIPLES[arch]}'")
    return TRIPLES[arch]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise TargetError(f"target '{text[:80]}': {error}") from error


def _options(words: list[str]) -> dict[str, str]:
    """`-key=value`, `--key=value` or `-key value`."""
    options: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        key, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not key:
            raise TargetError(f"target: wanted an option like -mcpu=cortex-a72, got '{word}'")
        if not equals:
            if not words:
                raise TargetError(f"target: option '{word}' wants a value")
            value = words.pop(0)
        options[key] = value
    return options
