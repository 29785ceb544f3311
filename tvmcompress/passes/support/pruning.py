"""What all passes that prune share: which weights they take, and what they report. How is said by their patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import RecipeError, SampleError
from tvmcompress.ir import graph
from tvmcompress.ir.sparsity import matrix_of, sparsity
from tvmcompress.passes.support.base import Outcome, Pass
from tvmcompress.passes.support.calibration import Calibration
from tvmcompress.passes.support.layers import LAYERS, Layer, layers, macs, matched
from tvmcompress.passes.support.masks import GreatestBlocks, Pattern, Tiling, counts
from tvmcompress.passes.support.matrices import Weight, gathered
from tvmcompress.passes.support.repair import new_weights, repaired
from tvmcompress.passes.support.select import select

TABLES = ("relax.take", "relax.gather_elements", "relax.gather_nd")


class Pruning(Pass):
    """A pass that sets weights to zero. Subclasses have these options, and say by `patterns` which weights stay."""

    only: tuple[str, ...]
    skip: tuple[str, ...]
    skip_kinds: tuple[str, ...]
    skip_first: bool
    min_size: int
    repair: str
    damping: float

    @property
    def needs_samples(self) -> bool:
        return self.repair != "none"

    def patterns(self, weights: Sequence[Weight]) -> list[Pattern | str]:
        """For each weight the pattern to which it is pruned, or the reason why it is not."""
        raise TypeError(f"{self.key} does not say what it prunes")

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        if self.needs_samples and samples is None:
            raise SampleError(f"{self.key}: repair = '{self.repair}' needs samples: a few dozen typical inputs")
        mod = graph.rewrite(mod, lambda *_: None)  # one form: names are unique, tuples are inlined
        chosen, reasons = select(mod, self.key, self.skip, self.skip_kinds, self.why_not(mod))
        refuse_compressed(self.key, chosen, reasons)
        weights = gathered(chosen)
        patterns = self.patterns(weights)
        jobs = [(w, p) for w, p in zip(weights, patterns) if not isinstance(p, str)]
        left = {layer.name: p for w, p in zip(weights, patterns) if isinstance(p, str) for layer in w.layers}
        reasons |= left
        if not jobs:
            return Outcome(mod, notes(mod, self.key, reasons, {}))
        found = repaired(mod, jobs, self.repair, self.damping, samples)
        rows: dict[str, dict] = {}
        for (weight, _), matrix in zip(jobs, found.matrices):
            about = {"density": np.count_nonzero(matrix) / matrix.size, "pattern": str(weight.sparsity(matrix))}
            rows |= {layer.name: {**about, "repair": found.how[layer.name]} for layer in weight.layers}
        for name, error in found.errors.items():
            rows[name]["error"] = error
        after = new_weights(jobs, found).written(mod)
        return Outcome(after, notes(mod, self.key, reasons, rows))

    def why_not(self, mod: tvm.IRModule) -> Callable[[Layer], str]:
        names = [layer.name for layer in layers(mod)]
        wanted = {name for pattern in self.only for name in matched(names, pattern, self.key, "only")}
        first = first_convolutions(mod) if self.skip_first else set()

        def reason(layer: Layer) -> str:
            if wanted and layer.name not in wanted:
                return "not named in 'only'"
            if layer.weight is None:
                return "its weights are not constant"
            if layer.kind == "depthwise":
                return "depthwise: few weights, and an output has no others to go by"
            if layer.channel < 0:
                return "its weight is a vector"
            if layer.name in first:
                return "reads the model's input, and skip_first = true"
            return f"smaller than min_size = {self.min_size}" if layer.weights().size < self.min_size else ""

        return reason


def check_density(owner: str, density: float) -> None:
    if not 0 < density <= 1:
        raise RecipeError(f"{owner}: density must be above 0 and at most 1 (the share that stays), got {density}")


def first_convolutions(mod: tvm.IRModule) -> set[str]:
    """Names of the convolutions that read an input of the model with no layer or table between."""
    near: set[relax.Var] = set(mod["main"].params)
    found = set()
    for var, expr in graph.definitions(mod).items():
        name = graph.op_name(expr)
        if name in LAYERS:
            if name != "relax.matmul" and expr.args[0] in near:
                found.add(var.name)
        elif name not in TABLES and all(v in near for v in relax.analysis.free_vars(expr)):
            near.add(var)
    return found


def greatest_blocks(
    weights: Sequence[Weight], block: tuple[int, int], density: float, scope: str, norm: str, through: bool = False
) -> list[Pattern | str]:
    """The pattern that keeps a share of each weight's blocks, or of those of all weights together."""
    tilings = [Tiling.of(w.matrix.shape, block, w.height, w.tap, through) for w in weights]
    scores = [t.scores(np.abs(w.matrix), norm) for t, w in zip(tilings, weights)]
    found: list[Pattern | str] = []
    for tiling, score, count in zip(tilings, scores, counts(scores, density, scope) if scores else []):
        alive = int(np.count_nonzero(score))
        if count < alive:
            found.append(GreatestBlocks(tiling, count, norm))
        elif scope == "layer":
            what = "weights" if block == (1, 1) else "blocks"
            found.append(f"as sparse already: {alive / score.size:.3g} of its {what} are not zero")
        else:
            found.append("nothing of it lies below the threshold of all layers")
    return found


def refuse_compressed(owner: str, chosen: Sequence[Layer], reasons: Mapping[str, str]) -> None:
    """Raises RecipeError when what could be pruned was compressed before."""
    compressed = [name for name, why in reasons.items() if why == "already compressed"]
    if compressed and not chosen:
        raise RecipeError(
            f"{owner}: the weights of '{compressed[0]}' and {len(compressed) - 1} other layers are compressed already; "
            f"prune first: put [{owner}] before what quantizes"
        )


def notes(
    mod: tvm.IRModule, owner: str, reasons: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]
) -> tuple[dict, ...]:
    """One row for each layer: pass, layer, kind, macs, pruned, not_pruned (the reason, empty if it was).

    With constant weights also density_before, density, pattern, and kept_zeros, those that were there. Where it was
    pruned also repair and, with samples, error: what of its output (without the bias) samples say is lost, as a share:
    the root of E|W x - V x - shift|^2 / E|W x|^2.
    """
    found = []
    for layer in layers(mod):
        row: dict[str, Any] = {
            "pass": owner,
            "layer": layer.name,
            "kind": layer.kind,
            "macs": macs(layer) if graph.has_static_shape(layer.call) else None,
            "pruned": layer.name in rows,
            "not_pruned": reasons.get(layer.name, ""),
        }
        if layer.weight is not None and layer.channel >= 0:
            array = graph.value(layer.call.args[layer.weight])
            before = sparsity(matrix_of(array, layer.channel, layer.inner), array.shape[layer.inner])
            zeros = array.size - np.count_nonzero(array)
            row |= {"density_before": before.density, "density": before.density, "pattern": str(before)}
            row |= {"kept_zeros": int(zeros), **rows.get(layer.name, {})}
        found.append(row)
    return tuple(found)
