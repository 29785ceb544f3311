"""Recipe: an ordered list of passes, read from TOML."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcompress.errors import RecipeError, did_you_mean
from tvmcompress.passes import PASSES, Pass

HEADER = r"""^\s*\[\[?\s*["']?(\w+)["']?\s*\]"""
SHIPPED = Path(__file__).parent / "recipes"
Names = list[str]  # inside Recipe `list` is a method


@dataclass(frozen=True)
class Recipe:
    """Passes in the order in which they run. In TOML each is a table, named after the pass and holding its options:

        description = "…"
        [fold_batch_norm]
        [quantize_static]
        method = "percentile"
        skip = ["conv1", "head_*"]

    A pass that runs several times is each time a table of an array (`[[quantize_weights]]`); passes run in the order of
    the text.
    """

    name: str
    passes: tuple[Pass, ...]
    description: str = ""

    @property
    def needs_samples(self) -> bool:
        """Whether a pass of it calibrates."""
        return any(step.needs_samples for step in self.passes)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike) -> Recipe:
        """A recipe that ships with this package, by name, or a TOML file. Raises RecipeError."""
        text = os.fspath(name_or_path)
        if text in cls.list():
            return cls.from_toml((SHIPPED / f"{text}.toml").read_text(encoding="utf-8"), text)
        path = Path(text)
        if not path.is_file():
            known = cls.list()
            near = did_you_mean(text, known) or f"; recipes: {', '.join(known)}, or the path of a .toml file"
            raise RecipeError(f"no recipe '{text}'{near}")
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"), path.stem)
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: not a text file") from error
        except OSError as error:
            raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    @classmethod
    def from_toml(cls, text: str, name: str) -> Recipe:
        """Raises RecipeError for anything that is not a recipe, in one line."""
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"not valid TOML: {error}") from error
        description = tables.pop("description", "")
        if not isinstance(description, str):
            raise RecipeError(f"description must be a text, got {description!r}")
        passes = tuple(in_order(text, {key: passes_of(key, value) for key, value in tables.items()}))
        if not passes:
            raise RecipeError(f"the recipe has no passes; there are {', '.join(PASSES)}")
        return cls(name, passes, description)

    @staticmethod
    def list() -> Names:
        """The names of the recipes that ship with this package."""
        return sorted(file.stem for file in SHIPPED.glob("*.toml"))

    def to_toml(self) -> str:
        """Every pass with every option, so that the file goes on meaning the same when a default changes."""
        lines = [f"description = {json.dumps(self.description, ensure_ascii=False)}"] if self.description else []
        keys = [step.key for step in self.passes]
        for step in self.passes:
            table = f"[[{step.key}]]" if keys.count(step.key) > 1 else f"[{step.key}]"
            options = [f"{f.name} = {toml(getattr(step, f.name))}" for f in dataclasses.fields(step)]
            lines += ["", table, *options]
        return "\n".join(lines).lstrip() + "\n"


def in_order(text: str, found: dict[str, list[Pass]]) -> list[Pass]:
    """Passes as they stand in the text: of tables that come again TOML's own order is that of the first."""
    headers = [key for key in re.findall(HEADER, text, re.MULTILINE) if key in found]
    for key, steps in found.items():
        if headers.count(key) not in (0, len(steps)):
            raise RecipeError(f"the order of '{key}' is not clear: write each time it comes as [[{key}]]")
    inline = [step for key, steps in found.items() if key not in headers for step in steps]
    left = {key: iter(steps) for key, steps in found.items()}
    return inline + [next(left[key]) for key in headers]


def passes_of(key: str, value: Any) -> list[Pass]:
    """The pass that a table stands for; an array of tables is the pass several times."""
    if key not in PASSES:
        near = did_you_mean(key, PASSES) or f"; there are {', '.join(PASSES)}"
        raise RecipeError(f"there is no pass '{key}'{near}")
    tables = value if isinstance(value, list) else [value]
    if not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f"'{key}' must be a table of options, got {value!r}; write [{key}] on a line of its own")
    return [PASSES[key].from_options(table) for table in tables]


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
