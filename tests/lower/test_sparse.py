"""Which layers with zeros get sparse kernels, what is said of them, and that networks of them compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import relax

import tvmcompress as tc
from tests.ir_pairs import calibration
from tests.kernels.test_sparse_streams import ISAS, isa_named
from tests.lower.tools import need, op_names
from tvmcompress import linking
from tvmcompress.breakeven import emptied, of_groups
from tvmcompress.errors import UsageError
from tvmcompress.ir import evaluate, graph, script
from tvmcompress.isa import isa_of
from tvmcompress.kernels import sparse_rows, sparse_rows_copy
from tvmcompress.kernels.choices import untuned
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.lower import sparse
from tvmcompress.lower.pipeline import Lowered, lower, machine
from tvmcompress.lower.sparse import KEEP, Keep, kept
from tvmcompress.model import Model, Source
from tvmcompress.passes import ClusterWeights, PruneMagnitude, PruneNm, QuantizeStatic
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target

op, nn = relax.op, relax.op.nn
PLAIN = Conv2d(1, 28, 28, 128, 128, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
FLOATS, INTEGERS = ("float32", "float32"), ("uint8", "int8")
ALWAYS, NEVER = Keep("always"), Keep("never")


# Two cores, as estimates are of the slowest thread.
TWO = {name: replace(isa, cores=2) for name, isa in (ISAS | {"znver4": isa_named("znver4")}).items()}


def decided(weight: np.ndarray, keep: Keep = KEEP, isa: str = "icelake-server", kinds=FLOATS, conv: Conv2d = PLAIN):
    return kept(weight.astype(kinds[1]), conv, TWO[isa], kinds, keep, "fc", untuned)


# What is decided, and said.


def test_without_zeros_there_is_nothing_to_say():
    full = emptied(PLAIN, 1.0, (1, 1))
    assert decided(full) == (None, {})
    full.flat[: full.size // 20] = 0  # five of a hundred are no sparsity
    assert decided(full, ALWAYS) == (None, {})
    full.flat[: full.size // 20 + 1] = 0
    assert decided(full, ALWAYS)[0] is not None


def test_what_is_said_of_a_sparse_layer():
    weight = emptied(PLAIN, 0.1, (1, 1))
    kernel, row = decided(weight)
    assert kernel is not None and row["kept"] and row["format"] == kernel.text == "rows" and row["why"] == ""
    assert row["density"] == np.count_nonzero(weight) / weight.size and row["blocks"] == round(row["density"], 2)
    # What is stored in a package: of the dense layer's weights a mask and what is not zero.
    assert 128 * 128 * 4 * 0.1 < row["dense_bytes"] < 128 * 128 * 4 * 0.2
    assert row["bytes"] <= sum(array.nbytes for array in kernel.pack(weight, PLAIN).arrays) < 1.5 * row["dense_bytes"]
    plainly = decided(weight, Keep(storage="plain"))[1]
    assert plainly["dense_bytes"] == 4 * 128 * 128
    assert plainly["bytes"] == sum(array.nbytes for array in kernel.pack(weight, PLAIN).arrays)
    assert 0 < row["estimate"] < 0.6


@pytest.mark.parametrize("kinds, format_", [(FLOATS, "16x1 blocks"), (INTEGERS, "16x4 blocks")])
def test_blocks_are_seen(kinds, format_):
    weight = emptied(PLAIN, 0.5, (16, 4)) * 32 + 0.0
    kernel, row = decided(np.rint(weight), kinds=kinds)
    assert kernel is not None and row["format"] == format_ and row["estimate"] < 1
    assert row["blocks"] == pytest.approx(row["density"], rel=0.05)


def test_blocks_of_whole_kernels_are_seen():
    """Winograd's numbers of them are zero; of blocks that lie in one tap they are not."""
    conv = replace(PLAIN, kernel=(3, 3), padding=(1, 1, 1, 1))
    kernel, row = decided(emptied(conv, 0.5, (16, 1), through=True), conv=conv)
    assert kernel is not None and row["format"] == "16x1 kernels" and row["estimate"] < 0.8
    assert row["blocks"] == pytest.approx(row["density"], abs=0.01)
    assert decided(emptied(conv, 0.3, (16, 1)), ALWAYS, conv=conv)[1]["format"] == "16x1 blocks"
    kernel, row = decided(emptied(conv, 0.05, (16, 1), through=True), conv=replace(conv, strides=(2, 2)))
    assert kernel is not None and row["format"] == "16x1 blocks"


