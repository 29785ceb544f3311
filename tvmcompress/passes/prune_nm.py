"""PruneNm: of each M neighbouring inputs N weights stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmcompress.errors import RecipeError
from tvmcompress.passes.support.base import option
from tvmcompress.passes.support.masks import NOfM, Pattern
from tvmcompress.passes.support.matrices import Weight
from tvmcompress.passes.support.pruning import Pruning
from tvmcompress.passes.support.repair import REPAIRS


@dataclass(frozen=True)
class PruneNm(Pruning):
    """matmul(x, W) -> matmul(x, W * mask), where of each `m` neighbours along the inputs the `n` greatest stay

    For convolutions the inputs are those of one tap (a place of the kernel). Where `m` does not divide them, the last
    group is shorter and keeps as many. Which layers are taken, zeros that are there already, and `repair` are as in
    `prune_magnitude`.

    Cost: none by itself; n / m of the weights are stored and multiplied. After Zhou et al., "Learning N:M fine-grained
    structured sparse neural networks from scratch", and Mishra et al., "Accelerating sparse deep neural networks", both
    2021, without their training.
    """

    n: int = option(2, "weights that stay of each group", low=1)
    m: int = option(4, "weights of a group", low=2, high=256)
    repair: str = option("none", "what makes up for the loss; all but none need samples", choices=REPAIRS)
    damping: float = option(0.01, "of repair obs: how little samples are trusted", low=1e-6, high=10.0)
    only: tuple[str, ...] = option((), "names of layers to prune, * and ? are wildcards; none: all")
    skip: tuple[str, ...] = option((), "names of layers to leave dense; * and ? are wildcards")
    skip_kinds: tuple[str, ...] = option((), "kinds of layers to leave dense: conv, conv_transpose, matmul")
    skip_first: bool = option(True, "leave convolutions that read the model's input dense")
    min_size: int = option(1024, "weights with fewer elements stay dense", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            raise RecipeError(f"prune_nm: n must be less than m, got {self.n}:{self.m}; try {self.m // 2}:{self.m}")

    def patterns(self, weights: Sequence[Weight]) -> list[Pattern | str]:
        return [self.pattern(weight) for weight in weights]

    def pattern(self, weight: Weight) -> Pattern | str:
        pattern = NOfM(self.n, self.m, weight.tap, weight.matrix.shape[1])
        alive = np.count_nonzero(weight.matrix)
        if np.count_nonzero(pattern.mask(np.abs(weight.matrix))) == alive:
            return f"has no more than {self.n} of {self.m} weights already"
        return pattern
