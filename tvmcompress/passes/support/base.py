"""What every pass is: a frozen dataclass whose fields are its options, checked when it is made."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any

import tvm

from tvmcompress.errors import RecipeError, did_you_mean
from tvmcompress.passes.support.calibration import Calibration


@dataclass(frozen=True)
class Outcome:
    """What a pass returns: the new program, and one row for each layer that the report should speak of."""

    module: tvm.IRModule
    notes: tuple[dict, ...] = ()


def option(
    default: Any, doc: str, *, low: float | None = None, high: float | None = None, choices: tuple | None = None
) -> Any:
    """A field of a pass with the range that it may have."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Pass:
    """A rewrite of a program: `pass_(mod, samples) -> Outcome`. `mod` is never changed.

    `samples` is None unless `needs_samples`. A value of the wrong type or range raises RecipeError when the pass is
    made, so a recipe is checked when it is read.
    """

    @property
    def needs_samples(self) -> bool:
        """Whether it calibrates, with the options that it has."""
        return False

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for spec in dataclasses.fields(self):
            value = checked(self.key, spec, kinds[spec.name], getattr(self, spec.name))
            object.__setattr__(self, spec.name, value)

    @property
    def key(self) -> str:
        """The pass's name in TOML: `quantize_static` for QuantizeStatic."""
        return key_of(type(self))

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        raise TypeError(f"{self.key} does not say what it does")

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Pass:
        """The pass with options as TOML gives them. Raises RecipeError for a name it does not have."""
        known = [spec.name for spec in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                has = ", ".join(known) or "none"
                raise RecipeError(
                    f"{key_of(cls)} has no option '{name}'{did_you_mean(name, known) or f'; its options: {has}'}"
                )
        return cls(**options)


def key_of(cls: type[Pass]) -> str:
    """Snake case of a pass's class name."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def checked(owner: str, spec: dataclasses.Field, kind: Any, value: Any) -> Any:
    """`value` as the field `spec` wants it, or RecipeError."""
    value = converted(owner, spec.name, kind, value)
    meta = spec.metadata
    if meta.get("choices") and value not in meta["choices"]:
        wanted = ", ".join(repr(choice) for choice in meta["choices"])
        near = did_you_mean(value, meta["choices"]) if isinstance(value, str) else ""
        raise RecipeError(f"{owner}: {spec.name} must be one of {wanted}, got {value!r}{near}")
    low, high = meta.get("low"), meta.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"{low} or more" if high is None else f"{high} or less" if low is None else f"in {low} … {high}"
        raise RecipeError(f"{owner}: {spec.name} must be {bounds}, got {value!r}")
    return value


def converted(owner: str, name: str, kind: Any, value: Any) -> Any:
    """`value` in the field's own type; a TOML list becomes a tuple, an int may stand for a float."""
    if typing.get_origin(kind) is tuple:
        items = list(value) if isinstance(value, list | tuple) else None
        inner = typing.get_args(kind)[0]
        if items is None or not all(isinstance(item, inner) and not isinstance(item, bool) for item in items):
            raise RecipeError(f"{owner}: {name} must be a list of {inner.__name__}, got {value!r}")
        return tuple(items)
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise RecipeError(f"{owner}: {name} must be {allowed[0].__name__}, got {value!r}")
    return value