@pytest.mark.parametrize("n, m", [(1, 4), (2, 8), (1, 8), (2, 16)])
@pytest.mark.parametrize("kinds", [FLOATS, INTEGERS])
@pytest.mark.parametrize("isa", ["icelake-server", "x86-64-v3"])
def test_groups_are_seen(isa, kinds, n, m):
    if isa == "x86-64-v3" and n / m < 0.25:
        return  # it picks from 8 inputs at a time, so that these leave lanes without a weight
    kernel, row = decided(np.rint(of_groups(PLAIN, n / m, m) * 32), Keep(storage="plain"), isa=isa, kinds=kinds)
    assert kernel is not None and row["format"] == f"{n}:{m} groups" and row["estimate"] < 1
    assert row["blocks"] == pytest.approx(n / m, abs=0.02)
    assert row["bytes"] < row["dense_bytes"]


@pytest.mark.parametrize("isa, least", [("znver4", 0.5), ("icelake-server", 0.25)])
def test_bytes_with_zeros_anywhere_are_groups(isa, least):
    for density in (0.05, least):
        kernel, row = decided(np.rint(emptied(PLAIN, density, (1, 1)) * 32), isa=isa, kinds=INTEGERS)
        assert (
            kernel is not None and row["format"].endswith(":64 groups") and density < row["blocks"] < 2 * density + 0.1
        )
    assert decided(emptied(PLAIN, 0.1, (1, 1)), isa=isa)[1]["format"] == "rows"  # floats are not


