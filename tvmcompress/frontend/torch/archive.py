"""Reading a `.pt2` archive without unpickling anything that could run code.

`torch.export.load` unpickles weights that are marked so, custom objects and, when its careful reader fails, the sample
inputs; it loads compiled libraries that an archive may carry; and it evaluates shape expressions. Each of these is
refused here, before it is called.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path

import torch

from tvmcompress.errors import ModelError

PLAIN_EXPRESSION = re.compile(r"[A-Za-z0-9_ +\-*/(),<>=!&|~%']*")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
SYMBOL = re.compile(r"[suz]f?\d+")
KNOWN_WORDS = frozenset(
    """Symbol Integer Rational integer positive nonnegative negative real True False oo int_oo
    Add Mul Pow Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv ModularIndexing IntTrueDiv FloatTrueDiv
    ToFloat TruncToInt FloorToInt CeilToInt RoundToInt Eq Ne Lt Le Gt Ge And Or Not""".split()  # noqa: SIM905
)
KNOWN_FOLDERS = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/", "extra/", ".data/")


def read(path: str | os.PathLike) -> torch.export.ExportedProgram:
    """The exported program in a file. Raises ModelError with one line on what is wrong with it."""
    path = Path(path)
    check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in many ways inside torch
        raise ModelError(f"{path}: torch.export.load cannot read it ({first_line(error)})") from error


def check(path: Path) -> None:
    """Raise ModelError unless the file is an archive of `torch.export.save` that holds plain data only."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError) as error:
        if path.is_file() and path.stat().st_size and path.open("rb").read(2) == b"\x80\x02":
            raise ModelError(f"{path}: {PICKLED}") from error
        raise ModelError(f"{path}: not an archive written by torch.export.save ({first_line(error)})") from error


PICKLED = "a pickled PyTorch file is not loaded, as it can run code; write the model with torch.export.save"


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    inner = [name.partition("/")[2] for name in names]
    if "archive_format" not in inner:
        if any(name.endswith("data.pkl") for name in inner):
            raise ModelError(f"{path}: {PICKLED}")
        raise ModelError(f"{path}: not an archive written by torch.export.save of PyTorch 2.8 or later")
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise ModelError(f"{path}: damaged archive: members that are there twice")
    for name, member in zip(names, inner):
        if "/" in member and not member.startswith(KNOWN_FOLDERS):
            raise ModelError(f"{path}: holds '{member}', which is not data; write the model with torch.export.save")
        if member.startswith(("data/weights/", "data/constants/")) and member.endswith(".json"):
            check_tensors(path, json.loads(archive.read(name)))
        elif member.startswith("models/"):
            check_expressions(path, json.loads(archive.read(name)))
        elif member.startswith("data/sample_inputs/"):
            check_samples(path, archive.read(name))


def check_tensors(path: Path, config: dict) -> None:
    """Every weight and constant is raw bytes with a shape."""
    for name, entry in config.get("config", {}).items():
        if entry.get("use_pickle") or not str(entry.get("path_name", "")).startswith(("weight_", "tensor_")):
            raise ModelError(
                f"{path}: '{name}' is stored as a pickled object, which is not loaded; export it as a plain tensor"
            )


def check_expressions(path: Path, value: object) -> None:
    """Shape expressions are arithmetic on symbols: torch evaluates them as Python."""
    if isinstance(value, dict):
        text = value.get("expr_str")
        if isinstance(text, str) and not is_arithmetic(text):
            raise ModelError(f"{path}: '{text[:40]}' is not a shape expression")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            check_expressions(path, item)


def is_arithmetic(text: str) -> bool:
    words = IDENTIFIER.findall(text)
    return bool(PLAIN_EXPRESSION.fullmatch(text)) and all(w in KNOWN_WORDS or SYMBOL.fullmatch(w) for w in words)


def check_samples(path: Path, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # pickle, zip and torch errors
        raise ModelError(
            f"{path}: its sample inputs are not plain tensors, and pickled objects are not loaded"
        ) from error


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
