"""A layer's weights by groups and channels, whatever its layout, and back."""

from __future__ import annotations

import numpy as np

from tvmcompress.passes.support.layers import Layer


def groups_of(layer: Layer) -> int:
    return 1 if layer.kind == "matmul" else int(layer.call.attrs.groups)


def by_channels(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """`weight` as (groups, outputs of a group, inputs of a group, taps)."""
    groups = groups_of(layer)
    moved = np.moveaxis(weight, (layer.channel, layer.inner), (0, 1))
    outputs, inputs = moved.shape[:2]
    if layer.kind == "conv_transpose":  # (I, O / groups, …)
        return moved.reshape(outputs, groups, inputs // groups, -1).swapaxes(0, 1)
    return moved.reshape(groups, outputs // groups, inputs, -1)


def in_layout(layer: Layer, parts: np.ndarray) -> np.ndarray:
    """The inverse of `by_channels`, for as many groups, outputs and inputs as there are in `parts`."""
    whole = layer.weights()
    taps = np.moveaxis(whole, (layer.channel, layer.inner), (0, 1)).shape[2:]
    groups, outputs, inputs = parts.shape[:3]
    if layer.kind == "conv_transpose":
        moved = parts.swapaxes(0, 1).reshape(outputs, groups * inputs, *taps)
    else:
        moved = parts.reshape(groups * outputs, inputs, *taps)
    return np.ascontiguousarray(np.moveaxis(moved, (0, 1), (layer.channel, layer.inner)), whole.dtype)