@pytest.mark.parametrize("isa", ["znver4", "x86-64-v3"])
@pytest.mark.parametrize("size", [(2048, 1000), (1280, 1000)])
def test_a_single_row_is_groups(isa, size):
    """A row of pixels would fill one lane of a vector. What is larger than the cache is a matter of bytes, too."""
    conv = Conv2d(1, 1, 1, *size, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    kernel, row = decided(emptied(conv, 0.1, (1, 1)), isa=isa, conv=conv)
    assert kernel is not None and row["format"].endswith(" groups") and row["blocks"] < 0.4


@pytest.mark.parametrize(
    "weight, keep, kinds, conv, why",
    [
        (0.1, NEVER, FLOATS, PLAIN, "dense was asked for"),
        (0.1, Keep("faster", frozenset({"fc"})), FLOATS, PLAIN, "measured: rows are slower"),
        (0.9, Keep(), FLOATS, PLAIN, "times as long"),
        (0.9, Keep("smaller", storage="plain"), FLOATS, PLAIN, "times the bytes"),
        (0.1, Keep("smaller"), FLOATS, PLAIN, "times the bytes"),  # zeros are left out on the disk anyway
    ],
)
def test_why_a_layer_stays_dense(weight, keep, kinds, conv, why):
    kernel, row = decided(emptied(conv, weight, (1, 1)), keep, kinds=kinds, conv=conv)
    assert kernel is None and not row["kept"] and row["format"] == "dense" and why in row["why"]
    assert row["bytes"] == row["dense_bytes"]


def test_grouped_layers_stay_dense():
    conv = Conv2d(1, 8, 8, 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2)
    kernel, row = decided(np.eye(16)[:, :8, None, None] * np.ones((3, 3)), ALWAYS, conv=conv)
    assert kernel is None and row["why"] == "grouped" and row["density"] == 1 / 16


def test_of_depthwise_layers_it_is_said_too():
    weight = pruned(0, 16, 1, 3, 3, density=0.5)
    mod = graph.program(
        [("x", (1, 16, 8, 8), "float32")],
        lambda rw, x: [rw.emit(nn.conv2d(x, graph.const(weight), 1, 1, 1, 16), "deep")],
    )
    found = rows_of(built(mod))
    assert found["deep"]["why"] == "grouped" and not found["deep"]["kept"]


def test_what_a_target_has_no_kernel_for():
    weight = np.rint(emptied(PLAIN, 0.1, (1, 1)) * 32)
    kernel, row = decided(weight, ALWAYS, kinds=("float16", "float16"))
    assert kernel is None and row["why"] == "no sparse kernel for float16 x float16 here"
    # Without a dot product integers are multiplied in 16 bits, and only in blocks.
    assert not any(dot.weight == "int8" for dot in ISAS["rpi4"].dots)
    kernel, row = decided(weight, ALWAYS, "rpi4", INTEGERS)
    assert kernel is not None and row["format"].endswith("blocks")


def test_policies_differ():
    """Dense in floats of which a third is zero: smaller as lists only if an offset is short, and not faster."""
    half = emptied(PLAIN, 0.5, (1, 1))
    by_bytes, row = decided(half, Keep("smaller", storage="plain"))
    assert by_bytes is not None and row["bytes"] < row["dense_bytes"]
    most = emptied(PLAIN, 0.9, (1, 1))
    assert decided(most)[0] is None and decided(most, Keep("smaller", storage="plain"))[0] is None
    assert decided(most, ALWAYS)[0] is not None
    # What takes fewest bytes is not what is fastest: blocks are, but half of what is in them is zero.
    checked = emptied(PLAIN, 0.2, (16, 1)) * (np.arange(128) % 4 == 0)[:, None, None, None]
    fast, small = (decided(checked, Keep(policy, storage="plain"))[1] for policy in ("faster", "smaller"))
    assert small["bytes"] <= fast["bytes"]


def test_what_a_tuner_chooses_is_not_estimated():
    """The slowest tile is no reason for a dense layer: else trials would measure that."""
    weight = emptied(PLAIN, 0.1, (1, 1)).astype(np.float32)

    def last(_key):
        return lambda name, offered: offered[-1 if name == "tile" else 0]

    one, other = (
        kept(weight, PLAIN, TWO["icelake-server"], FLOATS, KEEP, "fc", choices)[0] for choices in (untuned, last)
    )
    assert one is not None and other is not None
    assert one.cycles == other.cycles and one.plan != other.plan


def test_rows_that_no_tile_reaches_are_left_to_blocks():
    """Windows so large that sixteen channels of a copy lie further apart than two bytes count."""
    conv = Conv2d(1, 65, 65, 32, 16, (3, 3), (1, 1), (36, 36, 36, 36), (36, 36))
    kernel, row = decided(emptied(conv, 0.05, (1, 1)), ALWAYS, conv=conv)
    assert kernel is not None and row["kept"]
    conv = Conv2d(1, 64, 64, 48, 16, (16, 16), (16, 16), (0, 0, 0, 0), (1, 1))
    assert decided(emptied(conv, 0.05, (1, 1)), ALWAYS, conv=conv)[0] is not None


# Networks.


def built(mod: tvm.IRModule, keep: Keep = ALWAYS, name: str = "native", neutral: bool = False) -> Lowered:
    target = Target.load(name)
    made = target.to_tvm()
    lowered = lower(mod, made, isa_of(made, target.l1d, target.l2), keep=keep, neutral=neutral)
    assert not lowered.fallbacks
    return lowered


def results(lowered: Lowered, x: np.ndarray, name: str = "native") -> list[np.ndarray]:
    return machine(lowered, linking.linker(Target.load(name)))([x])


def normal(seed: int, *shape: int) -> np.ndarray:
    depth = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(depth)).astype(np.float32)


