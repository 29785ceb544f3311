"""`load_torch`: an exported PyTorch program, or a live module, as a Model.

The work is in the modules beside this one, which import torch. This one does not: the package is whole without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmcompress.errors import MissingDependencyError
from tvmcompress.model import Model
from tvmcompress.spec import TensorSpec

if TYPE_CHECKING:
    import torch


def load_torch(
    source: str | os.PathLike | torch.nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Model:
    """Import a `.pt2` file written by `torch.export.save`, or a live module with `example_inputs`.

    `example_inputs` are the positional arguments of `forward` as a tuple, or its keyword arguments as a dict (tensors
    or arrays). Inputs keep the argument names of `forward`; outputs keep the keys of a returned dict, else they are
    `output_0`, `output_1` … Layers are called by their module's path. `shapes` binds dimensions that were exported as
    dynamic.

    Raises ModelError (a damaged or pickled file), OpenShapeError, UnsupportedOperatorsError, MissingDependencyError.
    """
    need_torch()
    from tvmcompress.frontend.torch import program

    if isinstance(source, str | os.PathLike):
        return program.load_file(source, shapes)
    return program.load_module(source, example_inputs, shapes)


def border_torch(path: str | os.PathLike) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as a `.pt2` file declares them, whether or not it can be imported."""
    need_torch()
    from tvmcompress.frontend.torch import archive, program

    return program.border(archive.read(path))


def need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("PyTorch models need torch: pip install 'tvmcompress[torch]'") from error
