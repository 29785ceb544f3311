"""Builds of one program share schedules and machine code."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.script import tirx as T

from tests.lower.tools import need
from tvmcompress import linking
from tvmcompress.ir import graph
from tvmcompress.ir.evaluate import evaluate
from tvmcompress.isa import isa_of
from tvmcompress.lower import schedules
from tvmcompress.lower.builds import begun
from tvmcompress.lower.pipeline import machine
from tvmcompress.lower.shared import Shared
from tvmcompress.lower.sparse import Keep
from tvmcompress.target import Target

SIZE = 96


def program() -> tuple[tvm.IRModule, np.ndarray, np.ndarray]:
    """Two products by weights with zeros, softmax between; an input; and the result."""
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((SIZE, SIZE)).astype(np.float32) for _ in range(2)]
    for weight in weights:
        weight[rng.random(weight.shape) < 0.9] = 0
    x = rng.standard_normal((64, SIZE)).astype(np.float32)

    def body(rw, data):
        y = rw.emit(relax.op.nn.softmax(rw.emit(relax.op.matmul(data, graph.const(weights[0])), "first")))
        return [rw.emit(relax.op.nn.gelu(rw.emit(relax.op.matmul(y, graph.const(weights[1])), "second")))]

    mod = graph.program([("x", x.shape, "float32")], body)
    return mod, x, evaluate(mod, [x])[0]


def test_builds_that_differ_in_what_they_keep(monkeypatch):
    need("native")
    target, compiled, scheduled = Target.load("native"), [], []
    code, one = Shared.compiled, schedules.one
    monkeypatch.setattr(Shared, "compiled", lambda self, func: compiled.append(func) or code(self, func))
    monkeypatch.setattr(schedules, "one", lambda func, *rest: scheduled.append(func) or one(func, *rest))
    mod, x, wanted = program()
    begin = begun(mod, target)
    sparse, dense, mixed = (
        begin(keep) for keep in (Keep("always"), Keep("never"), Keep("always", frozenset({"first"})))
    )
    assert len(scheduled) == len({tvm_ffi.structural_hash(func.without_attr("global_symbol")) for func in scheduled})
    for build in (sparse, dense):
        np.testing.assert_allclose(machine(build.build(), linking.linker(target))([x])[0], wanted, rtol=1e-4, atol=1e-5)
    names = [str(func.attrs["global_symbol"]) for func in compiled]
    assert len(set(names)) == len(names)
    both = [set(build.build().origin.programs) for build in (sparse, dense)]
    assert any("softmax" in name for name in both[0] & both[1]) and both[0] - both[1] and both[1] - both[0]
    # A third of parts of both: the first product of the dense one, the second of the other.
    before, lowered = len(compiled), mixed.build()
    assert not any("sparse" in str(func.attrs["global_symbol"]) for func in compiled[before:])
    assert [bool(row["sparse"]["kept"]) for row in lowered.layers] == [False, True]
    np.testing.assert_allclose(machine(lowered, linking.linker(target))([x])[0], wanted, rtol=1e-4, atol=1e-5)


def scaled(by: float, size: int) -> tvm.tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((size,), "float32"), y: T.Buffer((size,), "float32")):
        for i in range(size):
            with T.sblock("scaled"):
                v = T.axis.spatial(size, i)
                y[v] = x[v] * T.float32(by)

    return main


@pytest.fixture
def shared() -> Shared:
    machine = Target.load("x86-64-v3").to_tvm()
    return Shared(machine, isa_of(machine))


def test_one_name_for_equal_programs_and_others_for_others(shared):
    def parted(**functions) -> list[str]:
        return list(shared.parted(tvm.IRModule(functions))[1])

    assert parted(a=scaled(2, 8), b=scaled(3, 8)) == ["a", "b"]
    assert parted(b=scaled(2, 8), c=scaled(3, 8)) == ["a", "b"]
    assert parted(b=scaled(4, 8), a=scaled(2, 16)) == ["a_1", "b_1"]
    assert parted(d=scaled(4, 8), e=scaled(4, 8)) == ["b_1"]


def test_what_fails_ends_the_rest(shared):
    """As Ctrl-C does: what waits for a thread is not made."""
    _, programs = shared.parted(tvm.IRModule({f"f{i}": scaled(i, 8) for i in range(50)}))
    done = []

    def compiled(func):
        done.append(func)
        raise ValueError("no machine code")

    shared.compiled = compiled
    with pytest.raises(ValueError, match="no machine code"):
        shared.modules(programs)
    assert shared.pool._shutdown and len(done) < 50
