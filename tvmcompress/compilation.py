"""compile(model, target) -> Package: kernels for one target, linked, with weights and golden outputs beside them.

For a target of several builds there is a library for each. Their weights are stored once, in the program's own layout,
and packed for the kernels when the package is loaded; for one build they are packed now.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm

from tvmcompress import archive, golden, linking, trials
from tvmcompress.coding import parts
from tvmcompress.errors import UsageError, did_you_mean
from tvmcompress.ir import graph
from tvmcompress.ir.macs import macs
from tvmcompress.kernels.choices import versions
from tvmcompress.lower import host, plain_layers
from tvmcompress.lower.builds import Build, begun, linked
from tvmcompress.lower.guard import guarded
from tvmcompress.lower.host import runs_here
from tvmcompress.lower.pipeline import Lowered, loaded
from tvmcompress.lower.sparse import POLICIES, Keep
from tvmcompress.lower.weights import digest
from tvmcompress.manifest import one_of_several
from tvmcompress.model import Model, spec_json
from tvmcompress.package import Package
from tvmcompress.passes import simplified
from tvmcompress.target import Target
from tvmcompress.trials import Trial

if TYPE_CHECKING:
    from tvmcompress.tuning_log import TuningLog

Progress = Callable[[int, int | None, str], None]


def compile(
    model: Model,
    target: Target | str,
    *,
    log: TuningLog | str | os.PathLike | None = None,
    decisions: Mapping[str, Mapping[str, Any]] | None = None,
    keep: str = "faster",
    storage: str = "auto",
    progress: Progress | None = None,
    between: Callable | None = None,
) -> Package:
    """Compile `model` for `target`.

    log: where `tune` wrote what it measured; kernels that were tuned for this very target are made as was best there,
    and without one as the records that ship with the project say. decisions: instead, tables by kernel, as
    `manifest["kernels"]` of another package has them (see kernels.choices). keep: which layers whose weights hold zeros
    get sparse kernels, and of few rows which that share 16 values look these up: those that are "faster" so (by
    estimate; in doubt, where the target runs here, the whole program is timed against its dense twin), "smaller" ones,
    "always" all of them, or "never". storage: which weights
    the package's file holds smaller than they are (see `Package.build`). progress: called with (steps done, steps in
    all, what is being done). between: called with (step, module) after each step of the lowering, for every build.
    Raises MissingDependencyError when the target's linker or the storage's library is not installed, TargetError for an
    unknown target, UsageError for an unknown keep or storage, ModelError for a model that TVM cannot compile.
    """
    if keep not in POLICIES:
        raise UsageError(f"keep: wanted one of {', '.join(POLICIES)}, got {keep!r}{did_you_mean(keep, POLICIES)}")
    target = target if isinstance(target, Target) else Target.load(target)
    parts.check_storage(storage)
    tell = progress or (lambda _done, _total, _text: None)
    links = [linking.linker(one) for one in target.each]  # before the work: one may not be installed
    steps = 2 * len(links) + 3
    tell(0, steps, "simplifying the graph")
    module = simplified(model.module)
    builds: list[Build] = []
    with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
        for i, (one, link) in enumerate(zip(target.each, links)):
            which = f" for {one.name}" if target.builds else ""
            tell(2 * i + 1, steps, f"generating kernels{which}")
            tables = tuned(one, log) if decisions is None else decisions
            begin = begun(module, one, between, bool(target.builds), tables)
            wish = Keep(keep, storage=storage)
            made, finish = begin(wish, between), partial(linked, one, link, Path(folder, str(i)))
            tell(2 * i + 2, steps, f"linking{which}")
            guard = keep == "faster" and not target.builds and runs_here(one)
            builds.append(guarded(made, begin, finish, examples(model), wish) if guard else finish(made))
        tell(steps - 2, steps, "computing golden outputs")
        inputs, outputs = golden_tensors(model, module, builds)
        tell(steps - 1, steps, "writing the package")
        package = packed(model, module, target, builds, inputs, outputs, storage)
    tell(steps, steps, "done")
    return package


def packed(
    model: Model, module: tvm.IRModule, target: Target, builds: list[Build], inputs: dict, outputs: dict, storage: str
) -> Package:
    """The package; what several builds have in common is in it once."""
    rows = [manifest(model, module, build.target, build.lowered, storage) for build in builds]
    libraries = {archive.library(b.target.name if target.builds else ""): b.library for b in builds}
    stored, contents = builds[0].lowered.stored, rows[0]
    if target.builds:
        stored, taken = in_common([build.lowered.stored for build in builds])
        for row, library, indices in zip(rows, libraries, taken):
            row["entry"] |= {"library": library, "weights": indices}
        contents = one_of_several(rows, target.describe())
    return Package.build(
        library=libraries,
        weights=[(f"weight_{i}", partial(graph.as_numpy, t)) for i, t in enumerate(stored)],
        manifest=contents,
        golden_inputs=inputs,
        golden_outputs=outputs,
        storage=storage,
    )


def in_common(stored: list[list[tvm.runtime.Tensor]]) -> tuple[list[tvm.runtime.Tensor], list[list[int]]]:
    """The weights of several builds, each once; and for each build the places of its own among them."""
    places: dict[tuple, int] = {}
    arrays: list[tvm.runtime.Tensor] = []
    taken: list[list[int]] = []
    for own in stored:
        taken.append([])
        for tensor in own:
            place = places.setdefault((tensor.dtype, tuple(tensor.shape), digest(tensor)), len(arrays))
            arrays += [tensor] if place == len(arrays) else []
            taken[-1].append(place)
    return arrays, taken


def tuned(target: Target, log: TuningLog | str | os.PathLike | None) -> dict[str, Mapping[str, Any]]:
    """The decisions known for kernels on this very target: those that ship, and before them those of a log."""
    found: dict[str, Trial] = {}
    for trial in trials.shipped(target, versions()):
        if trial.workload not in found or trial.ms < found[trial.workload].ms:
            found[trial.workload] = trial
    tables = {workload: trial.decisions for workload, trial in found.items()}
    if log is None:
        return tables
    from tvmcompress.tuning_log import TuningLog

    with contextlib.nullcontext(log) if isinstance(log, TuningLog) else TuningLog.open(log) as opened:
        return tables | opened.decisions(trials.target_key(target), versions())


def examples(model: Model) -> list[np.ndarray]:
    """Golden inputs in order."""
    inputs = golden.example_inputs(model.inputs)
    return [inputs[spec.name] for spec in model.inputs]


def golden_tensors(model: Model, module: tvm.IRModule, builds: list[Build]) -> tuple[dict, dict]:
    """Example inputs, and what this machine's kernels make of them; those of the first build that runs here, if any."""
    inputs = golden.example_inputs(model.inputs)
    arrays = [inputs[spec.name] for spec in model.inputs]
    own = next((build for build in builds if runs_here(build.target)), None)
    run = loaded(own.lowered, own.library) if own else host.executor(module)
    results = run(arrays)
    return inputs, {spec.name: np.asarray(r) for spec, r in zip(model.outputs, results)}


def manifest(model: Model, module: tvm.IRModule, target: Target, lowered: Lowered, storage: str) -> dict:
    """What `tvmcompress.manifest` requires of a compiler."""
    total = sum(row.macs for row in macs(module))
    integer = sum(row["macs"] for row in lowered.layers if row["integer"])
    layers = plain_layers.explained(lowered.layers, module, target, storage)
    return {
        "name": Path(model.source.name).stem,
        "target": target.describe(),
        "needs": {
            "arch": target.arch,
            "features": sorted(target.features_needed()),
            "gpu": target.cuda_arch or None,
        },
        "inputs": [spec_json(s) for s in model.inputs],
        "outputs": [spec_json(s) for s in model.outputs],
        "source": vars(model.source),
        "applied": list(model.applied),
        "notes": list(model.notes),
        "layers": layers,
        "kernels": lowered.kernels,
        "macs": {"total": total, "integer": integer},
        "fallbacks": [{"program": name, "reason": why} for name, why in sorted(lowered.fallbacks.items())],
        "entry": {"prepare": lowered.prepares},
        **({"memory": vars(lowered.memory)} if lowered.memory else {}),
    }
