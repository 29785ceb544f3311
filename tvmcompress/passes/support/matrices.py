"""Constant weights as matrices (outputs, inputs), see `ir.sparsity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmcompress.ir.sparsity import Sparsity, matrix_of, sparsity, weight_of
from tvmcompress.passes.support.layers import Layer


@dataclass(eq=False)
class Weight:
    """A constant as a matrix, and the layers that read it."""

    layers: list[Layer]
    matrix: np.ndarray
    shape: tuple[int, ...]

    @property
    def layer(self) -> Layer:
        return self.layers[0]

    @property
    def tap(self) -> int:
        """Inputs of one tap."""
        return self.shape[self.layer.inner]

    @property
    def height(self) -> int:
        """Outputs of one group of a convolution."""
        groups = int(self.layer.call.attrs.groups) if self.layer.kind == "conv" else 1
        return len(self.matrix) // groups

    def array(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix in the form in which the layer reads it."""
        return weight_of(matrix.astype(np.float32), self.shape, self.layer.channel, self.layer.inner)

    def sparsity(self, matrix: np.ndarray) -> Sparsity:
        return sparsity(matrix, self.tap)


def gathered(chosen: Sequence[Layer]) -> list[Weight]:
    """Each constant once."""
    found: dict[tuple, Weight] = {}
    for layer in chosen:
        key = layer.weight_key()
        if key in found:
            found[key].layers.append(layer)
        else:
            array = layer.weights()
            found[key] = Weight([layer], matrix_of(array, layer.channel, layer.inner), array.shape)
    return list(found.values())
