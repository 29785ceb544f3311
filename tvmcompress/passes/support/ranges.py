"""From what was seen of a tensor to the range its integers cover, and from that to scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmcompress.passes.support.histogram import Histogram

METHODS = ("min_max", "percentile", "mse", "entropy")
LEVELS = 256


@dataclass(frozen=True)
class Params:
    """real = (q - zero) * scale, q of uint8."""

    scale: np.float32
    zero: int


def params(low: float, high: float) -> Params:
    """uint8 parameters that cover low … high and hold zero exactly. A range of nothing gets scale 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (LEVELS - 1))
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        return Params(np.float32(1), 0)
    return Params(scale, int(np.clip(np.rint(-low / np.float64(scale)), 0, LEVELS - 1)))


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
    centers, counts = histogram.centers, histogram.counts.astype(np.float64)
    best, least = (low, high), np.inf
    for factor in np.linspace(1, 0.3, 70):
        candidate = (low * factor, high * factor)
        divergence = divergence_of(centers, counts, *candidate)
        if divergence < least:
            best, least = candidate, divergence
    return best


def divergence_of(centers: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    inside = (centers >= low) & (centers <= high)
    if inside.sum() < 2:
        return np.inf
    within = counts[inside]
    reference = within.copy()
    reference[0] += counts[centers < low].sum()
    reference[-1] += counts[centers > high].sum()
    p = params(low, high)
    level = np.clip(np.rint(centers[inside] / p.scale) + p.zero, 0, LEVELS - 1).astype(np.int64)
    total = np.bincount(level, weights=within, minlength=LEVELS)
    bins = np.bincount(level, weights=within > 0, minlength=LEVELS)
    spread = np.where(within > 0, (total / np.maximum(bins, 1))[level], 0.0)
    reference, spread = reference / reference.sum(), spread / max(spread.sum(), 1e-30)
    # Where clipping put counts into an empty bin the divergence would be infinite; a small floor keeps it large.
    mask = reference > 0
    return float(np.sum(reference[mask] * np.log(reference[mask] / np.maximum(spread[mask], 1e-9))))
