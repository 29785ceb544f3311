"""A histogram that needs no range beforehand, so that a stream of samples is read once and in constant memory."""

from __future__ import annotations

import numpy as np

BINS = 4096  # 16 bins to each of 256 levels when a range is not clipped at all


class Histogram:
    """Counts of values in bins of width 2^k. When the range outgrows the bins, neighbours merge and k grows by one.

    Bin edges are whole multiples of the width, so zero is always an edge and merging is exact: the order in which
    values arrive does not matter beyond the final width.
    """

    def __init__(self, bins: int = BINS):
        self.counts = np.zeros(bins, np.int64)
        self.exponent: int | None = None
        self.start = 0  # the first bin holds values from start * width on
        self.low, self.high = np.inf, -np.inf

    @property
    def width(self) -> float:
        return 2.0 ** (self.exponent or 0)

    @property
    def centers(self) -> np.ndarray:
        return (self.start + np.arange(len(self.counts)) + 0.5) * self.width

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        """Count `values` (finite, any shape), whose extremes are `low` and `high`."""
        if values.size == 0:
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.widen()
        index = np.floor(values.reshape(-1) * np.float64(1 / self.width)).astype(np.int64) - self.start
        # A value exactly at `high` may sit on the edge after the last bin.
        np.clip(index, 0, len(self.counts) - 1, out=index)
        self.counts += np.bincount(index, minlength=len(self.counts))

    def widen(self) -> None:
        """Make the bins cover low … high."""
        bins = len(self.counts)
        if self.exponent is None:
            span = max(self.high - self.low, abs(self.high) * 1e-6, 1e-30)
            self.exponent = int(np.ceil(np.log2(span / (bins / 2))))
            self.start = int(np.floor(self.low / self.width))
        while np.floor(self.high / self.width) - np.floor(self.low / self.width) >= bins:
            self.merge()
        self.shift()

    def merge(self) -> None:
        """Double the width: bins 2i and 2i+1, counted from zero, become one."""
        bins = len(self.counts)
        assert self.exponent is not None
        index = (self.start + np.arange(bins)) // 2
        start = int(index[0])
        self.counts = np.bincount(index - start, weights=self.counts, minlength=bins).astype(np.int64)
        self.start, self.exponent = start, self.exponent + 1

    def shift(self) -> None:
        """Move the window, which is wide enough, so that it begins at or below `low` and reaches `high`."""
        bins = len(self.counts)
        first, last = int(np.floor(self.low / self.width)), int(np.floor(self.high / self.width))
        if self.start <= first and last < self.start + bins:
            return
        moved = np.zeros(bins, np.int64)
        used = np.nonzero(self.counts)[0]
        moved[used + self.start - first] = self.counts[used]
        self.counts, self.start = moved, first

    def quantile(self, q: float) -> float:
        """The value below which the share `q` of all counts lies, linear within a bin, inside low … high."""
        cumulative = np.cumsum(self.counts)
        wanted = q * cumulative[-1]
        i = min(int(np.searchsorted(cumulative, wanted)), len(self.counts) - 1)
        before = cumulative[i] - self.counts[i]
        inside = (wanted - before) / max(self.counts[i], 1)
        return float(np.clip((self.start + i + inside) * self.width, self.low, self.high))
