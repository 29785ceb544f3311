"""The space of kernels without a family: MetaSchedule's generic one. A decision there is a trace of instructions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace
from tvm.tirx import PrimFunc

from tvmcompress.kernels.choices import Decisions
from tvmcompress.lower.traces import DECISION
from tvmcompress.trials import digest
from tvmcompress.tuning.candidates import Space

KIND = "llvm"  # of rules: without those that want an instruction of one processor
POOL = 32  # proposals at most: each is a schedule that is made
CHANGED = 2  # decisions of a trace, at most, that are made anew near a good one


class TraceSpace(Space):
    """Beside traces, what the generic schedule asks."""

    def __init__(self, program: PrimFunc, target: tvm.target.Target) -> None:
        super().__init__()
        self.program, self.target = tvm.IRModule({"main": program}), target

    @cached_property
    def context(self) -> Any:
        from tvm.s_tir import meta_schedule as ms

        rules, after = ms.schedule_rule.ScheduleRule.create(KIND), ms.postproc.Postproc.create(KIND)
        generator = ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=after, mutator_probs={})
        # Half a minute to import, for instructions that these rules have no use for.
        spared = "tvm.s_tir.tensor_intrin" not in sys.modules
        sys.modules.setdefault("tvm.s_tir.tensor_intrin", ModuleType("spared"))
        try:
            facts = {"target": self.target, "space_generator": generator, "num_threads": 1, "rand_state": 1}
            return ms.TuneContext(self.program, **facts)
        finally:
            if spared:
                del sys.modules["tvm.s_tir.tensor_intrin"]

    @cached_property
    def sketches(self) -> list[Trace]:
        """What may be done, decisions aside."""
        return [Trace(sch.trace.insts, {}) for sch in self.context.generate_design_space()]

    def propose(
        self, best: Sequence[Decisions], count: int, known: set[str], rng: np.random.Generator
    ) -> list[Decisions]:
        """A quarter for the generic schedule, the others half near the best traces so far, half at random."""
        count = min(count, POOL)
        plain = {name: values for name, values in self.questions.items() if name != DECISION}
        without = [{DECISION: None, **one} for one in Space(plain).propose([], count // 4, set(), rng)]
        found = {key: one for one in without if (key := digest(one)) not in known}
        traces = [one[DECISION] for one in best if one.get(DECISION)]
        for attempt in range(4 * count):
            if len(found) >= count:
                break
            start = traces[int(rng.integers(len(traces)))] if traces and attempt % 2 else None
            trace = self.made(self.near_trace(start, rng) if start is not None else self.sketch(rng), rng)
            if trace is not None and (key := digest({DECISION: trace})) not in known:
                found[key] = {DECISION: trace}
        return list(found.values())

    def sketch(self, rng: np.random.Generator) -> Trace:
        return self.sketches[int(rng.integers(len(self.sketches)))]

    def near_trace(self, trace: Any, rng: np.random.Generator) -> Trace:
        """Without one or two of its decisions."""
        sch = Schedule(self.program)
        Trace.apply_json_to_schedule(trace, sch)
        insts = [inst for inst in sch.trace.insts if inst in sch.trace.decisions]
        gone = rng.choice(len(insts), min(int(rng.integers(1, CHANGED + 1)), len(insts)), replace=False)
        left = {inst: sch.trace.decisions[inst] for i, inst in enumerate(insts) if i not in gone}
        return Trace(sch.trace.insts, left)

    def made(self, trace: Trace, rng: np.random.Generator) -> Any:
        """The trace with all its decisions, and what TVM does to make a program of it, as JSON; None if it cannot."""
        sch = Schedule(self.program, seed=int(rng.integers(1, 2**31 - 1)))
        try:
            trace.apply_to_schedule(sch, remove_postproc=True)
            sch.enter_postproc()
            if not all(step.apply(sch) for step in self.context.space_generator.postprocs):
                return None
        except Exception:  # decisions that exclude each other: TVM's schedule errors have no class of their own
            return None
        return plain(sch.trace.simplified(remove_postproc=False).as_json())

    def features(self, decisions: Decisions) -> dict[str, float]:
        trace = decisions.get(DECISION)
        if not trace:
            return super().features({name: value for name, value in decisions.items() if name != DECISION})
        row = {"trace": float(len(trace[0]))}
        for place, (_, decision) in enumerate(trace[1]):
            for i, value in enumerate(decision if isinstance(decision, list) else [decision]):
                row[f"trace {len(trace[0])} {place} {i}"] = float(np.log2(1 + abs(value)))
        return row


def plain(value: Any) -> Any:
    """TVM's numbers and lists as JSON's."""
    if value is None or isinstance(value, str | int | float):
        return value
    return value.value if hasattr(value, "value") else [plain(inner) for inner in value]
