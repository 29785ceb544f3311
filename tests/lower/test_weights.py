"""Weights leave the program and become arguments."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.small_net import small_int8_model
from tvmcompress import linking
from tvmcompress.ir import graph, ops
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import lower, machine
from tvmcompress.lower.weights import split
from tvmcompress.passes import ToBf16
from tvmcompress.target import Target


def large(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)


def run(parts, inputs):
    machine = relax.VirtualMachine(tvm.compile(parts.module, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    weights = machine["prepare"](*parts.stored) if parts.prepares else parts.stored
    out = machine["main"](*[tvm.runtime.tensor(i) for i in inputs], *weights)
    return [o.numpy() for o in out]


def test_large_constants_become_arguments_and_scalars_stay() -> None:
    def body(rw, x):
        y = rw.emit(relax.op.matmul(x, graph.const(large(0))))
        return [relax.op.multiply(y, graph.const(np.float32(2)))]

    mod = graph.program([("x", (3, 8), "float32")], body)
    text = mod.script(show_meta=True)
    parts = split(mod)
    assert mod.script(show_meta=True) == text
    relax.analysis.well_formed(parts.module)
    assert not parts.prepares
    assert [p.name for p in parts.module["main"].params] == ["x", "weight_0"]
    np.testing.assert_array_equal(parts.stored[0].numpy(), large(0))
    x = large(1)[:3]
    np.testing.assert_allclose(run(parts, [x])[0], x @ large(0) * 2, rtol=1e-4, atol=1e-5)


def test_a_constant_used_twice_is_one_argument() -> None:
    shared = graph.const(large(0))

    def body(rw, x):
        return [relax.op.matmul(rw.emit(relax.op.matmul(x, shared)), shared)]

    assert len(split(graph.program([("x", (3, 8), "float32")], body)).stored) == 1


def test_equal_constants_are_one_argument() -> None:
    """As an unrolled recurrent network has them; others of the same shape stay apart."""

    def body(rw, x):
        for seed in (0, 1, 0, 1):
            x = rw.emit(relax.op.matmul(x, graph.const(large(seed))))
        return [x]

    parts = split(graph.program([("x", (3, 8), "float32")], body))
    assert len(parts.stored) == 2
    x = large(2)[:3]
    wanted = x @ large(0) @ large(1) @ large(0) @ large(1)
    np.testing.assert_allclose(run(parts, [x])[0], wanted, rtol=1e-4, atol=1e-3)


def test_what_depends_on_constants_alone_is_prepared() -> None:
    """4-bit weights: 32 bytes stored, 256 bytes after loading; another weight passes through."""
    values = np.random.default_rng(2).integers(-8, 8, (8, 8)).astype(np.int8)

    def body(rw, x):
        w = rw.emit(ops.unpack_int4(graph.const(ops.pack_int4(np.tile(values, (4, 1))))))
        w = rw.emit(relax.op.astype(rw.emit(relax.op.strided_slice(w, [0], [0], [8])), "float32"))
        y = rw.emit(relax.op.matmul(x, w))
        return [relax.op.add(rw.emit(relax.op.matmul(y, graph.const(large(3)))), y), w]

    mod = ops.expand(graph.program([("x", (3, 8), "float32")], body))
    parts = split(mod)
    relax.analysis.well_formed(parts.module)
    assert parts.prepares and parts.inputs == 1
    assert [tuple(t.shape) for t in parts.stored] == [(32, 4), (8, 8)]
    x = large(4)[:3]
    y = x @ values
    got, weight = run(parts, [x])
    np.testing.assert_allclose(got, y @ large(3) + y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(weight, values)


def test_a_program_without_weights() -> None:
    parts = split(graph.program([("x", (3, 8), "float32")], lambda rw, x: [relax.op.nn.relu(x)]))
    assert parts.stored == [] and not parts.prepares


def products():
    """A program with every kind of product whose weights are packed: x (1, 8, 5, 5) to (1, 10), and x."""
    random = np.random.default_rng(5)
    shapes = [(24, 8, 3, 3), (24, 12, 1, 1), (24, 1, 3, 3)]

    def constant(*shape):
        return graph.const((random.standard_normal(shape) * 0.2).astype(np.float32))

    def body(rw, x):
        for shape, groups in zip(shapes, (1, 2, 24)):
            y = rw.emit(relax.op.nn.conv2d(x, constant(*shape), padding=shape[2] // 2, groups=groups))
            x = rw.emit(relax.op.nn.relu(y))
        return [relax.op.matmul(rw.emit(relax.op.reshape(x, (1, 24 * 25))), constant(24 * 25, 10))]

    return graph.program([("x", (1, 8, 5, 5), "float32")], body), random.standard_normal((1, 8, 5, 5), np.float32)


@pytest.mark.parametrize("to", ["float32", "bf16", "int8"])
def test_neutral_weights_are_those_of_the_program_and_give_the_same_results(to: str) -> None:
    mod, x = products()
    target = Target.load("native")
    facts = isa_of(target.to_tvm(), target.l1d, target.l2)
    if to == "int8":
        model, x = small_int8_model()
        mod = model.module
    elif to == "bf16":
        mod = ToBf16()(mod, None).module
    results = []
    for neutral in (False, True):
        lowered = lower(mod, target.to_tvm(), facts, neutral=neutral)
        results.append(machine(lowered, linking.linker(target))([x])[0])
    np.testing.assert_array_equal(*results)
    own = {tuple(graph.shape(c)) for b in graph.bindings(mod) for c in graph.constants_of(b.value)}
    assert lowered.prepares and {tuple(t.shape) for t in lowered.stored} <= own
