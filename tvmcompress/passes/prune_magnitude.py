"""PruneMagnitude: the smallest weights become zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvmcompress.passes.support.base import option
from tvmcompress.passes.support.masks import Pattern
from tvmcompress.passes.support.matrices import Weight
from tvmcompress.passes.support.pruning import Pruning, check_density, greatest_blocks
from tvmcompress.passes.support.repair import REPAIRS


@dataclass(frozen=True)
class PruneMagnitude(Pruning):
    """conv(x, W) -> conv(x, W * (|W| >= t))

    t is such that `density` of the weights stay: of each layer, or with scope = "global" of all layers together, where
    layers of small weights lose most. Convolutions and matrix products with constant weights are taken, but no
    depthwise ones and, as long as `skip_first`, no convolution that reads the model's input: these have few weights,
    and what they lose nothing behind them brings back. Weights that are zero already stay zero and count; a layer that
    is as sparse already is left.

    With samples, repair = "obs" chooses and changes weights so that the layer's outputs change least (`support.obs`),
    "bias" corrects the mean of each output. Prune before quantizing: zeros stay zeros there.

    Cost: none by itself; what is zero is stored in less, and kernels may leave it out. After Han et al., "Learning both
    weights and connections for efficient neural networks", 2015, without their training.
    """

    density: float = option(0.5, "share of the weights that stay, above 0 and at most 1")
    scope: str = option("layer", "whether each layer has this density or all together", choices=("layer", "global"))
    repair: str = option("none", "what makes up for the loss; all but none need samples", choices=REPAIRS)
    damping: float = option(0.01, "of repair obs: how little samples are trusted", low=1e-6, high=10.0)
    only: tuple[str, ...] = option((), "names of layers to prune, * and ? are wildcards; none: all")
    skip: tuple[str, ...] = option((), "names of layers to leave dense; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), "kinds of layers to leave dense: conv, conv_transpose, matmul")
    skip_first: bool = option(True, "leave convolutions that read the model's input dense")
    min_size: int = option(1024, "weights with fewer elements stay dense", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.key, self.density)

    def patterns(self, weights: Sequence[Weight]) -> list[Pattern | str]:
        return greatest_blocks(weights, (1, 1), self.density, self.scope, "l1")
