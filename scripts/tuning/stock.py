"""Stock MetaSchedule on the same network: its own extraction, builder, runner and search, weights as parameters."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import time
from pathlib import Path
from queue import Empty

import numpy as np


def run(folder: Path, network: str, seconds: float) -> dict:
    """Tunes for so long, in a process of its own that is ended then; compiles with what its database holds."""
    work = folder / "stock"
    work.mkdir()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=tune, args=(str(folder), network, str(work)))
    process.start()
    process.join(seconds)
    if process.is_alive():
        for child in children(process.pid):
            child.kill()
        process.kill()
        process.join()
    trials = measured(work / "logs")
    queue = context.Queue()
    timer = context.Process(target=timed, args=(str(folder), network, str(work), queue))
    timer.start()
    ms = None
    while ms is None and (timer.is_alive() or not queue.empty()):
        with contextlib.suppress(Empty):
            ms = queue.get(timeout=1)
    timer.join()
    if ms is None:
        raise RuntimeError("stock MetaSchedule's model did not run")
    return {"trials": trials, "trials_per_minute": 60 * trials / seconds, "ms": ms}


def measured(logs: Path) -> int:
    """Candidates that were built and timed, as its log tells: the database has them only when a task's turn is over."""
    text = "".join(path.read_text(errors="replace") for path in logs.glob("*.log"))
    return sum(int(count) for count in re.findall(r"Sending (\d+) valid sample", text))


def children(pid: int | None) -> list:
    import psutil

    return psutil.Process(pid).children(recursive=True)


def module_of(folder: str, network: str):  # type: ignore[no-untyped-def]
    import onnx
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(onnx.load(Path(folder, f"{network}.onnx")), keep_params_in_input=True)
    module, params = relax.frontend.detach_params(module)
    module = relax.get_pipeline("zero")(module)
    weights = module["main"].params[-len(params["main"]) :]
    return module, {var.name: tensor for var, tensor in zip(weights, params["main"])}


def target():  # type: ignore[no-untyped-def]
    from tvmcompress import cpu
    from tvmcompress.target import Target

    described = Target.load("native").to_tvm()
    import tvm

    return tvm.target.Target({"kind": "llvm", "mcpu": described.attrs["mcpu"], "num-cores": cpu.usable()})


def tune(folder: str, network: str, work: str) -> None:
    from tvm import relax  # noqa: F401
    from tvm.s_tir.meta_schedule.relax_integration import tune_relax

    module, params = module_of(folder, network)
    tune_relax(module, params, target(), work, max_trials_global=10**6, max_trials_per_task=10**5)


def timed(folder: str, network: str, work: str, queue) -> None:  # type: ignore[no-untyped-def]
    """Compiles with the database, TVM's own reader, and times the model. Its last line may be torn: it is left out."""
    import tvm
    from tvm import relax
    from tvm.s_tir.meta_schedule.database import JSONDatabase
    from tvm.s_tir.meta_schedule.relax_integration import compile_relax

    paths = [Path(work, f"database_{kind}.json") for kind in ("workload", "tuning_record")]
    for path in paths:
        whole = [line for line in path.read_text().splitlines() if sound(line)] if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in whole))
    module, params = module_of(folder, network)
    database = JSONDatabase(*map(str, paths))
    built = compile_relax(database, module, target(), params)
    machine = relax.VirtualMachine(built, tvm.cpu())
    shape = [int(d) for d in module["main"].params[0].ty.shape]
    x = tvm.runtime.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        machine["main"](x)
        times.append((time.perf_counter() - begun) * 1e3)
    queue.put(float(np.median(times)))


def sound(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def race(ours: dict, theirs: dict) -> float:
    """How many times faster ours is, by medians of minutes that follow each other."""
    return theirs["ms"] / ours["ms"]["tuned"]