def pruned(seed: int, *shape: int, density: float = 0.2) -> np.ndarray:
    return normal(seed, *shape) * (np.random.default_rng(seed + 99).random(shape) < density)


def network(batch: int = 2) -> tuple[tvm.IRModule, np.ndarray]:
    """A stem, two residual blocks of one and the same weights, a dense 1x1, then tokens by two matrices."""
    stem, dense = normal(1, 24, 3, 3, 3), normal(2, 24, 24, 1, 1)
    shared, deep, across = pruned(3, 24, 24, 3, 3), pruned(4, 24, 40), pruned(5, 40, 10, density=0.3)

    def body(rw, x):
        x = rw.emit(nn.relu(rw.emit(nn.conv2d(x, graph.const(stem), 2, 1))), "stem")
        taps = graph.const(shared)
        for i in range(2):
            y = rw.emit(nn.relu(rw.emit(nn.conv2d(x, taps, 1, 1), f"block{i}")))
            x = rw.emit(op.add(x, y))
        x = rw.emit(nn.conv2d(x, graph.const(dense)), "dense")
        tokens = rw.emit(op.permute_dims(rw.emit(op.reshape(x, (batch, 24, 36))), (0, 2, 1)))
        y = rw.emit(nn.gelu(rw.emit(op.matmul(tokens, graph.const(deep)), "deep")))
        return [rw.emit(op.matmul(y, graph.const(across)), "across")]

    mod = graph.program([("x", (batch, 3, 12, 12), "float32")], body)
    return mod, np.random.default_rng(0).standard_normal((batch, 3, 12, 12)).astype(np.float32)


def rows_of(lowered: Lowered) -> dict[str, dict]:
    return {row["name"]: row["sparse"] for row in lowered.layers if row.get("sparse")}


def calls(lowered: Lowered) -> list[str]:
    """Kernels that were made, by what they are known by."""
    return [row["key"] for row in lowered.kernels]


def test_pruned_layers_become_sparse_calls_and_dense_ones_do_not():
    mod, x = network()
    lowered = built(mod)
    found = rows_of(lowered)
    assert set(found) == {"block0", "block1", "deep", "across"} and all(row["kept"] for row in found.values())
    sparse = [key for key in calls(lowered) if key.startswith(("sparse ", "blocks ", "picked "))]
    assert len(sparse) == 3 and len(calls(lowered)) == 5  # the shared weights are one kernel
    for got, wanted in zip(results(lowered, x), evaluate.evaluate(mod, [x])):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    dense = built(mod, NEVER)
    assert not any(key.startswith(("sparse ", "blocks ", "picked ")) for key in calls(dense))
    assert {row["why"] for row in rows_of(dense).values()} == {"dense was asked for"}


def test_the_call_is_named_sparse():
    from tvmcompress.lower.anchors import anchors

    def body(rw, x):
        y = rw.emit(nn.conv2d(x, graph.const(pruned(0, 32, 32, 1, 1)), data_layout="NHWC", out_layout="NHWC"))
        return [rw.emit(nn.conv2d(y, graph.const(normal(1, 32, 32, 1, 1)), data_layout="NHWC", out_layout="NHWC"))]

    mod, rows = anchors(graph.program([("x", (1, 8, 8, 32), "float32")], body), ISAS["x86-64-v3"], keep=ALWAYS)
    assert [name for name in op_names(mod) if "conv2d" in name] == ["call_tir:conv2d_sparse", "call_tir:conv2d_float"]
    assert [bool(row.get("sparse")) for row in rows] == [True, False]


def test_shared_weights_are_stored_once():
    """Two layers of the same weights read one list."""
    mod, _ = network()
    lowered = built(mod)
    row = rows_of(lowered)["block0"]
    sizes = [tensor.numpy().nbytes for tensor in lowered.stored]
    assert sum(sizes) < row["bytes"] + sum(rows_of(lowered)[n]["bytes"] for n in ("deep", "across")) + 20_000


