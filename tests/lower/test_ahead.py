"""What kernels fetch before they write it: the right addresses, in every form that results have."""

from __future__ import annotations

import pytest
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Call

from tests.lower.test_planes import agree, bias, conv, rows  # noqa: F401  a fixture
from tests.lower.tools import need
from tvmcompress.ir import graph
from tvmcompress.lower import ahead

op, nn = relax.op, relax.op.nn


@pytest.fixture
def addresses(monkeypatch) -> list[tuple[str, int]]:
    """What is fetched in the end: buffer, if it is not one of the kernel's own, and bytes from a row to the next."""
    found: list[tuple[str, int]] = []
    original = ahead.fetched

    def fetched(body: tirx.Stmt) -> tirx.Stmt:
        body = original(body)
        own: list[tirx.Var] = []
        tvm_ffi.structural_walk(body, [(tirx.AllocBuffer, lambda node: own.append(node.buffer))])

        def note(node: tirx.Evaluate) -> None:
            if ahead.takes_address(node):
                *_, address, pitch = node.value.args
                assert isinstance(address, Call)
                source = address.args[0].source
                found.append(("own" if any(source.same_as(one) for one in own) else str(source.name), int(pitch)))

        tvm_ffi.structural_walk(body, [(tirx.Evaluate, note)])
        stores: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(body, [(tirx.BufferStore, stores.append)])
        # Whole vectors, where planes have no whole number of them too: not one element after the other.
        assert not stores or any(isinstance(index, tirx.Ramp) for store in stores for index in store.indices)
        return body

    monkeypatch.setattr(ahead, "fetched", fetched)
    return found


@pytest.mark.parametrize("size", [7, 14, 16, 40])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("outputs", [40, 64])
def test_rows_of_the_result(addresses, size: int, residual: bool, outputs: int) -> None:
    """Of 64 outputs chunks are all, so that kernels write results themselves."""
    need("native")

    def body(rw, x):
        y = rw.emit(nn.relu(bias(rw, conv(rw, x, 1, outputs), 1)))
        z = bias(rw, conv(rw, y, 2, outputs, 3, 1, 1), 2)
        z = rw.emit(nn.relu(rw.emit(op.add(z, y)) if residual else z))
        return [rw.emit(op.mean(conv(rw, z, 3, 48), [2, 3], keepdims=True))]

    agree(graph.program([("x", (2, 24, size, size), "float32")], body), planes=3)
    assert len(addresses) >= 3
    for name, pitch in addresses:
        assert pitch == size * size * 4, (name, pitch)
        assert name != "own"
