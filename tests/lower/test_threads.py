"""Two threads are nearly twice as fast as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from tvm import relax

from tests.lower.tools import build
from tvmcompress import cpu, linking, threads
from tvmcompress.ir import graph
from tvmcompress.lower import pipeline
from tvmcompress.target import Target

ROUNDS, RUNS, WANTED = 30, 5, 1.7
LEAST = 1.3  # less is a fault of ours; in between it may be the machine's, and scripts/bench measures it
FREE, COUNTED = 1.85, 3  # what two separate programs gain when there are two CPUs; rounds in which they did


def fastest(run: Callable) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def both_at_once(first: Callable, second: Callable) -> float:
    """The slower one's fastest run while the other runs too."""
    found: list[float] = []
    workers = [threading.Thread(target=lambda f=f: found.append(fastest(f))) for f in (first, second)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(found)


@pytest.mark.alone
def test_two_threads_are_nearly_twice_as_fast_as_one(monkeypatch) -> None:
    """A convolution of 0.9 GMAC. A virtual machine's two CPUs are at times two halves of one core: then neither threads
    nor two programs that have nothing to do with each other gain anything, and the test is skipped, with the figures.
    """
    if cpu.usable() < 2:
        pytest.skip("this process may use one CPU only")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 128, 3, 3)).astype(np.float32)
    x = rng.standard_normal((1, 128, 80, 80)).astype(np.float32)
    lowered = build(
        graph.program(
            [("x", x.shape, "float32")], lambda rw, data: [relax.op.nn.conv2d(data, graph.const(weight), padding=1)]
        ),
        "native",
    )
    link = linking.linker(Target.load("native"))

    def program(count: int) -> Callable:
        monkeypatch.setattr(threads, "count", lambda threads=None: count)
        run = pipeline.machine(lowered, link)
        return lambda: run([x])

    one, other, two = program(1), program(1), program(2)
    gains = []
    for _ in range(ROUNDS):
        alone, before = fastest(one), both_at_once(one, other)
        gain = alone / fastest(two)
        if gain >= WANTED:
            return
        after = both_at_once(one, other)
        if min(2 * alone, 2 * fastest(one)) >= FREE * max(before, after):
            gains.append(gain)
        time.sleep(0.2)
    if len(gains) < COUNTED:
        pytest.skip("this machine does not have two free CPUs: two programs at once gain too little")
    if max(gains) >= LEAST:
        pytest.skip(f"two threads were {max(gains):.2f} times as fast as one at the most, {WANTED} were wanted")
    pytest.fail(f"two threads {max(gains):.2f} times as fast as one, where two programs at once are {FREE} times")