@pytest.mark.parametrize("batch", [1, 3])
def test_batches(batch):
    mod, x = network(batch)
    for got, wanted in zip(results(built(mod), x), evaluate.evaluate(mod, [x])):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel, stride, dilation", [(16, 16, 1), (7, 5, 1), (3, 5, 3), (3, 2, 2)])
def test_a_large_window_takes_no_more_code(kernel, stride, dilation, monkeypatch):
    """What copies the images that a stride makes of a tile, of which there are up to 256, loops over them."""
    written, program = [], script.program
    monkeypatch.setattr(script, "program", lambda text, names: written.append(text) or program(text, names))
    sparse_rows.written.cache_clear()
    found = sparse.candidates
    monkeypatch.setattr(sparse, "candidates", lambda *given: [one for one in found(*given) if one.text == "rows"])
    weight = pruned(kernel, 20, 3, kernel, kernel, density=0.1)

    def body(rw, data):
        y = relax.op.nn.conv2d(data, graph.const(weight), (stride, stride), (1, 1), (dilation, dilation))
        return [rw.emit(y, "conv")]

    mod = graph.program([("x", (1, 3, 80, 48), "float32")], body)
    lowered = built(mod)
    assert rows_of(lowered)["conv"]["format"] == "rows"
    assert len([text for text in written if "copy" in text]) == 1
    assert max(text.count("T.evaluate(call(") for text in written) <= 10
    x = normal(3, 1, 3, 80, 48)
    np.testing.assert_allclose(results(lowered, x)[0], evaluate.evaluate(mod, [x])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "numbers, found",
    [
        ([0], [(0, 1, 1, 0)]),
        ([2, 4, 6], [(2, 2, 3, 0)]),
        ([0, 1, 3], [(0, 1, 2, 0), (3, 1, 1, 2)]),
        ([0, 3, 4, 5], [(0, 3, 2, 0), (4, 1, 2, 2)]),
    ],
)
def test_numbers_as_runs(numbers, found):
    assert [(one.first, one.step, one.count, one.at) for one in sparse_rows_copy.runs(numbers)] == found


