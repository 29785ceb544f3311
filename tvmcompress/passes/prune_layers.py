"""PruneLayers: residual blocks that change what passes them least, dropped."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import ModelError, RecipeError, SampleError
from tvmcompress.ir import graph
from tvmcompress.passes.support.base import Outcome, Pass, option
from tvmcompress.passes.support.calibration import Arrays, Calibration, extremes, with_outputs
from tvmcompress.passes.support.channel_notes import totals
from tvmcompress.passes.support.layers import layers, macs, skipped
from tvmcompress.passes.support.residual_blocks import Block, blocks

SPARE = 4  # blocks that are tried beyond those that must go
TINY = 1e-30


@dataclass(frozen=True)
class PruneLayers(Pass):
    """add(x, f(x)) -> x

    for the residual blocks whose result is most like what they start from, over samples: the least 1 - cosine of x and
    x + f(x) (block influence: ShortGPT, Men et al. 2024), or the least |f(x)| / |x + f(x)|. A block is an addition of a
    tensor and a branch with layers that starts from it: of a transformer the attention and the feed-forward part each
    are one, of a ResNet those without a convolution in the shortcut. With `try_out` the blocks that promise most are
    dropped one by one, and those go that change the model's outputs least.
    """

    needs_samples: ClassVar[bool] = True

    density: float = option(0.75, "share of residual blocks that stay, above 0", low=0, high=1)
    count: int = option(0, "blocks to drop; 0: as density says", low=0)
    criterion: str = option("cosine", "what a block does to what passes it", choices=("cosine", "error"))
    try_out: bool = option(True, "the last word have the model's outputs without each block")
    skip: tuple[str, ...] = option((), "names of layers whose blocks stay; * and ? are wildcards")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density == 0:
            raise RecipeError("prune_layers: density must be above 0 and at most 1, got 0.0; 0.75 drops a quarter")

    def __call__(self, mod: tvm.IRModule, samples: Calibration | None = None) -> Outcome:
        if samples is None:
            raise SampleError("prune_layers needs samples: a few dozen typical inputs of the model")
        mod = graph.rewrite(mod, lambda *_: None)  # one form: names are unique, tuples are inlined
        found = blocks(mod)
        if not found:
            raise ModelError(
                "prune_layers finds no residual block: "
                "an addition of a tensor and a branch of layers that starts from it"
            )
        wanted = self.count or math.floor((1 - self.density) * len(found) + 1e-9)
        reasons = skipped(list(layers(mod)), self.skip, (), self.key)
        free = [block for block in found if not any(layer.name in reasons for layer in block.layers)]
        if wanted > len(free):
            raise RecipeError(f"prune_layers: {wanted} blocks are to go, and the model has {len(free)} that may")
        if not wanted:
            return Outcome(mod, notes(self.key, mod, mod, found, {}, {}, ()))
        influence = influences(mod, found, samples, self.criterion)
        ranked = sorted(free, key=lambda block: influence[block.name])
        errors = output_errors(mod, ranked[: wanted + SPARE], samples) if self.try_out else {}
        ranked = sorted(ranked[: wanted + SPARE], key=lambda block: errors.get(block.name, influence[block.name]))
        gone = [block.name for block in ranked[:wanted]]
        after = without(mod, [block for block in found if block.name in gone])
        return Outcome(after, notes(self.key, mod, after, found, influence, errors, gone))


def without(mod: tvm.IRModule, dropped: Sequence[Block]) -> tvm.IRModule:
    starts = {block.out: block.start for block in dropped}

    def visit(rewriter: graph.Rewriter, var: relax.Var, expr: graph.Expr) -> graph.Expr | None:
        return rewriter.replacement[starts[var]] if var in starts else None

    return graph.rewrite(mod, visit)


def influences(mod: tvm.IRModule, found: Sequence[Block], samples: Calibration, criterion: str) -> dict[str, float]:
    """By block, the mean over samples: 1 - cosine of start and result, or the branch's share of the result's norm."""
    names = sorted({block.start.name for block in found} | {block.name for block in found})
    measure = distance if criterion == "cosine" else relative_error
    run = samples.executor(with_outputs(mod, names))
    values: dict[str, list[float]] = {block.name: [] for block in found}
    for number, sample in enumerate(samples.stream("measuring blocks")):
        arrays = dict(zip(names, run(sample)))
        for name, array in arrays.items():
            extremes(array, name, number)
        for block in found:
            values[block.name].append(measure(arrays[block.start.name], arrays[block.name]))
    del run
    gc.collect()  # a virtual machine refers to itself, and it holds all weights
    return {name: float(np.mean(v)) for name, v in values.items()}


def distance(start: np.ndarray, out: np.ndarray) -> float:
    a, b = (v.astype(np.float64).reshape(-1) for v in (start, out))
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + TINY))


def relative_error(start: np.ndarray, out: np.ndarray) -> float:
    a, b = (v.astype(np.float64).reshape(-1) for v in (start, out))
    return float(np.linalg.norm(b - a) / (np.linalg.norm(b) + TINY))


def output_errors(mod: tvm.IRModule, tried: Sequence[Block], samples: Calibration) -> dict[str, float]:
    """By block, how far the model's outputs are from what they were when it alone is dropped, on a few samples."""
    few = samples.few()
    whole = outputs(mod, few, samples)
    found = {}
    for number, block in enumerate(tried):
        samples.report(number, len(tried), "dropping blocks")
        found[block.name] = far(whole, outputs(without(mod, [block]), few, samples))
    return found


def outputs(mod: tvm.IRModule, few: Sequence[Arrays], samples: Calibration) -> list[Arrays]:
    run = samples.executor(mod)
    results = [[np.array(a, np.float64) for a in run(sample)] for sample in few]
    del run
    gc.collect()
    return results


def far(whole: Sequence[Arrays], other: Sequence[Arrays]) -> float:
    """The norm of the difference over the norm, the mean over samples and outputs."""
    return float(np.mean([relative_error(b, a) for one, two in zip(whole, other) for a, b in zip(one, two)]))


def notes(
    owner: str,
    before: tvm.IRModule,
    after: tvm.IRModule,
    found: Sequence[Block],
    influence: dict[str, float],
    errors: dict[str, float],
    gone: Collection[str],
) -> tuple[dict[str, Any], ...]:
    """A row for each block, one for each layer that is gone, and the multiply-accumulates of the whole."""
    left = {layer.name for layer in layers(after)}
    rows: list[dict[str, Any]] = []
    for block in found:
        row = {"pass": owner, "block": block.name, "dropped": block.name in gone}
        row |= {"layers": [layer.name for layer in block.layers], "influence": influence.get(block.name)}
        rows.append({**row, "output_error": errors.get(block.name)})
    for layer in layers(before):
        if layer.name not in left:
            row = {"pass": owner, "layer": layer.name, "kind": layer.kind, "pruned": True, "macs": 0}
            rows.append({**row, "macs_before": macs(layer), "why": "its block is dropped"})
    return (*rows, totals(owner, before, after))
