import numpy as np
import pytest
import tvm
from tvm import relax

from tests.ir_pairs import const, snr_db
from tvmcompress.compression import compress, host_executor
from tvmcompress.errors import RecipeError, SampleError
from tvmcompress.ir import evaluate, graph
from tvmcompress.model import Model, Source
from tvmcompress.passes import FoldBatchNorm, QuantizeStatic
from tvmcompress.recipe import Recipe
from tvmcompress.spec import TensorSpec

nn, op = relax.op.nn, relax.op


def model(inputs, body) -> Model:
    mod = graph.program(inputs, body)
    outputs = tuple(TensorSpec(f"y{i}", graph.shape(r), graph.dtype(r)) for i, r in enumerate(graph.results(mod)))
    return Model(mod, tuple(TensorSpec(*i) for i in inputs), outputs, Source("net.onnx", "onnx", 1, "0"))


@pytest.fixture(scope="module")
def net() -> Model:
    """Residual blocks with batch norm, a depthwise convolution, a concatenation, and a matrix product stored (N, K)."""
    rng = np.random.default_rng(0)
    w = lambda *s: const(rng.normal(size=s) * np.sqrt(2 / np.prod(s[1:])))  # noqa: E731

    def norm(e, x, name):
        c = graph.shape(x)[1]
        numbers = rng.uniform(0.5, 1.5, c), rng.normal(size=c) * 0.2, rng.normal(size=c) * 0.1, rng.uniform(0.5, 2, c)
        return e(relax.TupleGetItem(e(nn.batch_norm(x, *map(const, numbers), 1, training=False)), 0), name)

    def body(rewriter, x):
        e = rewriter.emit
        x = e(nn.relu(norm(e, e(nn.conv2d(x, w(16, 3, 3, 3), padding=1), "stem"), "stem_bn")))
        for i in range(2):
            y = e(nn.relu(norm(e, e(nn.conv2d(x, w(16, 16, 3, 3), padding=1), f"block{i}_a"), f"bn{i}_a")))
            y = norm(e, e(nn.conv2d(y, w(16, 16, 3, 3), padding=1), f"block{i}_b"), f"bn{i}_b")
            x = e(nn.relu(e(op.add(y, x))))
        d = e(op.clip(norm(e, e(nn.conv2d(x, w(16, 1, 3, 3), padding=1, groups=16), "dw"), "dw_bn"), 0, 6))
        x = e(op.concat([x, e(nn.max_pool2d(d, (3, 3), padding=(1, 1)))], 1))
        x = e(op.mean(x, [2, 3]))
        return [e(op.add(e(op.matmul(x, e(op.permute_dims(w(64, 32)))), "fc"), w(64)))]

    return model([("x", (1, 3, 16, 16), "float32")], body)


