"""ToFp16: weights and products in float16."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.sixteen import narrow


@dataclass(frozen=True)
class ToFp16(Pass):
    """conv(x, W) -> conv(astype(x, float16), W as float16) with float32 sums and result

    For convolutions and matrix products; everything else (softmax, normalisation, reductions, additions) and the
    model's inputs and outputs stay float32, so nothing sensitive suffers (11 bits of precision, up to 65504).
    Embeddings and other constants of at least `min_size` elements are stored in float16 and made wide where they are
    read. Weights take half.
    """

    min_size: int = option(1024, "constants outside of layers with fewer elements stay float32", low=0)
    skip: tuple[str, ...] = option((), "names of layers to leave float32; * and ? are wildcards")

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        return narrow(mod, self.key, "float16", self.skip, self.min_size)
