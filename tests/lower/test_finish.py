"""A bias and limits in the kernel itself: the same results as operators behind it, and only where nothing else reads
what they read."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tests.lower.test_planes import agree, bias, conv, rows  # noqa: F401  a fixture
from tests.lower.test_sparse import built, normal, pruned, results
from tests.lower.tools import need
from tvmcompress.ir import graph
from tvmcompress.kernels import code_rows, sparse_rows_plan
from tvmcompress.kernels.code import Words
from tvmcompress.kernels.sparse import UNLIMITED, Limits
from tvmcompress.lower.finish import Finishes

op, nn = relax.op, relax.op.nn
X86 = ("native", "x86-64-v3", "x86-64-v2")


@pytest.fixture
def whole(monkeypatch):
    """Tiles and chunks that are all of the result; the last of them has several slices where there are such."""

    def only(number: int) -> None:
        every = sparse_rows_plan.ranked

        def chosen(*given):
            plans = [sparse_rows_plan.Plan(given[2], tile, given[0], *given[-2:]) for tile in every(*given)]
            found = [p.tile for p in plans if p.whole and (number == 0 or p.slices > number)]
            return tuple(found) or every(*given)

        monkeypatch.setattr(sparse_rows_plan, "ranked", chosen)

    return only


def behind(rw, x, how: str):
    if "bias" in how:
        x = bias(rw, x, 9)
    if "one" in how:
        x = rw.emit(op.add(graph.const(np.float32(0.25)), x))
    if "relu" in how:
        x = rw.emit(nn.relu(x))
    if "clip" in how:
        x = rw.emit(op.clip(x, -0.5, 0.75))
    return x


def layer(channels: int, outputs: int, size: tuple[int, int], how: str, kernel: int = 1):
    def body(rw, x):
        x = rw.emit(nn.relu(conv(rw, x, 1, channels)))
        x = behind(rw, conv(rw, x, 2, outputs, kernel, 1, kernel // 2), how)
        return [conv(rw, x, 3, 16)]

    return graph.program([("x", (2, 8, *size), "float32")], body)


@pytest.mark.parametrize("how", ["bias", "relu", "clip", "bias relu", "one clip", "one relu", "bias one", "bias clip"])
@pytest.mark.parametrize("name", X86)
def test_what_a_kernel_does_itself(how, name, whole):
    need(name)
    whole(0)
    agree(layer(16, 32, (8, 8), how), name, 3)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 10)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("name", X86)
def test_pixels_that_are_no_whole_vectors(size, kernel, name, whole):
    need(name)
    whole(0)
    agree(layer(16, 32, size, "bias relu", kernel), name, 3)


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_slices(slices, whole):
    """The bias comes before the first, limits behind the last."""
    whole(slices)
    agree(layer(70, 32, (8, 8), "bias clip"), "native", 3)


def test_kernels_that_differ_in_their_limits_alone():
    """Functions of one name are one function: a limit above and one below, and two that are nearly the same."""
    limits = [(-np.inf, 0.25), (0.25, np.inf), (-0.1234567, np.inf), (-0.1234568, np.inf), (-np.inf, np.inf)]

    def body(rw, x):
        x = rw.emit(nn.relu(conv(rw, x, 1, 32)))
        return [conv(rw, rw.emit(op.clip(conv(rw, x, 2, 32), *both)), 3, 32) for both in limits]

    agree(graph.program([("x", (1, 16, 8, 8), "float32")], body), planes=7)
    functions = {
        code_rows.rows(Words(16, None, True), code_rows.Rows(64, 2, "i16", low=low, high=high)).name
        for low, high in limits
    }
    assert len(functions) == len(limits)


def finish_of(body) -> tuple[list[str], bool, Limits]:
    mod = graph.program([("x", (1, 4, 4, 8), "float32")], body)
    definitions = graph.definitions(mod)
    (var,) = [v for v, e in definitions.items() if graph.op_name(e) == "relax.nn.conv2d"]
    found = Finishes(mod)(var)
    return [graph.op_name(definitions[v]).split(".")[-1] for v in found.taken], found.bias is not None, found.limits


def convolved(rw, x):
    return rw.emit(nn.conv2d(x, graph.const(normal(1, 6, 8, 1, 1)), data_layout="NHWC", kernel_layout="OIHW"))


def added(rw, x, *shape: int):
    return rw.emit(op.add(x, graph.const(np.full(shape, 0.5, np.float32))))


@pytest.mark.parametrize("shape", [(6,), (1, 1, 6), (1, 1, 1, 6), (1,), ()])
def test_a_bias_is_a_value_of_each_output(shape):
    assert finish_of(lambda rw, x: [rw.emit(nn.relu(added(rw, convolved(rw, x), *shape)))]) == (
        ["add", "relu"], True, Limits(low=0.0),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 1), (4, 4, 6), (1, 4, 4, 1)])
def test_other_sums_stay(shape):
    assert finish_of(lambda rw, x: [added(rw, convolved(rw, x), *shape)]) == ([], False, UNLIMITED)


def test_two_readers():
    def body(rw, x):
        y = added(rw, convolved(rw, x), 6)
        return [rw.emit(op.add(rw.emit(nn.relu(y)), rw.emit(op.exp(y))))]

    assert finish_of(body) == (["add"], True, UNLIMITED)


def test_a_result_is_what_it_is():
    def body(rw, x):
        y = convolved(rw, x)
        return [y, rw.emit(nn.relu(y))]

    assert finish_of(body) == ([], False, UNLIMITED)


def test_nothing_behind_limits():
    def body(rw, x):
        return [rw.emit(nn.relu(added(rw, rw.emit(nn.relu(convolved(rw, x))), 6)))]

    assert finish_of(body) == (["relu"], False, Limits(low=0.0))


@pytest.mark.parametrize("how, wanted", [("relu", 0.0), ("clip", 0.75)])
def test_no_number_becomes_what_tvms_operators_make_of_it(how, wanted):
    """Of a pixel that is no number; TVM's own kernels for operators of their own say the same."""

    def body(rw, x):
        return [
            op.permute_dims(behind(rw, conv(rw, rw.emit(op.permute_dims(x, [0, 3, 1, 2])), 2, 32), how), [0, 2, 3, 1])
        ]

    def alone(rw, x):
        return [behind(rw, x, how)]

    x = np.full((1, 8, 8, 16), np.nan, np.float32)
    (got,) = results(built(graph.program([("x", x.shape, "float32")], body)), x)
    (apart,) = results(built(graph.program([("x", x.shape, "float32")], alone)), x)
    some = pruned(2, 32, 16, 1, 1).any((1, 2, 3))  # of the others no weight is multiplied with anything
    np.testing.assert_array_equal(got[..., some], np.full_like(got[..., some], wanted))
    np.testing.assert_array_equal(apart, np.full_like(apart, wanted))
