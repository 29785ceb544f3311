"""Two builds of one program, timed in turns on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tvm
from tvm import relax

from tvmcompress import threads
from tvmcompress.lower.pipeline import Lowered

WON = 0.95  # of the other's time: less of a gain is noise, in which two builds of one program differ
SURE = 0.6  # of the dense kernel's estimated time: of what promises more there is no doubt
ROUNDS = 9
TURN_S = 0.012


class Linked(Protocol):
    @property
    def lowered(self) -> Lowered: ...

    @property
    def library(self) -> Path: ...


def ratio(one: Linked, other: Linked, inputs: Sequence[np.ndarray]) -> float:
    """The time of `one` over that of `other`: the median of rounds in which they follow each other."""
    timers = [timer(one, inputs), timer(other, inputs)]
    found = []
    for number in range(ROUNDS + 1):
        first, second = timers if number % 2 else timers[::-1]
        a, b = first(), second()
        found.append(a / b if number % 2 else b / a)
    return float(np.median(found[1:]))


def timer(build: Linked, inputs: Sequence[np.ndarray]) -> Callable[[], float]:
    """What says how many seconds a run takes."""
    module = tvm.runtime.load_module(str(build.library))
    threads.use(module, threads.count(None))
    vm = relax.VirtualMachine(module, tvm.cpu())
    weights = list(build.lowered.stored)
    if build.lowered.prepares:
        weights = list(vm["prepare"](*weights))
    vm.set_input("main", *(tvm.runtime.tensor(a) for a in inputs), *weights)
    once = vm.time_evaluator("invoke_stateful", tvm.cpu(), number=1, repeat=2)("main").min
    run = vm.time_evaluator("invoke_stateful", tvm.cpu(), number=max(int(TURN_S / max(once, 1e-7)), 1), repeat=1)
    return lambda: run("main").mean
