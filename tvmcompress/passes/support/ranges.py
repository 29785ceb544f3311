"""From what was seen of a tensor to the range its integers cover, and from that to scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmcompress.passes.support.histogram import Histogram

METHODS = ("min_max", "percentile", "mse", "entropy")
LEVELS = 256
PER_LEVEL = 4  # bins to a level when divergences are compared


@dataclass(frozen=True)
class Params:
    """real = (q - zero) * scale, q of uint8; `scale` is a value of float32."""

    scale: float
    zero: int


def params(low: float, high: float) -> Params:
    """uint8 parameters that cover low … high and hold zero exactly. A range of nothing gets scale 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (LEVELS - 1))
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        return Params(1.0, 0)
    return Params(float(scale), int(np.clip(np.rint(-low / np.float64(scale)), 0, LEVELS - 1)))


def choose(histogram: Histogram, method: str, percentile: float) -> tuple[float, float]:
    """The range low … high, both ends within what was seen, by one of METHODS."""
    if not np.isfinite(histogram.low):
        return 0.0, 0.0
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "min_max" or low == high:
        return low, high
    if method == "percentile":
        tail = 1 - percentile / 100
        return min(histogram.quantile(tail), 0.0), max(histogram.quantile(1 - tail), 0.0)
    return least_error(histogram, low, high) if method == "mse" else least_divergence(histogram, low, high)


def least_error(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The range whose integers have the least mean squared error over the histogram.

    The ends are searched in turn, since error at one end hardly depends on the other: 2 rounds of 50 candidates each.
    """
    used = np.nonzero(histogram.counts)[0]
    values, counts = np.clip(histogram.centers[used], low, high), histogram.counts[used].astype(np.float64)

    def error(candidate: tuple[float, float]) -> float:
        p = params(*candidate)
        q = np.clip(np.rint(values / p.scale) + p.zero, 0, LEVELS - 1)
        return float(np.dot(counts, (values - (q - p.zero) * p.scale) ** 2))

    best = (low, high)
    for _ in range(2):
        best = min(((best[0], high * f) for f in np.linspace(1, 0.1, 50)), key=error)
        best = min(((low * f, best[1]) for f in np.linspace(1, 0.1, 50)), key=error)
    return best


def least_divergence(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The range that loses least information: least Kullback-Leibler divergence from the clipped histogram.

    After Migacz, "8-bit inference with TensorRT", GTC 2017, with both ends shrunk by one factor.
    """
    edges = (histogram.start + np.arange(len(histogram.counts) + 1)) * histogram.width
    counts = histogram.counts.astype(np.float64)
    zero = -histogram.start  # relu makes many exact zeros, which any range holds exactly: they must not sway the choice
    if 0 <= zero < len(counts) - 1:
        counts[zero] = min(counts[zero], counts[zero + 1])
    below = np.concatenate([[0.0], np.cumsum(counts)])

    def divergence(factor: float) -> float:
        return divergence_of(edges, below, low * factor, high * factor)

    factor = min(np.linspace(1, 0.3, 71), key=divergence)
    return low * factor, high * factor


def divergence_of(edges: np.ndarray, below: np.ndarray, low: float, high: float) -> float:
    """Between the values clipped to low … high and the same spread evenly over each level.

    `below` counts the values under each of `edges`. Every range is cut into equally many bins: with fewer of them a
    divergence is smaller whatever the range.
    """
    inside = np.diff(np.interp(np.linspace(low, high, LEVELS * PER_LEVEL + 1), edges, below)).reshape(LEVELS, PER_LEVEL)
    spread = np.repeat(inside.mean(axis=1, keepdims=True), PER_LEVEL, axis=1)
    clipped = inside.copy()
    clipped[0, 0] += np.interp(low, edges, below)
    clipped[-1, -1] += below[-1] - np.interp(high, edges, below)
    clipped, spread = clipped / clipped.sum(), spread / max(spread.sum(), 1e-30)
    # Where clipping put values into an empty bin the divergence would be infinite; a small floor keeps it large.
    mask = clipped > 0
    return float(np.sum(clipped[mask] * np.log(clipped[mask] / np.maximum(spread[mask], 1e-12))))
