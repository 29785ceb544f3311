"""The passes: what the weights become. One a file; the file's name is the key in a recipe."""

from __future__ import annotations

import tvm

from tvmcompress.passes.cluster_weights import ClusterWeights
from tvmcompress.passes.factorize import Factorize
from tvmcompress.passes.fold_batch_norm import FoldBatchNorm
from tvmcompress.passes.fold_constants import FoldConstants
from tvmcompress.passes.prune_blocks import PruneBlocks
from tvmcompress.passes.prune_channels import PruneChannels
from tvmcompress.passes.prune_layers import PruneLayers
from tvmcompress.passes.prune_magnitude import PruneMagnitude
from tvmcompress.passes.prune_nm import PruneNm
from tvmcompress.passes.quantize_dynamic import QuantizeDynamic
from tvmcompress.passes.quantize_static import QuantizeStatic
from tvmcompress.passes.quantize_weights import QuantizeWeights
from tvmcompress.passes.support.base import Outcome, Pass
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.to_bf16 import ToBf16
from tvmcompress.passes.to_fp16 import ToFp16

PASSES: dict[str, type[Pass]] = {
    "fold_batch_norm": FoldBatchNorm,
    "fold_constants": FoldConstants,
    "prune_magnitude": PruneMagnitude,
    "prune_nm": PruneNm,
    "prune_blocks": PruneBlocks,
    "prune_channels": PruneChannels,
    "prune_layers": PruneLayers,
    "factorize": Factorize,
    "cluster_weights": ClusterWeights,
    "quantize_static": QuantizeStatic,
    "quantize_dynamic": QuantizeDynamic,
    "quantize_weights": QuantizeWeights,
    "to_fp16": ToFp16,
    "to_bf16": ToBf16,
}


def simplified(module: tvm.IRModule) -> tvm.IRModule:
    """What holds for every target: batch norms folded, constants that compression did not make folded."""
    for step in (FoldBatchNorm(), FoldConstants()):
        module = step(module, None).module
    return module


__all__ = ["PASSES", "Calibration", "Outcome", "Pass", "simplified", *(cls.__name__ for cls in PASSES.values())]
