"""Programs that keep their weights and buffers on the board.

A tensor that a client names as an argument arrives as an address, and TVM's virtual machine copies what lies there.
So a client cannot hand over what `prepare` returned: buffers that share memory would come apart, and what is read under
another shape would never have been written.
"""

from __future__ import annotations

from typing import Any

PREPARE = "tvmcompress.program.prepare"
SET_INPUT = "tvmcompress.program.set_input"


def offer(ffi: Any) -> None:
    """Registers both functions in this process: `prepare(machine)`, once its stored weights are set, gives a number;
    `set_input(machine, number, inputs …)` sets those of `main`, with what was prepared behind them."""
    kept: list[list[Any]] = []

    @ffi.register_global_func(PREPARE, override=True)
    def prepare(machine: Any) -> int:
        machine["invoke_stateful"]("prepare")
        kept.append([machine["get_output"]("prepare", i) for i in range(machine["get_output_arity"]("prepare"))])
        return len(kept) - 1

    @ffi.register_global_func(SET_INPUT, override=True)
    def set_input(machine: Any, number: int, *inputs: Any) -> None:
        machine["set_input"]("main", *inputs, *kept[number])
