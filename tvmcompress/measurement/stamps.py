"""When each call of a program began and ended, noted by a function that is no Python: it costs 50 ns, not 3 µs.

Python watches one run, to learn what is called; the runs that count only write down the time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tvm
from tvm.script import tirx as T

from tvmcompress.errors import TvmcompressError

LONG = struct.calcsize("l") * 8  # of C's `long`, of which a timespec has two
MONOTONIC = 1
ROOM = 2**16  # times

CODE = f"""
declare i32 @clock_gettime(i32, ptr)
define i32 @tvmcompress_stamp() {{
  %count = inttoptr i64 ADDRESS to ptr
  %i = load i{LONG}, ptr %count
  %j = add i{LONG} %i, 1
  store i{LONG} %j, ptr %count
  %k = and i{LONG} %i, {ROOM - 1}
  %l = add i{LONG} %k, 1
  %slot = getelementptr [2 x i{LONG}], ptr %count, i{LONG} %l
  %r = call i32 @clock_gettime(i32 {MONOTONIC}, ptr %slot)
  ret i32 0
}}
"""
# A function that takes whatever it is called with: TVM's own calling convention, written out.
STAMP = """
@T.prim_func(s_tir=True)
def stamp(self: T.handle, arguments: T.handle, count: T.int32, result: T.handle):
    T.func_attr({"global_symbol": "__tvm_ffi_stamp", "calling_conv": 1})
    T.attr(0, "pragma_import_llvm", CODE)
    T.evaluate(T.call_extern("int32", "tvmcompress_stamp"))
"""


class Stamps:
    """`function` notes the time; `take` gives what was noted since, in ms."""

    def __init__(self, target: tvm.target.Target):
        self._times = np.zeros((ROOM + 1, 2), f"i{LONG // 8}")
        code = CODE.replace("ADDRESS", str(self._times.ctypes.data))
        stamp = tvm.script.from_source(STAMP, {"T": T, "CODE": code})
        self.function = tvm.compile(tvm.IRModule({"stamp": stamp}), target=target)["stamp"]

    def take(self) -> np.ndarray:
        count = int(self._times[0, 0])
        if count > ROOM:
            raise TvmcompressError(f"profile: a run makes {count // 2} calls; at most {ROOM // 2} can be timed")
        seconds, nanoseconds = self._times[1 : count + 1].T
        self._times[0, 0] = 0
        return (seconds - seconds[:1]) * 1e3 + nanoseconds / 1e6


class Watchable(Protocol):
    """What can be watched as `runtime.Program` can."""

    def watch(self, instrument: Any) -> None: ...


@dataclass(frozen=True)
class Called:
    """One call of a run: where its two times stand, the bytes of its tensors, and the shape of its result."""

    name: str
    before: int
    after: int
    bytes: int
    result: list[int]


def calls(program: Watchable, run: Callable[[], Any]) -> tuple[list[Called], int]:
    """The kernels that a run calls, in order, and how many times are noted in it; the machine's own calls are none."""
    events, open_calls, found = 0, list[int](), list[Called]()

    def note(_function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> None:
        nonlocal events
        if before:
            open_calls.append(events)
        else:
            start, tensors = open_calls.pop(), [a for a in arguments if hasattr(a, "shape") and hasattr(a, "dtype")]
            if not name.startswith("vm.builtin."):
                size = sum(int(np.prod(t.shape)) * t.dtype.itemsize for t in tensors)
                found.append(Called(name, start, events, size, [int(d) for d in tensors[-1].shape] if tensors else []))
        events += 1

    program.watch(note)
    try:
        run()
    finally:
        program.watch(None)
    return found, events
