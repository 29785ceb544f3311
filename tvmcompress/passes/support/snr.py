"""How far a quantized program is from the float one, layer by layer."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import numpy as np
import tvm

from tvmcompress.ir import graph
from tvmcompress.passes.support.calibration import Arrays, Calibration, with_outputs

OUTPUT_BYTES = 64 << 20  # of outputs kept for comparison, of each program


def layer_snr(
    before: tvm.IRModule, after: tvm.IRModule, names: Mapping[str, str], samples: Calibration
) -> dict[str, float | None]:
    """The signal-to-noise ratio in dB of each tensor of `names` (name in `before` -> name in `after`).

    10 log10(sum of squares of the float tensor / sum of squares of the difference), over the samples that were kept, or
    as many as there is room for; None where the float tensor is all zeros or nothing differs. Each noise is what all
    layers up to there have caused.
    """
    exact = with_outputs(before, list(names))
    each = 4 * sum(int(np.prod(graph.shape(r), dtype=np.int64)) for r in graph.results(exact))
    few = samples.few()[: max(1, OUTPUT_BYTES // max(each, 1))]
    samples.report(0, 2 * len(few), "comparing with float")
    # One after the other: two programs at a time would hold the weights twice.
    wanted = outputs(exact, few, 0, samples)
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    found = outputs(with_outputs(after, list(names.values())), few, len(few), samples)
    for exact_arrays, arrays in zip(wanted, found):
        for i, (a, b) in enumerate(zip(exact_arrays, arrays)):
            signal[i] += np.square(a, dtype=np.float64).sum()
            noise[i] += np.square(np.subtract(a, b, dtype=np.float64)).sum()
    return {
        name: round(float(10 * np.log10(s / n)), 2) if s > 0 and n > 0 else None
        for name, s, n in zip(names, signal, noise)
    }


def outputs(mod: tvm.IRModule, few: list[Arrays], done: int, samples: Calibration) -> list[Arrays]:
    """The results of `mod` for each sample."""
    run = samples.executor(mod)
    results = []
    for number, sample in enumerate(few, done + 1):
        results.append(run(sample))
        samples.report(number, 2 * len(few), "comparing with float")
    del run
    gc.collect()  # a virtual machine refers to itself, and it holds all weights
    return results
