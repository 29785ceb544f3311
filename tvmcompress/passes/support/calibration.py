"""Running a program on samples, one at a time, and keeping little of what is seen."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import tvm
from tvm import relax

from tvmcompress.errors import SampleError
from tvmcompress.ir import graph
from tvmcompress.passes.support.histogram import Histogram

Arrays = list[np.ndarray]
Executor = Callable[[tvm.IRModule], Callable[[Sequence[np.ndarray]], Arrays]]
Progress = Callable[[int, int | None, str], None]

KEPT_BYTES = 64 << 20


class Calibration:
    """Samples for passes: a stream of arrays in the order of the model's inputs, and the means to run programs.

    The stream is read again for each pass that needs it where that is possible (a list, a data set); a generator is
    read once, and later passes get the few samples that were kept.
    """

    def __init__(
        self,
        samples: Iterable[Arrays],
        executor: Executor,
        *,
        total: int | None = None,
        once: bool = False,
        progress: Progress | None = None,
        cache: Path | None = None,
        keep: int = 8,
    ):
        self.samples = samples
        self.executor = executor
        self.total = total
        self.once = once  # the samples can be read only once
        self.report = progress or (lambda done, total, text: None)
        self.cache = cache
        self.keep = keep
        self.kept: list[Arrays] = []
        self.spent = False

    @property
    def available(self) -> bool:
        """There may be samples; without any, only a cache can serve."""
        return self.total != 0

    def stream(self, text: str) -> Iterator[Arrays]:
        """All samples; `text` names the work in the progress display. Raises SampleError when there is none."""
        if self.spent:
            yield from self.kept
            return
        filling, size, done = not self.kept, 0, 0
        self.report(0, self.total, text)
        for sample in self.samples:
            self.spent = self.once
            size += sum(a.nbytes for a in sample)
            if filling and len(self.kept) < self.keep and (not self.kept or size <= KEPT_BYTES):
                self.kept.append([a.copy() for a in sample])
            yield sample
            done += 1
            self.report(done, self.total, text)
        if done == 0:
            raise SampleError("there is no sample to calibrate with; give at least one, better 100")

    def few(self) -> list[Arrays]:
        """The first samples, at most `keep` of them."""
        if not self.kept:
            for _ in self.stream("reading samples"):
                if len(self.kept) >= self.keep:
                    break
        return self.kept


def with_outputs(mod: tvm.IRModule, names: Sequence[str]) -> tvm.IRModule:
    """`mod` with the tensors called `names` (bindings or inputs) as its only results, in that order."""
    found: dict[str, graph.Expr] = {}
    wanted = set(names)
    rewriter = graph.Rewriter()
    old = mod["main"]
    params = [relax.Var(p.name, p.ty) for p in old.params]
    rewriter.replacement.update(zip(old.params, params))
    found.update((p.name, p) for p in params if p.name in wanted)
    builder = rewriter.builder
    rewriter.adopt(mod)
    with builder.function("main", params):
        with builder.dataflow():
            for binding in graph.bindings(mod):
                expr = rewriter.bind(binding, rewriter.new(binding.value))
                if binding.var.name in wanted:
                    found[binding.var.name] = expr
            out = builder.emit_output(relax.Tuple([found[name] for name in names]))
        builder.emit_func_output(out)
    return graph.remove_dead(builder.finalize())


@dataclass
class Seen:
    """What is remembered of one tensor. `channel_axis` None: no channel means are wanted."""

    histogram: Histogram | None = None
    channel_axis: int | None = None
    low: float = np.inf
    high: float = -np.inf
    mean: np.ndarray | None = field(default=None)
    count: int = 0

    def add(self, array: np.ndarray, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.histogram is not None:
            self.histogram.add(array, low, high)
        if self.channel_axis is not None:
            others = tuple(i for i in range(array.ndim) if i != self.channel_axis % array.ndim)
            mean = array.mean(axis=others, dtype=np.float64)
            self.count += 1
            self.mean = mean if self.mean is None else self.mean + (mean - self.mean) / self.count


class Observer(Protocol):
    def add(self, array: np.ndarray, low: float, high: float) -> None:
        """Take note of a tensor of one sample; its least and greatest value."""


def observe(mod: tvm.IRModule, seen: Mapping[str, Observer], samples: Calibration) -> int:
    """Feed every sample through `mod` and show each tensor named in `seen` to its entry. Returns how many samples.

    Raises SampleError naming tensor and sample for NaN or infinity.
    """
    inputs = {p.name: i for i, p in enumerate(mod["main"].params)}
    inside = [name for name in seen if name not in inputs]
    run = samples.executor(with_outputs(mod, inside)) if inside else None
    number = 0
    for sample in samples.stream("calibrating"):
        for name, i in inputs.items():
            extremes(sample[i], name, number)
        arrays = dict(zip(inside, run(sample) if run else []))
        arrays.update((name, sample[i]) for name, i in inputs.items() if name in seen)
        for name, entry in seen.items():
            entry.add(arrays[name], *extremes(arrays[name], name, number))
        number += 1
    del run
    gc.collect()  # a virtual machine refers to itself, and it holds all weights
    return number


def extremes(array: np.ndarray, name: str, number: int) -> tuple[float, float]:
    """Least and greatest value. Raises SampleError when either is not a number."""
    if array.size == 0 or not np.issubdtype(array.dtype, np.floating):
        return 0.0, 0.0
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        what = "NaN" if np.isnan(low) or np.isnan(high) else "infinity"
        raise SampleError(f"sample {number}: tensor '{name}' holds {what}; leave that sample out or repair it")
    return low, high