@pytest.mark.parametrize("lead", [(5,), (2, 5), (1, 3, 1, 4), (2, 3, 4), (2, 1, 3, 4, 5)])
def test_matrix_products_with_axes_before(lead: Sequence[int]):
    weight = pruned(7, 33, 20, density=0.3)
    shape = (*lead, 33)
    mod = graph.program(
        [("x", shape, "float32")], lambda rw, x: [rw.emit(op.matmul(x, graph.const(weight)), "product")]
    )
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    lowered = built(mod)
    assert rows_of(lowered)["product"]["kept"]
    np.testing.assert_allclose(results(lowered, x)[0], x @ weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lead", [(64,), (2, 3, 32)])
def test_what_is_behind_a_product_with_axes_before(lead: Sequence[int]):
    """A bias and limits are the kernel's own."""
    weight, bias = pruned(7, 64, 96, density=0.1), pruned(8, 96)

    def body(rw, x):
        y = rw.emit(op.matmul(x, graph.const(weight)), "product")
        return [rw.emit(nn.relu(rw.emit(op.add(y, graph.const(bias)))))]

    x = np.random.default_rng(1).standard_normal((*lead, 64)).astype(np.float32)
    lowered = built(graph.program([("x", x.shape, "float32")], body))
    assert rows_of(lowered)["product"]["format"] == "rows"
    np.testing.assert_allclose(results(lowered, x)[0], np.maximum(x @ weight + bias, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_but_zeros_and_no_zeros(density):
    weight = pruned(8, 20, 12, 3, 3, density=density)
    mod = graph.program(
        [("x", (1, 12, 7, 7), "float32")], lambda rw, x: [rw.emit(nn.conv2d(x, graph.const(weight), 1, 1), "c")]
    )
    x = np.random.default_rng(2).standard_normal((1, 12, 7, 7)).astype(np.float32)
    lowered = built(mod)
    assert bool(rows_of(lowered)) == (density == 0)
    np.testing.assert_allclose(results(lowered, x)[0], evaluate.evaluate(mod, [x])[0], rtol=1e-4, atol=1e-5)


def test_pruned_clustered_weights_run_in_sparse_kernels():
    """Values that are shared are read through: zeros stay zeros."""
    mod, x = network()
    mod = PruneMagnitude(density=0.2, min_size=0)(mod).module
    shared = ClusterWeights(min_size=0)(mod).module
    lowered = built(shared)
    assert len([row for row in rows_of(lowered).values() if row["kept"]]) == 5  # all but the stem
    np.testing.assert_allclose(
        results(lowered, x)[0], results(built(shared, NEVER), x)[0], rtol=1e-4, atol=1e-5
    )  # fmt: skip


def quantized(mod: tvm.IRModule, x: np.ndarray) -> tvm.IRModule:
    return QuantizeStatic(measure=False)(mod, calibration(x)).module


@pytest.mark.parametrize("name", ["native", "x86-64-v3", "x86-64-v2"])
def test_integers_are_those_of_the_dense_kernels(name):
    need(name)
    mod, x = network()
    mod = quantized(mod, x)
    sparse = built(mod, name=name)
    assert sum(row["kept"] for row in rows_of(sparse).values()) == 4
    np.testing.assert_array_equal(results(sparse, x, name)[0], results(built(mod, NEVER, name), x, name)[0])


@pytest.mark.parametrize("n, m", [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("integer", [False, True])
def test_n_of_m(n, m, integer):
    """Kernels of groups, where this machine has an instruction for them, and computed right."""
    mod, x = network(1)
    mod = PruneNm(n=n, m=m, min_size=0)(mod).module
    mod = quantized(mod, x) if integer else mod
    sparse, dense = built(mod), built(mod, NEVER)
    assert sum(row["kept"] for row in rows_of(sparse).values()) == 5
    found = [row["format"] for row in rows_of(sparse).values()]
    assert f"{n}:{m} groups" in found or not isa_named("native").picks
    if integer:
        np.testing.assert_array_equal(results(sparse, x)[0], results(dense, x)[0])
    else:
        np.testing.assert_allclose(results(sparse, x)[0], results(dense, x)[0], rtol=1e-4, atol=1e-5)


def model(mod: tvm.IRModule, x: np.ndarray) -> Model:
    (result,) = graph.results(mod)
    specs = (TensorSpec("x", x.shape, "float32"),), (TensorSpec("y", graph.shape(result), "float32"),)
    return Model(mod, *specs, Source("small", "test", 0, ""))


def test_several_builds_agree_in_integers():
    need("x86-64-v3")
    mod, x = network()
    small = model(quantized(mod, x), x)
    package = tc.compile(small, "x86-64-v3,x86-64-v2", keep="always")
    outputs = [tc.deploy(build)({"x": x})["y"] for build in package.builds]
    assert len(outputs) == 2
    for build in package.builds:
        assert sum(row.get("sparse", {}).get("kept", False) for row in build.manifest["layers"]) == 4
    dense = tc.compile(small, "x86-64-v3,x86-64-v2", keep="never")
    wanted = tc.deploy(dense.builds[0])({"x": x})["y"]
    for got in outputs:
        np.testing.assert_array_equal(got, wanted)


def test_a_saved_package_computes_the_same(tmp_path):
    mod, x = network()
    package = tc.compile(model(mod, x), "native", keep="always")
    package.save(tmp_path / "small.tar")
    got = tc.deploy(tmp_path / "small.tar")({"x": x})["y"]
    np.testing.assert_allclose(got, evaluate.evaluate(mod, [x])[0], rtol=1e-4, atol=1e-5)


def test_an_unknown_policy_is_refused():
    mod, x = network()
    with pytest.raises(UsageError, match=r"keep: wanted one of .*, got 'alway'.*did you mean 'always'"):
        tc.compile(model(mod, x), "native", keep="alway")
