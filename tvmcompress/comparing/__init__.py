"""compare(model, places) -> Comparison: one model in several variants on several boards, side by side.

First everything is compiled; then the boards are visited, different machines at the same time; this machine comes last
and works on nothing else meanwhile. A board that is emulated, or reached at this machine's own address, shares it.
"""

from __future__ import annotations

import datetime
import os
import platform
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmcompress import golden, trials
from tvmcompress.comparing import crossing, gate, results
from tvmcompress.comparing.crossing import Crossed
from tvmcompress.comparing.places import Place, machine, places
from tvmcompress.comparing.visit import SITTINGS, Entry, Progress, Task, Visit
from tvmcompress.comparison import Comparison
from tvmcompress.errors import SampleError, UsageError
from tvmcompress.kernels import choices
from tvmcompress.lower import host
from tvmcompress.manifest import versions
from tvmcompress.measurement.apart import Kernels, Watch
from tvmcompress.model import Model
from tvmcompress.package import Package
from tvmcompress.passes import simplified
from tvmcompress.samples import Samples
from tvmcompress.tunnels import Route

FLOAT = "float"  # the variant without a recipe
BUDGET_S = 3.0
LEAVE_S = 3.0  # for a visit to end when it is told to


def compare(
    model: Model,
    on: Sequence[str] = ("native",),
    recipes: Sequence[str] = (FLOAT,),
    samples: Any = None,
    *,
    labels: Any = None,
    calibration: Any = None,
    limit: int | None = None,
    log: Any = None,
    threads: int | None = None,
    budget_s: float = BUDGET_S,
    matrix: bool = True,
    fail_if_slower: float | None = None,
    baseline: Comparison | str | os.PathLike | None = None,
    route: Route | None = None,
    progress: Progress | None = None,
    compile: Callable[..., Package],
    compress: Callable[..., Model],
) -> Comparison:
    """Compare `model` as each of `recipes` at each of the places `on`.

    on: `native`, a target that runs on this machine, or TARGET@HOST:PORT. recipes: names or files; "float" is the model
    as it is. samples: inputs on which outputs are compared with those of the float model on this machine, and with
    `labels`, class numbers; example inputs unless given. calibration: samples for recipes that calibrate; `samples`
    unless given. limit: samples at most. log: as `compile` takes it. budget_s: seconds of timing for each package at
    each place.
    matrix: also run each place's decisions on every other. fail_if_slower: a share; `gate` of the result then says what
    is slower than in `baseline`, or than the first variant at its place. route: to boards, through SSH or TLS.

    A board that cannot be reached is said so in the result. Raises UsageError for what cannot be, before any work;
    SampleError, RecipeError, TargetError, ModelError as `compress` and `compile` do.
    """
    tell = progress or (lambda _done, _total, _text: None)
    where, names = places(on, route), variants(recipes)
    if not 0 < budget_s < float("inf"):
        raise UsageError(f"budget_s = {budget_s}: wanted seconds")
    if fail_if_slower is not None and not 0 <= fail_if_slower < 100:
        raise UsageError(f"fail_if_slower = {fail_if_slower}: wanted a share, such as 5%")
    if baseline is not None and not isinstance(baseline, Comparison):
        baseline = Comparison.load(baseline)
    if fail_if_slower is not None:
        gate.check(baseline, vars(model.source))
    before = os.getloadavg()[0]
    data = Given(model, samples, limit)
    models = {name: compressed(model, name, calibration, data.source, compress, tell) for name in names}
    visits, crossed = compiled(models, where, log, matrix, compile, tell)
    wanted = data.wanted(model, tell)
    task = Task(data, wanted, data.labels(labels), threads, budget_s, locked(tell))
    visit_all(visits, task)
    return assembled(model, models, visits, crossed, task, data, before, fail_if_slower, baseline)


def variants(recipes: Sequence[str]) -> tuple[str, ...]:
    if not recipes:
        raise UsageError(f"no variant: name a recipe, or '{FLOAT}'")
    names = tuple(str(recipe) for recipe in recipes)
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"recipe '{name}' is given twice")
    return names


class Given:
    """The samples: those given, or the example that packages carry."""

    def __init__(self, model: Model, samples: Any, limit: int | None) -> None:
        self.own = samples is None
        if hasattr(samples, "__next__"):
            samples = list(samples)  # every place reads them again
        self.source = samples
        self.samples = Samples(golden.example_inputs(model.inputs) if self.own else samples, model.inputs, limit)

    def __iter__(self) -> Any:
        return iter(self.samples)

    def labels(self, given: Any) -> np.ndarray | None:
        found = self.samples.labels() if given is None else np.asarray(given).reshape(-1)
        if found is not None and found.dtype.kind not in "iu":
            raise SampleError(f"labels: wanted integers, got {found.dtype.name}")
        return found

    def wanted(self, model: Model, tell: Progress) -> list[dict[str, np.ndarray]]:
        """The float model's outputs, by this machine's kernels."""
        run, total, found = host.executor(simplified(model.module)), self.samples.count(), []
        for sample in self.samples:
            arrays = run([sample[spec.name] for spec in model.inputs])
            found.append({spec.name: np.array(a) for spec, a in zip(model.outputs, arrays)})
            tell(len(found), total, "running the float model")
        return found


