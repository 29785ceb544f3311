"""Pruning a layer so that its outputs change least: the optimal brain surgeon, on a matrix (outputs, inputs).

With H = E[x x^T] of the layer's inputs, the loss is E|W x - V x|^2 = sum over outputs of (w - v) H (w - v)^T. Removing
one weight w_i costs w_i^2 / [H^-1]_ii if the others make up for it (Hassibi and Stork, "Second order derivatives for
network pruning: optimal brain surgeon", 1993). `sweep` removes columns from left to right, the rest making up, as in
Frantar and Alistarh, "SparseGPT", 2023; since what lies to the left is then fixed, `refine` ends it: for the mask that
was found it goes to the least loss by conjugate gradients. On a small network trained on digits that was worth 4 to 6
dB of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tvmcompress.passes.support.masks import GreatestBlocks, Pattern

LAZY = 128  # columns after which the rest of the matrix is brought up to date
SMALL = 64  # rows of a triangle that NumPy inverts
STEPS = 20  # of conjugate gradients
ENOUGH = 1e-12  # squared residual of a row, relative to its first, at which they end

Choose = Callable[[int, int, np.ndarray], np.ndarray]  # (first column, last, scores) to a mask


def prune(weights: np.ndarray, hessians: list[np.ndarray], pattern: Pattern) -> np.ndarray:
    """`weights` (outputs, inputs) pruned to `pattern`, what is left made up; zeros stay zero.

    `hessians`: H of each group of a convolution, which has outputs / groups rows; positive definite (see `damped`).
    """
    height = len(weights) // len(hessians)
    groups = [slice(i * height, (i + 1) * height) for i in range(len(hessians))]
    factors = [inverse_factor(h) for h in hessians]
    alive = weights != 0
    scores = np.concatenate([np.square(weights[rows] / np.diag(u)) for rows, u in zip(groups, factors)])
    if isinstance(pattern, GreatestBlocks):
        pattern = replace(pattern, norm="l1")  # the losses of a block's weights add up
    kept = pattern.mask(scores)  # says how many weights each part of the matrix keeps; which ones, the sweep
    out = np.empty_like(weights)
    for rows, factor, hessian in zip(groups, factors, hessians):

        def choose(first: int, last: int, losses: np.ndarray, rows: slice = rows) -> np.ndarray:
            return pattern.part(kept, rows, first, last).mask(losses * alive[rows, first:last])

        swept, mask = sweep(weights[rows], factor, pattern.spans(), choose)
        out[rows] = refine(weights[rows], swept, mask, hessian)
    return out


def damped(hessian: np.ndarray, damping: float, rows: int) -> np.ndarray:
    """H with `damping` times the mean of its diagonal added there, more where it was seen in fewer rows than it has.

    All zeros (an input that never is anything else) become the identity: then magnitudes decide.
    """
    mean = float(np.diag(hessian).mean())
    if mean <= 0:
        return np.eye(len(hessian))
    return hessian + np.eye(len(hessian)) * (mean * damping * max(1.0, len(hessian) / max(rows, 1)))


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U = H^-1."""
    # Of the reversed matrix the lower factor is, reversed again, an upper one R with R R^T = H.
    return triangular_inverse(np.ascontiguousarray(np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]))


def triangular_inverse(upper: np.ndarray) -> np.ndarray:
    """By halves, so that nearly all of it is products of matrices; NumPy's own inverse takes six times the work."""
    size = len(upper)
    if size <= SMALL:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    found = np.zeros_like(upper)
    found[:half, :half] = triangular_inverse(upper[:half, :half])
    found[half:, half:] = triangular_inverse(upper[half:, half:])
    found[:half, half:] = -found[:half, :half] @ (upper[:half, half:] @ found[half:, half:])
    return found


def sweep(weights: np.ndarray, factor: np.ndarray, spans: list[int], choose: Choose) -> tuple[np.ndarray, np.ndarray]:
    """Weights and mask after all columns were gone through. `spans`: where ranges begin that are chosen together."""
    weights = weights.astype(np.float64)
    mask = np.zeros(weights.shape, np.bool_)
    width = weights.shape[1]
    ends = dict(zip(spans, [*spans[1:], width]))
    diagonal = np.diag(factor)
    edges = [0, *(s for s in spans if s > 0)]
    for first, last in chunks(edges, width):
        errors = np.zeros((len(weights), last - first))
        for i in range(first, last):
            if i in ends:
                ahead = slice(i, ends[i])
                mask[:, ahead] = choose(i, ends[i], np.square(weights[:, ahead] / diagonal[ahead]))
            errors[:, i - first] = np.where(mask[:, i], 0, weights[:, i]) / diagonal[i]
            weights[:, i] = np.where(mask[:, i], weights[:, i], 0)
            weights[:, i + 1 : last] -= np.outer(errors[:, i - first], factor[i, i + 1 : last])
        weights[:, last:] -= errors @ factor[first:last, last:]
    return weights, mask


def chunks(edges: list[int], width: int) -> list[tuple[int, int]]:
    """Ranges of about LAZY columns that begin and end at `edges`."""
    begins: list[int] = []
    for edge in edges:
        if not begins or edge >= begins[-1] + LAZY:
            begins.append(edge)
    return list(zip(begins, [*begins[1:], width]))


def refine(weights: np.ndarray, start: np.ndarray, mask: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """From `start` towards the least loss of all matrices that are zero outside `mask`; rows are independent."""
    found = start.copy()
    diagonal, least = np.diag(hessian), np.finfo(np.float64).tiny
    residual = ((weights - found) @ hessian) * mask
    direction = residual / diagonal
    norm = (residual * direction).sum(axis=1, keepdims=True)
    enough = np.maximum(norm * ENOUGH, least)
    for _ in range(STEPS):
        going = norm > enough  # a row that is there stays: steps of nothing but rounding errors lead away
        if not going.any():
            break
        image = (direction @ hessian) * mask
        step = np.where(going, norm / np.maximum((direction * image).sum(axis=1, keepdims=True), least), 0)
        found += step * direction
        residual -= step * image
        ahead = residual / diagonal
        before, norm = norm, np.where(going, (residual * ahead).sum(axis=1, keepdims=True), 0)
        direction = ahead + norm / np.maximum(before, least) * direction
    return found