def images(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


def outputs(m: Model, array: np.ndarray) -> np.ndarray:
    run = evaluate.executor(m.module)
    return np.concatenate([run([x[None]])[0] for x in array])


# Decibels against float on samples that calibration has not seen.
LEAST = {
    "int8": 33,
    "int8-dynamic": 42,
    "int8-weights": 40,
    "int4-weights": 14,
    "fp16": 60,
    "bf16": 44,
    "cluster16": 14,
    "lowrank": 10,
}


@pytest.mark.parametrize("name", LEAST)
def test_every_shipped_recipe(net, name, tmp_path):
    before = tvm.ir.save_json(net.module)
    small = compress(net, name, samples=images(8) if name == "int8" else None)
    assert tvm.ir.save_json(net.module) == before and net.applied == ()
    assert small.applied == tuple(repr(step) for step in Recipe.load(name).passes)
    assert snr_db(outputs(net, images(4, 2)), outputs(small, images(4, 2))) > LEAST[name]
    small.save(tmp_path / "small.model")
    again = Model.load(tmp_path / "small.model")
    np.testing.assert_array_equal(outputs(again, images(2, 3)), outputs(small, images(2, 3)))


def test_everything_of_a_convolutional_network_runs_in_integers(net):
    small = compress(net, "int8", samples=images(4))
    rows = [row for row in small.notes if "layer" in row]
    assert {row["layer"] for row in rows} == {"stem", "block0_a", "block0_b", "block1_a", "block1_b", "dw", "fc"}
    assert all(row["quantized"] and not row["why"] and row["snr_db"] > 25 for row in rows)
    # Every float tensor between two layers is one that is quantized, or lies inside what one kernel does.
    quantized = {
        b.value.args[0].name for b in graph.bindings(small.module) if graph.op_name(b.value) == "relax.quantize"
    }
    assert len(quantized) == 10  # x, 3 relus, 2 inside blocks, clip, max_pool, concat, mean


def test_layers_by_name_are_left_out(net):
    recipe = Recipe("mine", (FoldBatchNorm(), QuantizeStatic(skip=("block0.*", "stem"), measure=False)))
    rows = compress(net, recipe, samples=images(2)).notes
    assert [row["layer"] for row in rows if not row["quantized"]] == ["stem", "block0_a", "block0_b"]
    assert rows[0]["why"] == "skipped by name 'stem'"
    wrong = Recipe("mine", (QuantizeStatic(skip=("blok0_a",)),))
    with pytest.raises(
        RecipeError, match="skip 'blok0_a' matches none of the model's 7 layers; did you mean 'block0_a'"
    ):
        compress(net, wrong, samples=images(2))


def test_samples_of_every_form(net):
    recipe = Recipe("mine", (FoldBatchNorm(), QuantizeStatic(measure=False)))
    stack = images(4)
    wanted = compress(net, recipe, samples=stack).module
    for samples in (
        list(stack),
        [{"x": s[None]} for s in stack],
        ((s[None],) for s in stack),
        (s for s in stack),
        [stack],
    ):
        tvm.ir.assert_structural_equal(compress(net, recipe, samples=samples).module, wanted)


@pytest.mark.parametrize(
    "samples, message",
    [
        (None, r"recipe 'int8' needs samples for quantize_static"),
        ([], "there are none"),
        ([{"image": images(1)}], "input 'x' is missing; got 'image'"),
        ([images(1).astype(np.float64)], "wanted dtype float32, got float64"),
        ([np.zeros((1, 3, 8, 8), np.float32)], "wanted shape 1x3x16x16, or many in a stack, got 1x3x8x8"),
        ([images(1), np.full((1, 3, 16, 16), np.nan, np.float32)], "sample 1: 'x' holds NaN"),
    ],
)
def test_samples_that_do_not_fit(net, samples, message):
    with pytest.raises(SampleError, match=message):
        compress(net, "int8", samples=samples)


def test_several_inputs_in_any_order():
    weight = const(np.random.default_rng(0).normal(size=(4, 4)))
    inputs = [("a", (2, 4), "float32"), ("b", (2, 4), "float32")]
    two = model(inputs, lambda r, a, b: [r.emit(op.matmul(r.emit(op.subtract(a, b)), weight), "fc")])
    a, b = np.full((2, 4), 3, np.float32), np.full((2, 4), 1, np.float32)
    recipe = Recipe("mine", (QuantizeStatic(method="min_max", measure=False),))
    small = compress(two, recipe, samples=[{"b": b, "a": a}])
    scale = next(
        graph.value(x.value.args[1]) for x in graph.bindings(small.module) if graph.op_name(x.value) == "relax.quantize"
    )
    assert scale == np.float32(2 / 255)


def test_progress_and_between(net):
    told, steps = [], []
    compress(
        net,
        "int8",
        samples=images(3),
        progress=lambda done, total, text: told.append((done, total, text)),
        between=lambda step, after: steps.append((step.key, len(after.applied))),
    )
    assert steps == [("fold_batch_norm", 1), ("fold_constants", 2), ("quantize_static", 3)]
    assert [t for t in told if t[2] == "calibrating"] == [(i, 3, "calibrating") for i in range(4)]


def test_the_cache_is_for_this_program_only(net, tmp_path):
    cache = tmp_path / "calibration.json"
    first = compress(net, "int8", samples=images(3), cache=cache)
    again = compress(net, "int8", samples=images(1, 9), cache=cache)
    tvm.ir.assert_structural_equal(first.module, again.module)
    tvm.ir.assert_structural_equal(first.module, compress(net, "int8", cache=cache).module)
    other = compress(
        again.with_module(FoldBatchNorm()(net.module).module),
        Recipe("mine", (QuantizeStatic(),)),
        images(1),
        cache=cache,
    )
    with pytest.raises(SampleError, match="no sample to calibrate with"):
        compress(net, Recipe("mine", (QuantizeStatic(),)), cache=cache)
    assert any("was for another program" in row.get("calibration", "") for row in other.notes)


def test_the_host_executor_runs_programs(net):
    x = images(1)
    np.testing.assert_allclose(host_executor(net.module)([x])[0], outputs(net, x), rtol=1e-3, atol=1e-3)
