"""Activations between sparse layers as planes: what becomes planes, what does not, and that results are the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.lower.test_sparse import built, calls, normal, pruned, results, rows_of
from tests.lower.tools import need
from tvmcompress.ir import evaluate, graph
from tvmcompress.isa import isa_of
from tvmcompress.kernels import sparse_rows_plan
from tvmcompress.lower import sparse
from tvmcompress.lower.pipeline import lower
from tvmcompress.lower.sparse_layers import SparseLayers
from tvmcompress.target import Target

op, nn = relax.op, relax.op.nn
X86 = ("native", "x86-64-v3", "x86-64-v2")


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """Layers as small as these would be blocks, most of them full; and not all of them gain by planes."""
    monkeypatch.setattr(SparseLayers, "cycles", lambda _self, _var, source, result: 2 - source - result)
    every = sparse.candidates
    monkeypatch.setattr(sparse, "candidates", lambda *given: [one for one in every(*given) if one.text == "rows"])


def agree(mod: tvm.IRModule, name: str = "native", planes: int | None = None) -> list[str]:
    """The program's results are those of its operators; `planes`: kernels that read or write such."""
    rng = np.random.default_rng(0)
    (x,) = (rng.standard_normal(graph.shape(p)).astype(np.float32) for p in mod["main"].params)
    lowered = built(mod, name=name)
    for got, wanted in zip(results(lowered, x, name), evaluate.evaluate(mod, [x]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    keys = [key for key in calls(lowered) if key.startswith("sparse ")]
    if planes is not None:
        assert sum("planes" in key for key in keys) == planes, keys
    return keys


def conv(rw, x, seed: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0, dilation: int = 1):
    weight = pruned(seed, outputs, graph.shape(x)[1], kernel, kernel)
    return rw.emit(nn.conv2d(x, graph.const(weight), stride, padding, dilation), f"c{seed}")


def bias(rw, x, seed: int):
    return rw.emit(op.add(x, graph.const(normal(seed, graph.shape(x)[1], 1, 1))))


def bottleneck(rw, x, seed: int, outputs: int, stride: int = 1):
    y = rw.emit(nn.relu(bias(rw, conv(rw, x, seed, outputs // 2), seed)))
    y = rw.emit(nn.relu(bias(rw, conv(rw, y, seed + 1, outputs // 2, 3, stride, 1), seed + 1)))
    y = bias(rw, conv(rw, y, seed + 2, outputs), seed + 2)
    side = x if graph.shape(x) == graph.shape(y) else conv(rw, x, seed + 3, outputs, 1, stride)
    return rw.emit(nn.relu(rw.emit(op.add(y, side))))


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("size", [13, 40])
def test_residual_blocks(name, size):
    """From the stem, which is dense, to the average all is planes; the first two layers read pixels."""
    need(name)
    stem, last = normal(90, 24, 3, 3, 3), normal(91, 48, 10)

    def body(rw, x):
        x = rw.emit(nn.relu(rw.emit(nn.conv2d(x, graph.const(stem), 1, 1))))
        for seed, outputs, stride in ((10, 40, 1), (20, 40, 1), (30, 48, 2)):
            x = bottleneck(rw, x, seed, outputs, stride)
        x = rw.emit(op.mean(x, [2, 3], keepdims=True))
        return [rw.emit(op.matmul(rw.emit(op.reshape(x, (2, 48))), graph.const(last)))]

    keys = agree(graph.program([("x", (2, 3, size, size), "float32")], body), name)
    assert sum(key.endswith("pixels planes") for key in keys) == 2
    assert sum(key.endswith("planes planes") for key in keys) == len(keys) - 2 >= 6


LAYERS = [
    # size, channels, outputs, kernel, stride, padding, dilation
    ((5, 7), 3, 5, 1, 1, 0, 1),
    ((9, 33), 17, 20, 3, 1, 1, 1),
    ((20, 20), 6, 70, 3, 2, 1, 1),
    ((15, 31), 20, 9, 5, 3, 2, 1),
    ((24, 18), 33, 16, 3, 1, 2, 2),
    ((11, 50), 8, 8, 2, 4, 0, 1),
    ((3, 50), 8, 33, 3, 1, 1, 1),
    ((1, 1), 64, 64, 1, 1, 0, 1),
    ((40, 40), 16, 32, 1, 2, 0, 1),
    ((7, 7), 64, 64, 3, 1, 1, 1),
    ((64, 48), 3, 24, 16, 16, 0, 1),
    ((41, 40), 6, 12, 3, 5, 0, 3),
]


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_form_of_layer(layer, name):
    """Three in a row, so that the one in the middle reads and writes planes, the others on one side alone."""
    need(name)
    size, channels, outputs, kernel, stride, padding, dilation = layer

    def body(rw, x):
        x = rw.emit(nn.relu(bias(rw, conv(rw, x, 1, channels), 1)))
        x = bias(rw, conv(rw, x, 2, outputs, kernel, stride, padding, dilation), 2)
        return [conv(rw, rw.emit(nn.relu(x)), 3, 12)]

    agree(graph.program([("x", (2, 4, *size), "float32")], body), name, 3)


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (16, 20), (32, 32), (7, 7), (14, 14), (5, 5), (5, 10)], ids=str)
@pytest.mark.parametrize("least", [0, 1])
def test_without_a_copy(size, name, least, monkeypatch):
    """Of tiles that are read as they lie the first, and the last one with several slices."""
    need(name)
    every = sparse_rows_plan.ranked

    def lying(*given):
        if given[-2] != sparse_rows_plan.PLANES:
            return every(*given)
        found = [tile for tile in every(*given) if tile.images == sparse_rows_plan.NONE]
        assert found
        return found[:1] if least == 0 else [tile for tile in found if tile.slice < 70][-1:]

    monkeypatch.setattr(sparse_rows_plan, "ranked", lying)

    def body(rw, x):
        x = rw.emit(nn.relu(bias(rw, conv(rw, x, 1, 70), 1)))
        return [conv(rw, rw.emit(op.add(x, rw.emit(nn.relu(conv(rw, x, 2, 70))))), 3, 12)]

    agree(graph.program([("x", (2, 70, *size), "float32")], body), name, 3)


def single(rw, x):
    return [rw.emit(nn.relu(conv(rw, x, 1, 1, 3, 1, 1)))]


def test_a_single_output_stays_pixels():
    agree(graph.program([("x", (1, 8, 15, 29), "float32")], single), planes=0)


def test_tvm_still_fails_at_planes_of_a_single_output(monkeypatch):
    """Of tiles that hang over; once it does not, `sparse_rows_plan.LEAST` can go."""
    every = sparse_rows_plan.ranked

    def hanging(*given):
        return tuple(tile for tile in every(*given) if given[0].out[0] % tile.rows)

    monkeypatch.setattr(sparse_rows_plan, "LEAST", 1)
    monkeypatch.setattr(sparse_rows_plan, "ranked", hanging)
    with pytest.raises(tvm.error.InternalError, match="has been used before definition"):
        built(graph.program([("x", (1, 8, 15, 29), "float32")], single))


def test_rows_too_long_for_a_tile_stay_pixels():
    """Sums of a row of 900 pixels do not fit the registers, and with a window it is no run of memory."""

    def body(rw, x):
        x = rw.emit(nn.relu(conv(rw, x, 1, 8, 3, 1, 1)))
        return [conv(rw, x, 2, 8, 3, 1, 1)]

    agree(graph.program([("x", (1, 8, 4, 900), "float32")], body), planes=0)


def test_padding_by_an_operator():
    def body(rw, x):
        x = rw.emit(nn.relu(conv(rw, x, 1, 8)))
        padded = rw.emit(nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 1]))
        return [conv(rw, padded, 2, 8, 3)]

    agree(graph.program([("x", (1, 8, 6, 9), "float32")], body), planes=2)


def test_what_a_dense_layer_reads_stays_pixels():
    """What the program itself gives and wants is planes."""
    dense = normal(5, 8, 8, 1, 1)

    def body(rw, x):
        x = rw.emit(nn.relu(conv(rw, x, 1, 8)))
        return [conv(rw, x, 2, 8), rw.emit(nn.conv2d(x, graph.const(dense)))]

    keys = agree(graph.program([("x", (1, 8, 6, 9), "float32")], body))
    assert sorted(key.split(" pad ")[1] for key in keys) == ["0,0,0,0 pixels planes", "0,0,0,0 planes pixels"]


def test_inputs_and_results_with_channels_first_are_planes():
    """Nothing is left to transpose; one that a layer reads is a result, too, and so is the input."""

    def body(rw, x):
        y = rw.emit(nn.relu(conv(rw, rw.emit(nn.relu(x)), 1, 8, 3, 2, 1)))
        return [conv(rw, y, 2, 8), y, x]

    module, seen = graph.program([("x", (2, 8, 16, 9), "float32")], body), {}
    agree(module, planes=2)
    target = Target.load("native")
    lower(module, target.to_tvm(), isa_of(target.to_tvm()), seen.__setitem__, keep=sparse.Keep("always"))
    assert not [v.name_hint for v in seen["fuse"].get_global_vars() if "transpose" in v.name_hint]


@pytest.mark.parametrize("first", [False, True])
def test_tokens(first):
    """(n, tokens, channels), unless the program turns them round. Two layers read them."""
    weights = [graph.const(pruned(seed, 40, 24, 1, 1)[:, :, 0, 0].T) for seed in (1, 2)]

    def body(rw, x):
        x = rw.emit(op.permute_dims(x, [0, 2, 1])) if first else x
        found = [rw.emit(nn.relu(rw.emit(op.matmul(x, weight)))) for weight in weights]
        return [rw.emit(op.permute_dims(y, [0, 2, 1])) if first else y for y in found]

    shape = (1, 24, 35) if first else (1, 35, 24)
    agree(graph.program([("x", shape, "float32")], body), planes=2 * first)


def test_results_with_channels_last_stay_pixels():
    weight = graph.const(pruned(1, 40, 24, 1, 1)[:, :, 0, 0].T)

    def body(rw, x):
        y = rw.emit(op.matmul(rw.emit(op.permute_dims(x, [0, 2, 1])), weight))
        return [y, rw.emit(op.permute_dims(y, [0, 2, 1]))]

    (key,) = agree(graph.program([("x", (1, 24, 35), "float32")], body))
    assert key.endswith("planes pixels")


def test_gates_of_channels():
    """A gate for each channel of each image, made of what it gates."""
    squeeze = normal(5, 16, 16, 1, 1)

    def body(rw, x):
        x = rw.emit(nn.silu(conv(rw, x, 1, 16)))
        gate = rw.emit(nn.conv2d(rw.emit(op.mean(x, [2, 3], keepdims=True)), graph.const(squeeze)))
        x = rw.emit(op.multiply(x, rw.emit(op.sigmoid(gate))))
        return [conv(rw, x, 2, 8)]

    agree(graph.program([("x", (2, 8, 6, 9), "float32")], body), planes=2)


def test_clipped_and_by_numbers():
    def body(rw, x):
        x = rw.emit(op.clip(conv(rw, x, 1, 16), 0, 6))
        x = rw.emit(op.multiply(x, graph.const(np.full((1, 1, 1, 1), 0.5, np.float32))))
        x = rw.emit(op.add(x, graph.const(np.float32(0.25))))
        return [conv(rw, x, 2, 8)]

    agree(graph.program([("x", (1, 8, 6, 9), "float32")], body), planes=2)


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("shape", [(1, 37, 24), (37, 24), (3, 5, 24)], ids=str)
def test_products_of_matrices(shape, name):
    need(name)
    first, second, shift = pruned(1, 24, 50), pruned(2, 50, 20), normal(3, 50)

    def body(rw, x):
        x = rw.emit(op.add(rw.emit(op.matmul(x, graph.const(first)), "up"), graph.const(shift)))
        return [rw.emit(op.matmul(rw.emit(nn.gelu(x)), graph.const(second)), "down")]

    agree(graph.program([("x", shape, "float32")], body), name, 2)


def test_the_report_says_the_same():
    """Formats are those of the weights, whatever activations are."""

    def body(rw, x):
        return [conv(rw, rw.emit(nn.relu(conv(rw, x, 1, 16))), 2, 16)]

    mod = graph.program([("x", (1, 16, 8, 8), "float32")], body)
    found = rows_of(built(mod))
    assert set(found) == {"c1", "c2"} and {row["format"] for row in found.values()} == {"rows"}


@pytest.mark.parametrize(
    "pixels, written, read, planes", [(5, 4, 4, 2), (5, 4, 6, 2), (5, 4, 7, 0), (5, 6, 6, 0), (5, 7, 2, 2)]
)
def test_planes_are_where_all_that_they_touch_gains(pixels, written, read, planes, monkeypatch):
    """Between two layers with dense ones before and behind: what a layer costs with pixels, one that writes planes and
    one that reads them."""
    costs = {(False, False): pixels, (False, True): written, (True, False): read}
    monkeypatch.setattr(SparseLayers, "cycles", lambda _self, _var, source, result: costs[source, result])

    def body(rw, x):
        x = rw.emit(nn.conv2d(x, graph.const(normal(1, 24, 24, 1, 1))))
        x = conv(rw, rw.emit(nn.relu(bias(rw, conv(rw, x, 2, 24), 2))), 3, 24)
        return [rw.emit(nn.conv2d(x, graph.const(normal(4, 8, 24, 1, 1))))]

    agree(graph.program([("x", (1, 24, 8, 8), "float32")], body), planes=planes)


def test_borders_that_are_planes_need_no_transposition(monkeypatch):
    """A layer that is a little slower with planes, between input and result with channels first: two transpositions of
    768 words are saved."""

    def body(rw, x):
        return [conv(rw, x, 1, 12)]

    def chosen(more: float) -> int:
        monkeypatch.setattr(SparseLayers, "cycles", lambda _self, _var, source, result: 1000 + more * (source + result))
        keys = agree(graph.program([("x", (1, 12, 8, 8), "float32")], body))
        return sum("planes" in key for key in keys)

    assert (chosen(0.24 * 768), chosen(0.26 * 768)) == (1, 0)
