"""What layers put out on samples, as second moments of their channels."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import tvm

from tvmcompress.passes.support.calibration import Calibration, extremes, with_outputs
from tvmcompress.passes.support.layers import Layer


def output_axis(layer: Layer) -> int:
    """The axis of a layer's result that runs over output channels."""
    if layer.call.op.name == "relax.matmul":
        return -1 if layer.weight == 1 else -2
    return str(layer.call.attrs.data_layout).index("C")


def output_moments(mod: tvm.IRModule, layers: Sequence[Layer], samples: Calibration) -> dict[str, np.ndarray]:
    """By layer E[y y^T] (channels, channels), float64, over all samples, rows and pixels, no bias added.

    Raises SampleError for NaN or infinity.
    """
    names = [layer.name for layer in layers]
    run = samples.executor(with_outputs(mod, names))
    sums: dict[str, np.ndarray] = {}
    rows = dict.fromkeys(names, 0)
    for number, sample in enumerate(samples.stream("measuring layers")):
        for layer, array in zip(layers, run(sample)):
            extremes(array, layer.name, number)
            channels = array.shape[output_axis(layer)]
            columns = np.moveaxis(array, output_axis(layer), -1).reshape(-1, channels)
            sums[layer.name] = sums.get(layer.name, 0.0) + (columns.T @ columns).astype(np.float64)
            rows[layer.name] += len(columns)
    del run
    gc.collect()  # a virtual machine refers to itself, and it holds all weights
    return {name: total / max(rows[name], 1) for name, total in sums.items()}
