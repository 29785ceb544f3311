"""PruneBlocks: whole blocks of weights become zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvmcompress.errors import RecipeError
from tvmcompress.passes.support.base import option
from tvmcompress.passes.support.masks import NORMS, Pattern
from tvmcompress.passes.support.matrices import Weight
from tvmcompress.passes.support.pruning import Pruning, check_density, greatest_blocks
from tvmcompress.passes.support.repair import REPAIRS


@dataclass(frozen=True)
class PruneBlocks(Pruning):
    """conv(x, W) -> conv(x, W * mask), where the blocks of the greatest norms stay, whole

    A block is `block` = [outputs, inputs]: so many neighbouring output channels by so many neighbouring inputs of one
    tap, or with taps = "all" of all taps of a kernel: a block is then whole kernels, which also Winograd's convolution
    can leave out. `density` is the share of blocks that stay, of each layer or with scope = "global" of all layers
    together. Blocks lie within a group of a convolution; where they do not divide it, ragged = "pad" lets the last
    ones be smaller (as if zeros were beyond), "skip" leaves the layer. Which layers are taken, what becomes of zeros
    that are there already, and `repair` are as in `prune_magnitude`.

    Cost: none by itself; a kernel reads one index for a block. After Gray et al., "GPU kernels for block-sparse
    weights", 2017.
    """

    block: tuple[int, ...] = option((16, 4), "outputs and inputs of a block")
    taps: str = option("each", "of a kernel, that a block lies in", choices=("each", "all"))
    density: float = option(0.5, "share of the blocks that stay, above 0 and at most 1")
    norm: str = option("l2", "of blocks, by which they are compared", choices=NORMS)
    scope: str = option("layer", "whether each layer has this density or all together", choices=("layer", "global"))
    ragged: str = option("pad", "what is done where blocks do not divide a layer", choices=("pad", "skip"))
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
        if len(self.block) != 2 or not all(1 <= size <= 4096 for size in self.block):
            raise RecipeError(
                f"prune_blocks: block must be [outputs, inputs], each 1 … 4096, got {list(self.block)}; try [16, 4]"
            )

    def patterns(self, weights: Sequence[Weight]) -> list[Pattern | str]:
        misfits = {weight: self.misfit(weight) for weight in weights}
        fitting = [weight for weight in weights if not misfits[weight]]
        block = self.block[0], self.block[1]
        through = self.taps == "all"
        found = dict(zip(fitting, greatest_blocks(fitting, block, self.density, self.scope, self.norm, through)))
        return [misfits[weight] or found[weight] for weight in weights]

    def misfit(self, weight: Weight) -> str:
        """Why the layer is skipped, if it is."""
        sizes = weight.height, weight.tap
        if self.ragged == "pad" or all(size % part == 0 for size, part in zip(sizes, self.block)):
            return ""
        fits = [max(d for d in range(1, part + 1) if size % d == 0) for size, part in zip(sizes, self.block)]
        return f"block {list(self.block)} does not divide its {sizes[0]} outputs and {sizes[1]} inputs; try {fits}"
