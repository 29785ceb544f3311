"""What builds of one program have in common is made once: schedules, and machine code, on all cores of this machine.

Each tensor program is a module of LLVM's of its own. Machine code takes most of the time of a compilation and none of
Python's, and what other modules hold changes nothing in it.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, TypeVar

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GlobalVar
from tvm.tirx import PrimFunc

from tvmcompress import cpu
from tvmcompress.isa import Isa
from tvmcompress.lower import registers

T = TypeVar("T")
SYMBOL = "global_symbol"


class Found(Generic[T]):
    """Something for each tensor program, whatever its name is."""

    def __init__(self) -> None:
        self.rows: dict[int, list[tuple[PrimFunc, T]]] = {}

    def get(self, func: PrimFunc, make: Callable[[], T]) -> T:
        """What was made for an equal program, else what `make` returns."""
        bare = func.without_attr(SYMBOL)
        rows = self.rows.setdefault(tvm_ffi.structural_hash(bare), [])
        for known, value in rows:
            if tvm_ffi.structural_equal(known, bare):
                return value
        rows.append((bare, make()))
        return rows[-1][1]


class Shared:
    """Of builds for one target: `scheduled` for `lower.schedules`, and machine code by the names of `parted`."""

    def __init__(self, target: tvm.target.Target, isa: Isa) -> None:
        self.target, self.isa = target, isa
        self.scheduled: Found[tuple[PrimFunc, str]] = Found()
        self.names: Found[str] = Found()
        self.taken = set[str]()
        self.lock = threading.Lock()
        self.code: dict[str, Future[tvm.runtime.Module]] = {}

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cpu.usable())

    def after_fork(self) -> Shared:
        """For a build with other choices in a forked child, where threads and locks are its own: machine code of what
        comes out the same. What it makes stays there."""
        copy = Shared(self.target, self.isa)
        copy.names, copy.taken = self.names, self.taken
        copy.code = {name: made for name, made in self.code.items() if made.done()}
        return copy

    def parted(self, mod: tvm.IRModule) -> tuple[tvm.IRModule, dict[str, PrimFunc]]:
        """`mod` without its tensor programs, and these by name, of equal ones one.

        They have the same name in all builds: that which the first had, or like it. What calls them finds them by that,
        as it does what is in other libraries.
        """
        names = {var: self.names.get(func, partial(self.free, var.name_hint)) for var, func in programs(mod)}
        outside = [(GlobalVar, lambda var: relax.ExternFunc(names[var]) if var in names else var)]
        functions = {v: tvm_ffi.structural_map(f, outside) for v, f in mod.functions_items() if v not in names}
        return tvm.IRModule(functions, attrs=mod.attrs), {
            names[var]: func.with_attr(SYMBOL, names[var]) for var, func in programs(mod)
        }

    def free(self, name: str) -> str:
        """The name, or where other programs have it one that is like it."""
        others = (f"{name}_{number}" for number in itertools.count(1))
        free = next(one for one in itertools.chain([name], others) if one not in self.taken)
        self.taken.add(free)
        return free

    def modules(self, wanted: Mapping[str, PrimFunc]) -> list[tvm.runtime.Module]:
        """Machine code of the programs that `parted` left, in their order, and an empty module of LLVM's, which TVM
        asks for the target when it exports a library. Several threads may call this at once."""
        with self.lock:
            for name, func in wanted.items():
                if name not in self.code:
                    self.code[name] = self.pool.submit(self.compiled, func)
        try:
            return [*(self.code[name].result() for name in wanted), self.in_llvm(tvm.IRModule({}))]
        except BaseException:
            self.pool.shutdown(wait=False, cancel_futures=True)  # what waits would be made before Python ends
            raise

    def compiled(self, func: PrimFunc) -> tvm.runtime.Module:
        """An object file in memory: writing it is half of the work."""
        with tempfile.TemporaryDirectory(prefix="tvmcompress-") as folder:
            path = str(Path(folder, "kernel.o"))
            self.in_llvm(func).write_to_file(path)
            return tvm.runtime.load_static_library(path, [func.attrs[SYMBOL]])

    def in_llvm(self, code: PrimFunc | tvm.IRModule) -> tvm.runtime.Module:
        with self.target, tvm.transform.PassContext(opt_level=3, config=config(self.isa)):
            return tvm.tirx.build(code, self.target, pipeline=registers.PIPELINE)


def programs(mod: tvm.IRModule) -> Iterator[tuple[GlobalVar, PrimFunc]]:
    return ((var, func) for var, func in mod.functions_items() if isinstance(func, PrimFunc))


def config(isa: Isa) -> dict:
    # Kernels do not check their arguments, which come from our own programs: that would be more than half of the code.
    return {"tirx.disable_assert": True} | ({"tirx.enable_buffer_level_predication": True} if isa.masked else {})
