"""Runs conformance cases, each in a forked child with a time limit, so that a crash is a result and not an end."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

RTOL, ATOL = 1e-3, 1e-7  # as onnx's own runner
LIMIT = 60.0  # seconds a case


@dataclass(frozen=True)
class Outcome:
    """How a case went: `passed`, whether inputs had to be bound as `values`, and what was wrong if it did not."""

    name: str
    passed: bool
    values: bool = False
    reason: str = ""


def run_model(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The one place that says what executes a loaded model: the real lowering for this machine, linked, not packed."""
    from tvmcompress import linking
    from tvmcompress.lower.builds import begun
    from tvmcompress.lower.pipeline import machine
    from tvmcompress.lower.sparse import KEEP
    from tvmcompress.passes import simplified
    from tvmcompress.target import Target

    native = Target.load("native")
    run = machine(begun(simplified(model.module), native)(KEEP).build(), linking.linker(native))
    return run([inputs[s.name] for s in model.inputs])


def ours(case: Any) -> Outcome:
    """Load the case's model without values; then with the inputs bound that the error names."""
    try:
        check(case, {})
        return Outcome(case.name, True)
    except Exception as error:
        first = describe(error)
    named = re.findall(r"--value ([^\s=]+)=", first)
    if named:
        try:
            check(case, {name: inputs_of(case, 0)[name] for name in named})
            return Outcome(case.name, True, True)
        except Exception as error:
            return Outcome(case.name, False, True, describe(error))
    return Outcome(case.name, False, False, first)


def inputs_of(case: Any, index: int) -> dict[str, np.ndarray]:
    names = [i.name for i in case.model.graph.input]
    return dict(zip(names, case.data_sets[index][0]))


def check(case: Any, values: dict[str, np.ndarray]) -> None:
    """Load, run, compare; raises on any difference."""
    from tvmcompress.frontend.onnx.model import import_proto
    from tvmcompress.model import Source

    given = inputs_of(case, 0)
    shapes = {n: a.shape for n, a in given.items() if n not in values}
    model = import_proto(case.model, Source(case.name, "onnx", 0, ""), shapes, values)
    for index, (_, outputs) in enumerate(case.data_sets):
        results = run_model(model, inputs_of(case, index))
        compare(case, results, outputs)


def stock(case: Any) -> Outcome:
    """TVM's own importer and pipeline."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    try:
        warnings.simplefilter("ignore")
        given = inputs_of(case, 0)
        module = from_onnx(case.model, {n: list(a.shape) for n, a in given.items()}, keep_params_in_input=False)
        built = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))
        machine = relax.VirtualMachine(built, tvm.cpu())
        for inputs, outputs in case.data_sets:
            result = machine["main"](*[tvm.runtime.tensor(np.asarray(a, order="C")) for a in inputs])
            results = [result] if hasattr(result, "numpy") else list(result)
            compare(case, [r.numpy() for r in results], outputs)
        return Outcome(case.name, True)
    except Exception as error:
        return Outcome(case.name, False, False, describe(error))


def compare(case: Any, results: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """As onnx's runner: same count, dtype and shape, values within rtol and atol."""
    if len(results) < len(wanted):
        raise AssertionError(f"{len(wanted)} outputs wanted, got {len(results)}")
    rtol, atol = max(case.rtol, RTOL), max(case.atol, ATOL)
    for number, (got, want) in enumerate(zip(results, wanted)):
        if got.dtype != want.dtype or got.shape != want.shape:
            raise AssertionError(f"output {number}: {want.dtype}{want.shape} wanted, got {got.dtype}{got.shape}")
        if want.dtype.kind not in "fiubc":
            got, want = got.astype("float32"), want.astype("float32")
        if not np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
            wrong = np.mean(~np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True))
            raise AssertionError(f"output {number}: {wrong:.0%} of the elements differ")


def describe(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, AssertionError) or type(error).__module__.startswith("tvmcompress"):
        return " ".join(lines)[:400]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {os.path.basename(where.filename)}:{where.lineno}: {(lines or [''])[-1][:300]}"


def run(
    names: Iterable[str], cases: dict[str, Any], how: Callable[[Any], Outcome] = ours, limit: float = LIMIT
) -> Iterator[Outcome]:
    """Outcomes in order. This process loads TVM once; every case runs in a child forked from it."""
    import onnx.reference  # noqa: F401  before the fork, so that children need not
    import tvm  # noqa: F401
    from tvm.relax.frontend.onnx import onnx_frontend  # noqa: F401

    import tvmcompress.compilation
    import tvmcompress.frontend.onnx.model  # noqa: F401

    for name in names:
        yield in_child(cases[name], how, limit)


def in_child(case: Any, how: Callable[[Any], Outcome], limit: float) -> Outcome:
    """One case in a forked child; a signal or an overrun becomes an Outcome."""
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            with os.fdopen(write, "wb") as pipe:
                outcome = how(case)
                pipe.write("\0".join([str(int(outcome.passed)), str(int(outcome.values)), outcome.reason]).encode())
        finally:
            os._exit(0)
    os.close(write)
    data, end = b"", time.monotonic() + limit
    status = None
    with os.fdopen(read, "rb", 0) as pipe:
        while (left := end - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                block = pipe.read(65536)
                if not block:
                    break
                data += block
        else:
            os.kill(child, signal.SIGKILL)
            status = "took too long"
    _, code = os.waitpid(child, 0)
    if status is None and os.WIFSIGNALED(code):
        status = f"crashed: {signal.Signals(os.WTERMSIG(code)).name}"
    if status or not data:
        return Outcome(case.name, False, False, status or "died without a word")
    passed, values, reason = data.decode("utf-8", "replace").split("\0", 2)
    return Outcome(case.name, passed == "1", values == "1", reason)
