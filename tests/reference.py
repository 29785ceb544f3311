"""NumPy references for the kernels: slow, plain, int64 or float64 inside."""

from __future__ import annotations

import numpy as np

from tvmcompress.kernels.conv2d import Conv2d


def conv2d(x: np.ndarray, weight: np.ndarray, conv: Conv2d, fill: int = 0) -> np.ndarray:
    """x (n, h, w, c), weight (oc, c/groups, kh, kw): (n, oh, ow, oc) in float64 or int64."""
    wide = np.int64 if x.dtype.kind in "iu" else np.float64
    top, left, bottom, right = conv.padding
    (sh, sw), (dh, dw), (oh, ow) = conv.strides, conv.dilation, conv.out
    padded = np.pad(x.astype(wide), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    group_out, group_in = conv.oc // conv.groups, conv.c // conv.groups
    out = np.zeros((conv.n, oh, ow, conv.oc), wide)
    for g in range(conv.groups):
        for i in range(conv.kernel[0]):
            for j in range(conv.kernel[1]):
                rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
                cols = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
                data = padded[:, rows, cols, g * group_in : (g + 1) * group_in]
                taps = weight[g * group_out : (g + 1) * group_out, :, i, j].astype(wide)
                out[..., g * group_out : (g + 1) * group_out] += np.einsum("nhwc,oc->nhwo", data, taps)
    return out


def requantize(acc: np.ndarray, factor: np.ndarray, zero: int, dtype: str, relu: bool = False) -> np.ndarray:
    """clip(round_half_even(float32(acc) * factor) + zero)."""
    info = np.iinfo(dtype)
    steps = np.rint(acc.astype(np.float32) * factor.astype(np.float32)) + np.float32(zero)
    return np.clip(steps, zero if relu else info.min, info.max).astype(dtype)
