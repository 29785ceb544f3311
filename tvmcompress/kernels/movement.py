"""Concatenation as one copy for each part.

TVM's is one expression that asks of every element which part it comes from; along the innermost axis that is neither a
vector nor a plain copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

TEMPLATE = """
@T.prim_func(private=True, s_tir=True)
def concat({parameters}):
    T.func_attr({{"tirx.noalias": True, "op_pattern": 8}})
{copies}
"""
COPY = """    for {indices} in T.grid({extents}):
        with T.sblock("copy_{number}"):
            {axes} = T.axis.remap("{kinds}", [{indices}])
            C[{target}] = A{number}[{axes}]
"""


def concat(shapes: Sequence[Sequence[int]], axis: int, dtype: str) -> PrimFunc:
    """Copies arrays of `shapes` one behind the other along `axis`."""
    rank = len(shapes[0])
    out = [sum(s[axis] for s in shapes) if i == axis else shapes[0][i] for i in range(rank)]
    parameters = [f'A{n}: T.Buffer({tuple(s)}, "{dtype}")' for n, s in enumerate([*shapes])]
    parameters.append(f'C: T.Buffer({tuple(out)}, "{dtype}")')
    copies, offset = [], 0
    for number, shape in enumerate(shapes):
        names = [f"v{i}" for i in range(rank)]
        target = [f"{name} + {offset}" if i == axis else name for i, name in enumerate(names)]
        copies.append(
            COPY.format(
                indices=", ".join(f"i{i}" for i in range(rank)),
                extents=", ".join(str(d) for d in shape),
                number=number,
                axes=", ".join(names),
                kinds="S" * rank,
                target=", ".join(target),
            )
        )
        offset += shape[axis]
    source = TEMPLATE.format(parameters=", ".join(parameters), copies="".join(copies))
    return tvm.script.from_source(source, {"T": T})
