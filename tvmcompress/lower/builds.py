"""Builds of a program for one target: its kernels are chosen, machine code is made of them, and that is linked."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tvm

from tvmcompress.errors import ModelError, TvmcompressError
from tvmcompress.isa import isa_of
from tvmcompress.kernels.choices import Recorder, decided
from tvmcompress.lower.pipeline import Lowered, lower_graph, lower_kernels
from tvmcompress.lower.shared import Shared
from tvmcompress.lower.sparse import Keep
from tvmcompress.target import Target


@dataclass(frozen=True)
class Begun:
    """A build on its way: what became of the layers is known, `build` makes the machine code."""

    layers: list[dict]
    build: Callable[[], Lowered]


@dataclass(frozen=True)
class Build:
    """What came of one build of a target."""

    target: Target
    lowered: Lowered
    library: Path


def begun(
    module: tvm.IRModule,
    target: Target,
    between: Callable | None = None,
    neutral: bool = False,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[..., Begun]:
    """What begins builds of one program that differ in what they keep; `tables`: decisions by kernel.

    Its arguments are the `Keep`, and what watches the steps. A row of `kernels` also says the decisions that its kernel
    was made with.
    """
    watch, tables = between or (lambda _step, _mod: None), tables or {}
    with translated(target):
        if target.kind == "cuda":
            from tvmcompress.lower.cuda import lower_cuda

            lowered = lower_cuda(module, target)
            return lambda _keep, _watch=None: Begun([], lambda: lowered)
        machine = target.to_tvm()
        isa = isa_of(machine, target.l1d, target.l2)
        program, steps = lower_graph(module, isa, watch, neutral)
    taken, shared = Recorder(decided(tables)), Shared(machine, isa)

    def begin(keep: Keep, watch: Callable | None = None) -> Begun:
        watch = watch or (lambda _step, _mod: None)
        with translated(target):
            unbuilt = lower_kernels(program, machine, isa, watch, taken, neutral, keep, shared)
        layers = [*steps, *unbuilt.layers]

        def built() -> Lowered:
            with translated(target):
                lowered = unbuilt.build()
            kernels = [{**row, "decisions": taken.decisions(row["key"])} for row in lowered.kernels]
            return replace(lowered, kernels=kernels, layers=layers)

        return Begun(layers, built)

    return begin


@contextlib.contextmanager
def translated(target: Target) -> Iterator[None]:
    """The border where TVM's own errors, of any class, become ours."""
    try:
        yield
    except TvmcompressError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = (lines[-1].strip() if lines else type(error).__name__)[:200]
        raise ModelError(f"this model cannot be compiled for {target.name}: {reason}") from error


def linked(target: Target, link: Callable, folder: Path, begun: Begun) -> Build:
    """A build, linked in a folder of its own."""
    lowered = begun.build()
    folder.mkdir(exist_ok=True)
    library = Path(tempfile.mkdtemp(dir=folder), "library.so")
    lowered.executable.export_library(str(library), fcompile=link, workspace_dir=str(library.parent))
    return Build(target, lowered, library)