def compressed(
    model: Model, recipe: str, calibration: Any, samples: Any, compress: Callable[..., Model], tell: Progress
) -> Model:
    if recipe == FLOAT:
        return model
    return compress(model, recipe, samples if calibration is None else calibration, progress=tell)


def compiled(
    models: Mapping[str, Model], where: Sequence[Place], log: Any, matrix: bool, compile: Callable, tell: Progress
) -> tuple[list[Visit], list[tuple[Crossed, Entry | None]]]:
    """A visit for each place, its entries compiled; and what was made with another place's decisions."""
    visits = [Visit(place, []) for place in where]
    crossed: list[tuple[Crossed, Entry | None]] = []
    total = len(models) * len(where)
    for done, (name, model) in enumerate(models.items()):
        packages: dict[Place, Package] = {}
        for i, visit in enumerate(visits):
            place = visit.place
            tell(done * len(where) + i, total, "compiling")
            watch = Watch()
            packages[place] = compile(model, place.target, log=log, between=watch)
            builds = zip(watch.modules, place.target.each) if place.target.kind == "cpu" else ()
            kernels = {target.name: Kernels(module, target) for module, target in builds}
            visit.entries.append(Entry(name, packages[place], kernels))
        if not matrix:
            continue

        def made(place: Place, tables: crossing.Tables, model: Model = model) -> Package:
            return compile(model, place.target, decisions=tables)

        def tuned(place: Place) -> bool:
            return log is not None or any(trials.shipped(place.target, choices.versions()))

        for row in crossing.cross(name, packages, made, tuned, lambda text: tell(0, None, text)):
            visit = next(v for v in visits if v.place.name == row.on)
            entry = Entry(name, row.package, made_for=row.of) if row.package else None
            visit.entries += [entry] if entry else []
            crossed.append((row, entry))
    tell(total, total, "compiling")
    return visits, crossed


def visit_all(visits: Sequence[Visit], task: Task) -> None:
    """Boards of different machines at the same time, this machine after them. Ctrl-C ends it within a turn."""
    for visit in visits:
        visit.machine = machine(visit.place)
    machines = list(dict.fromkeys(visit.machine for visit in visits))
    failures: list[BaseException] = []

    def tour(name: str) -> None:
        try:
            for visit in visits:
                if visit.machine == name and not task.stop.is_set():
                    visit.make(task)
        except BaseException as error:  # it belongs to the thread that waits
            failures.append(error)
            task.stop.set()

    tours = [threading.Thread(target=tour, args=(name,), daemon=True) for name in machines if name]
    try:
        for thread in tours:
            thread.start()
        for thread in tours:
            while thread.is_alive():
                thread.join(0.2)  # so that a signal is heard
        if not failures and "" in machines:
            tour("")
    except BaseException:
        task.stop.set()
        for thread in tours:
            thread.join(LEAVE_S)
        raise
    if failures:
        raise failures[0]


def locked(tell: Progress) -> Progress:
    lock = threading.Lock()

    def one_at_a_time(done: int, total: int | None, text: str) -> None:
        with lock:
            tell(done, total, text)

    return one_at_a_time


def assembled(
    model: Model,
    models: Mapping[str, Model],
    visits: Sequence[Visit],
    crossed: Iterable[tuple[Crossed, Entry | None]],
    task: Task,
    data: Given,
    load: float,
    limit: float | None,
    baseline: Comparison | None,
) -> Comparison:
    own = [(visit, entry) for visit in visits for entry in visit.entries if not entry.made_for]
    rows = [results.result(visit, entry) for visit, entry in own]
    where = [results.place(visit) for visit in visits]
    by_name = {visit.place.name: visit for visit in visits}
    mixes = {id(entry): entry.kernels[build_of(entry)].mix() if entry.kernels else {} for _, entry in own}
    decided = {name: {v.place.name: e.package for v, e in own if e.variant == name} for name in models}
    return Comparison(
        model={**vars(model.source), "inputs": [vars(spec) | {"shape": list(spec.shape)} for spec in model.inputs]},
        places=where,
        variants=[{"name": name, "applied": list(m.applied)} for name, m in models.items()],
        results=rows,
        ratios=results.ratios(where, rows),
        kernels=[results.kernels(visit, entry, mixes[id(entry)]) for visit, entry in own],
        decisions=[{"variant": n, **row} for n, packages in decided.items() for row in crossing.differing(packages)],
        matrix=[results.cell(row, by_name[row.on], entry) for row, entry in crossed],
        gate=gate.gate(limit, where, rows, baseline) if limit is not None else None,
        how={
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "system": platform.platform(),
            "versions": versions(),
            "samples": len(task.wanted),
            "example_inputs": data.own,
            "threads": task.threads,
            "budget_s": task.budget_s,
            "sittings": SITTINGS,
            "load_before": load,
            "cores": os.cpu_count(),
        },
    )


def build_of(entry: Entry) -> str:
    return (entry.build or entry.package.builds[-1]).target


__all__ = ["BUDGET_S", "FLOAT", "Comparison", "compare"]
