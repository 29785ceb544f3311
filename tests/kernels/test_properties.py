"""Every kernel family on random shapes against NumPy: with the model's decisions, and with any others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pytest
import tvm

from tests.kernels.cases import FAMILIES, Case
from tests.lower.tools import need
from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels.choices import Choose, untuned
from tvmcompress.lower.pipeline import lower, machine
from tvmcompress.lower.sparse import Keep
from tvmcompress.target import Target

T = TypeVar("T")
AT_ONCE = 12  # cases of one program
# Target, LLVM's level of optimisation, whether decisions are by chance. What is checked is which instructions we ask
# for; LLVM at its best takes twice the time, and at its worst (0) has no code for some masks of AVX-512.
RUNS = [
    ("native", 3, False),
    ("native", 1, True),
    ("native", 1, False),
    ("x86-64-v3", 1, False),
    ("x86-64-v3", 1, True),
    ("x86-64-v2", 1, True),
]
# Sparse kernels where the model decides are few: one run shows them beside dense ones.
TESTS = [(f, run) for f in FAMILIES for run in RUNS if not f.startswith("sparse") or run[2] or run[1] == 3]


class Sampled:
    """Choices by chance, the same for the same seed and kernel."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.made: dict[str, dict[str, object]] = {}

    def __call__(self, key: str) -> Choose:
        made = self.made.setdefault(key, {})

        def choose(name: str, candidates: Sequence[T]) -> T:
            if name not in made:
                number = zlib.crc32(f"{self.seed} {key} {name}".encode())
                made[name] = candidates[number % len(candidates)]
            return made[name]  # type: ignore[return-value]

        return choose


def program(cases: list[Case]) -> tvm.IRModule:
    inputs = [(f"x{i}_{j}", a.shape, str(a.dtype)) for i, c in enumerate(cases) for j, a in enumerate(c.inputs)]

    def body(rw, *data):
        rest = iter(data)
        return [case.build(rw, *(next(rest) for _ in case.inputs)) for case in cases]

    return graph.program(inputs, body)


def wrong(family: str, run: tuple[str, int, bool]) -> list[str]:
    """A line for each case of one program that is not as NumPy has it."""
    name, level, by_chance = run
    target = Target.load(name)
    isa = isa_of(target.to_tvm(), target.l1d, target.l2)
    host = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu, "num-cores": target.threads}
    if target.features:
        host["mattr"] = [f"+{feature}" for feature in target.features]
    seed = zlib.crc32(f"{family} {run}".encode())
    rng = np.random.default_rng(seed)
    cases = [FAMILIES[family](rng) for _ in range(AT_ONCE)]
    sampled = Sampled(seed)
    lowered = lower(
        program(cases), tvm.target.Target({**host, "opt-level": level}), isa,
        choices=sampled if by_chance else untuned, keep=Keep("always" if by_chance else "faster"),
    )  # fmt: skip
    found = [f"{kernel}: {why}" for kernel, why in lowered.fallbacks.items()]
    got = machine(lowered, linking.linker(target))([a for case in cases for a in case.inputs])
    for case, result in zip(cases, got):
        if result.shape != case.wanted.shape:
            found.append(f"{case.text}: {result.shape} instead of {case.wanted.shape}")
            continue
        error = np.abs(result.astype(np.float64) - case.wanted).max(initial=0)
        if not error <= case.within:
            found.append(f"{case.text}: off by {error}, may be {case.within}")
    return [*found, f"decisions: {sampled.made}"] if found else []


def test_there_are_enough() -> None:
    assert AT_ONCE * len(TESTS) >= 2000


def named(value: str | tuple[str, int, bool]) -> str:
    return value if isinstance(value, str) else f"{value[0]}-{'any' if value[2] else 'model'}-O{value[1]}"


@pytest.mark.parametrize(("family", "run"), TESTS, ids=named)
def test_random_shapes(family: str, run: tuple[str, int, bool]) -> None:
    need(run[0])
    assert wrong(family, run) == []
