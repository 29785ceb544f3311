"""Pruning without training: the weights that stay make up for those that go, by samples without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from tvmcompress.passes.support import obs
from tvmcompress.passes.support.biases import along_output, mean_shift
from tvmcompress.passes.support.calibration import Calibration, Seen, observe
from tvmcompress.passes.support.layers import Layer
from tvmcompress.passes.support.masks import Pattern
from tvmcompress.passes.support.matrices import Weight
from tvmcompress.passes.support.patches import Moments, Patches, patches_of
from tvmcompress.passes.support.rewriting import NewWeights

Job = tuple[Weight, Pattern]

ROWS = 8192  # of inputs of a layer, over all samples
SAMPLES = 64  # taken for their number where that is not known
MOMENTS = 512 << 20  # bytes of moments gathered at a time
REPAIRS = ("none", "bias", "obs")


@dataclass
class Repaired:
    """What a repair returns: matrices for the weights, what is to be added to the outputs of layers (shaped as these
    want it), and for each layer's name a word on what was done.
    """

    matrices: list[np.ndarray]
    shifts: dict[str, np.ndarray]
    how: dict[str, str]


def repaired(
    mod: tvm.IRModule, jobs: Sequence[Job], repair: str, damping: float, samples: Calibration | None
) -> tuple[Repaired, NewWeights]:
    """The weights pruned and repaired, and the same by name, to be written into `mod`."""
    if repair == "obs" and samples is not None:
        found = surgeon(mod, jobs, damping, samples)
    else:
        found = Repaired([by_magnitude(w.matrix, p) for w, p in jobs], {}, {})
        found.how = {layer.name: "none" for weight, _ in jobs for layer in weight.layers}
        if repair == "bias" and samples is not None:
            correct_biases(mod, jobs, found, samples)
    return found, new_weights(jobs, found)


def by_magnitude(matrix: np.ndarray, pattern: Pattern) -> np.ndarray:
    return np.where(pattern.mask(np.abs(matrix)), matrix, np.float32(0))


def new_weights(jobs: Sequence[Job], found: Repaired) -> NewWeights:
    arrays = [weight.array(matrix) for (weight, _), matrix in zip(jobs, found.matrices)]
    named = {layer.name: array for (weight, _), array in zip(jobs, arrays) for layer in weight.layers}
    return NewWeights(named, found.shifts)


def correct_biases(mod: tvm.IRModule, jobs: Sequence[Job], found: Repaired, samples: Calibration) -> None:
    """Take back by how much the mean of each output was shifted. See Nagel et al., "Data-free quantization through
    weight equalization and bias correction", 2019; here the means are measured.
    """
    lost: list[tuple[Layer, np.ndarray]] = []
    for (weight, _), matrix in zip(jobs, found.matrices):
        for layer in weight.layers:
            found.how[layer.name] = why_no_bias(weight, layer) or "bias"
            if found.how[layer.name] == "bias":
                lost.append((layer, weight.array(weight.matrix - matrix)))
    seen = {layer.live[0].name: Seen(channel_axis=layer.input_axis) for layer, _ in lost}
    observe(mod, seen, samples)
    for layer, gone in lost:
        mean = seen[layer.live[0].name].mean
        assert mean is not None
        found.shifts[layer.name] = mean_shift(layer, gone, mean)


def why_no_bias(weight: Weight, layer: Layer) -> str:
    if len(weight.layers) > 1:
        return "none: other layers have the same weight"
    return "" if layer.weight == 1 else "none: its weight comes first"


def surgeon(mod: tvm.IRModule, jobs: Sequence[Job], damping: float, samples: Calibration) -> Repaired:
    """Pruned and repaired by `obs`, with biases for what shifts the means.

    Layers are taken in rounds, as many as moments fit in memory; a round sees the inputs that the pruned layers before
    it make. Samples that can be read only once make one round.
    """
    found = Repaired([], {}, {})
    current, renamed = mod, dict[str, str]()
    most = -(-ROWS // (samples.total or SAMPLES))
    for number, part in enumerate(rounds(jobs, MOMENTS if not samples.once else 0)):
        if number:
            so_far = new_weights(jobs[: len(found.matrices)], found)
            current = so_far.written(mod)
            renamed = dict(so_far.ends.values())
        moments = gather(current, part, renamed, most, samples)
        for job in part:
            repair_one(job, moments, damping, found)
    return found


def rounds(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """In order, parts whose moments take at most `most` bytes (0: all in one), each of one job at least."""
    part: list[Job] = []
    taken = 0
    for job in jobs:
        size = sum(Moments(p, 1).bytes for p in {patches_of(layer) for layer in job[0].layers} if p is not None)
        if part and most and taken + size > most:
            yield part
            part, taken = [], 0
        part.append(job)
        taken += size
    yield part


def gather(
    mod: tvm.IRModule, jobs: Sequence[Job], renamed: dict[str, str], most: int, samples: Calibration
) -> dict[Patches, Moments]:
    """What each layer's inputs are like; `renamed`: tensors that are called otherwise in `mod`."""
    wanted = {patches_of(layer) for weight, _ in jobs for layer in weight.layers}
    moments = {patches: Moments(patches, most) for patches in wanted if patches is not None}
    seen: dict[str, Several] = {}
    for patches, entry in moments.items():
        seen.setdefault(renamed.get(patches.tensor, patches.tensor), Several()).entries.append(entry)
    if seen:
        observe(mod, seen, samples)
    return moments


class Several:
    """Observers of one tensor."""

    def __init__(self) -> None:
        self.entries: list[Moments] = []

    def add(self, array: np.ndarray, low: float, high: float) -> None:
        for entry in self.entries:
            entry.add(array, low, high)


def repair_one(job: Job, moments: dict[Patches, Moments], damping: float, found: Repaired) -> None:
    weight, pattern = job
    all_patches = [patches_of(layer) for layer in weight.layers]
    patches = all_patches[0]
    if patches is None:
        found.matrices.append(by_magnitude(weight.matrix, pattern))
        found.how |= {layer.name: "none: no plain product with a matrix" for layer in weight.layers}
        return
    seen = [moments[p] for p in all_patches if p is not None]
    alone = len(seen) == 1
    count = sum(entry.count for entry in seen)
    hessians = []
    for group in range(patches.groups):
        # With a bias to make up for means, what is left to make up for is the spread around them.
        parts = [entry.covariance(group) if alone else entry.second(group) * (entry.count / count) for entry in seen]
        hessians.append(obs.damped(sum(parts[1:], parts[0]), damping, count))
    matrix = obs.prune(weight.matrix, hessians, pattern)
    found.matrices.append(matrix)
    found.how |= {layer.name: "obs" for layer in weight.layers}
    if alone:
        lost = (weight.matrix - matrix).reshape(patches.groups, -1, patches.inputs)
        shift = np.einsum("goi,gi->go", lost, seen[0].mean()).reshape(-1)
        found.shifts[weight.layer.name] = along_output(weight.layer, shift)
