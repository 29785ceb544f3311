"""How far a quantized program is from the float one, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm

from tvmcompress.passes.support.calibration import Calibration, with_outputs


def layer_snr(
    before: tvm.IRModule, after: tvm.IRModule, names: Mapping[str, str], samples: Calibration
) -> dict[str, float | None]:
    """The signal-to-noise ratio in dB of each tensor of `names` (name in `before` -> name in `after`).

    10 log10(sum of squares of the float tensor / sum of squares of the difference), over the samples that were kept;
    None where the float tensor is all zeros or nothing differs. Each noise is what all layers up to there have caused.
    """
    few = samples.few()
    was = samples.executor(with_outputs(before, list(names)))
    now = samples.executor(with_outputs(after, list(names.values())))
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for number, sample in enumerate(few):
        samples.report(number, len(few), "comparing with float")
        for i, (a, b) in enumerate(zip(was(sample), now(sample))):
            signal[i] += np.square(a, dtype=np.float64).sum()
            noise[i] += np.square(np.subtract(a, b, dtype=np.float64)).sum()
    samples.report(len(few), len(few), "comparing with float")
    return {
        name: round(float(10 * np.log10(s / n)), 2) if s > 0 and n > 0 else None
        for name, s, n in zip(names, signal, noise)
    }
