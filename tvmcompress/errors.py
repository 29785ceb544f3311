"""Every error this project raises on purpose.

    TvmcompressError              exit code 1   a fault of ours
    ├── UsageError                exit code 2   an argument that cannot be right
    │   ├── RecipeError                         a recipe that cannot be carried out
    │   └── TargetError                         a target that does not exist or cannot be compiled for
    ├── InputError                exit code 4   the model or the data is at fault
    │   ├── ModelError                          a model file that cannot be read
    │   │   ├── UnsupportedOperatorsError       operators that have no lowering, all of them
    │   │   └── OpenShapeError                  a dimension that was left open
    │   ├── SampleError                         inputs of the wrong name, dtype, shape or value
    │   └── PackageError                        a package that is damaged, unsafe or for other hardware
    └── MissingDependencyError    exit code 5   something is not installed

A message is one or two lines: what was wanted, what was got, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TvmcompressError(Exception):
    """The root of the tree above."""

    exit_code = 1


class UsageError(TvmcompressError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class TargetError(UsageError):
    pass


class InputError(TvmcompressError):
    exit_code = 4


class ModelError(InputError):
    pass


class UnsupportedOperatorsError(ModelError):
    """Raised once with every operator that cannot be imported.

    `operators` is a list of (operator, domain, count, name of the first node).
    """

    def __init__(self, operators: list[tuple[str, str, int, str]]):
        self.operators = operators
        rows = ", ".join(
            f"{f'{domain}::' * bool(domain)}{op} ({count}x, first at '{node}')" for op, domain, count, node in operators
        )
        super().__init__(f"{len(operators)} unsupported operator(s): {rows}")


class OpenShapeError(ModelError):
    pass


class SampleError(InputError):
    pass


class PackageError(InputError):
    pass


class MissingDependencyError(TvmcompressError):
    exit_code = 5


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.5)
    return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""
