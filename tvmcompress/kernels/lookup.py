"""Tables of 256 bytes looked up 64 elements at a time, where the instruction set can.

The generic schedule loads one byte after the other. `vpermi2b` picks 64 bytes out of 128: two of them and a choice by
the highest bit are the whole table.
"""

from __future__ import annotations

import math

from tvm.tirx import IntImm, PrimFunc

from tvmcompress.ir import script
from tvmcompress.isa import Isa

STEP = 64  # elements of one vector
BYTES = ("uint8", "int8")
NAME = "look_up"  # of the block, as kernels.quantized writes it

TEMPLATE = """
@T.prim_func(private=True, s_tir=True)
def look_up(x: T.Buffer({shape}, "{data}"), table: T.Buffer((256,), "{out}"), y: T.Buffer({shape}, "{out}")):
    T.func_attr({{"tirx.noalias": True, "tirx.is_scheduled": True}})
    flat_x = T.decl_buffer(({count},), "{data}", data=x.data)
    flat_y = T.decl_buffer(({count},), "{out}", data=y.data)
    T.attr(0, "pragma_import_llvm", CODE)
    T.evaluate(T.call_extern("void", "tvmcompress_iterations", {tasks}))
    for task in T.parallel({tasks}):
        for i in range({turns}):
            if (task * {turns} + i) * {step} < {whole}:
                flat_y[T.ramp((task * {turns} + i) * {step}, 1, {step})] = T.call_pure_extern(
                    "{out}x{step}",
                    "tvmcompress_look_up_{data}",
                    flat_x[T.ramp((task * {turns} + i) * {step}, 1, {step})],
                    table[T.ramp(0, 1, {step})],
                    table[T.ramp({step}, 1, {step})],
                    table[T.ramp({step} * 2, 1, {step})],
                    table[T.ramp({step} * 3, 1, {step})],
                )
    for j in range({rest}):
        flat_y[{whole} + j] = table[T.cast(flat_x[{whole} + j], "int32") - {first}]
"""
A_TASK = 16384  # elements


def look_up(func: PrimFunc, isa: Isa) -> PrimFunc | None:
    """The kernel in place of `func`, which looks up every element of its first argument in its second."""
    x, table = (parameter.ty for parameter in func.params[:2])
    data, out = str(x.dtype), str(table.dtype)
    if not isa.look_up or data not in BYTES or out not in BYTES or not all(isinstance(d, IntImm) for d in x.shape):
        return None
    shape = tuple(int(d) for d in x.shape)
    count = math.prod(shape)
    if count < STEP:
        return None
    steps = count // STEP
    tasks = max(1, count // A_TASK) if isa.cores > 1 else 1
    source = TEMPLATE.format(
        shape=shape, data=data, out=out, count=count, tasks=tasks, turns=-(-steps // tasks), step=STEP,
        whole=steps * STEP, rest=count - steps * STEP, first=-128 if data == "int8" else 0,
    )  # fmt: skip
    return script.read(source, isa.look_up)
