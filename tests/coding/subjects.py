"""Arrays such as packages hold: the kinds of weights that passes and kernels leave."""

from __future__ import annotations

import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np

SIZE = 200_000


def bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(f"u{array.dtype.itemsize}")


@functools.cache
def normal(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(size, np.float32) * 0.03


@functools.cache
def mask(density: float = 0.1) -> np.ndarray:
    return np.random.default_rng(2).random(SIZE) < density


def pruned(dense: np.ndarray) -> np.ndarray:
    """Zeros, and none of them negative, as a product with the mask would have them."""
    return np.where(mask(), dense, np.float32(0))


@functools.cache
def clustered(count: int = 16) -> np.ndarray:
    """Each to the nearest of values that are about as far apart as k-means puts them."""
    centres = np.quantile(normal(), (np.arange(count) + 0.5) / count)
    return centres[np.abs(normal()[:, None] - centres).argmin(1)].astype(np.float32)


def ascending() -> np.ndarray:
    """Where the weights of rows of 2000 are that are not zero, row by row."""
    return (np.flatnonzero(mask()) % 2000).astype(np.uint16)


def packed_indices() -> np.ndarray:
    """Two places in a codebook of 16 to a byte."""
    places = np.searchsorted(np.unique(clustered()), clustered()).astype(np.uint8)
    return places[::2] | places[1::2] << 4


ARRAYS: dict[str, Callable[[], np.ndarray]] = {
    "float32": normal,
    "float32, 90% zeros": lambda: pruned(normal()),
    "float32, zeros of both signs": lambda: normal() * mask(),
    "float32, 16 values": clustered,
    "float32, 90% zeros, 16 values": lambda: pruned(clustered()),
    "float32, not zeros": lambda: normal()[mask()],
    "int8": lambda: np.clip(np.rint(normal() * 1000), -127, 127).astype(np.int8),
    "int8, 90% zeros": lambda: (np.clip(np.rint(normal() * 1000), -127, 127) * mask()).astype(np.int8),
    "bfloat16": lambda: normal().astype(ml_dtypes.bfloat16),
    "float16, 90% zeros": lambda: pruned(normal()).astype(np.float16),
    "places that ascend": ascending,
    "the same in 32 bits": lambda: ascending().astype(np.int32),
    "packed places": packed_indices,
    "zeros": lambda: np.zeros((100, 2000), np.float32),
}
