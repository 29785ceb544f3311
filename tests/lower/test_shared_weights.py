"""Weights that share values: stored as indices, unpacked when a package is loaded, the same kernels and results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tvm import relax

import tvmcompress as tc
from tests.arm_board import ArmBoard, arm_board  # noqa: F401  a fixture
from tests.ir_pairs import calibration, snr_db
from tests.lower.tools import need
from tests.small_net import expected, small_int8_model, small_net
from tvmcompress import linking
from tvmcompress.errors import MissingDependencyError
from tvmcompress.ir import constants, graph, ops
from tvmcompress.isa import isa_of
from tvmcompress.lower.pipeline import lower, machine
from tvmcompress.model import Model, Source
from tvmcompress.passes import ClusterWeights, QuantizeStatic
from tvmcompress.spec import TensorSpec
from tvmcompress.target import Target

op, nn = relax.op, relax.op.nn
RNG = np.random.default_rng(5)


def normal(*shape):
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def products(back: bool = True):
    """Every kind of layer, each with a weight of its own: x (1, 8, 6, 6) to (1, 10), and x."""
    w = [normal(24, 8, 3, 3), normal(24, 12, 1, 1), normal(24, 1, 3, 3), normal(24, 7, 3, 2), normal(7 * 12 * 12, 10)]

    def body(rw, x):
        e = rw.emit
        for i, groups in enumerate((1, 2, 24)):
            y = e(nn.conv2d(x, graph.const(w[i]), padding=w[i].shape[2] // 2, groups=groups), f"c{i}")
            x = e(nn.relu(y))
        if back:
            x = e(nn.conv2d_transpose(x, graph.const(w[3]), 2, (1, 0), (1, 0)), "back")
            return [op.matmul(e(op.reshape(x, (1, 7 * 12 * 12))), graph.const(w[4]))]
        return [op.matmul(e(op.reshape(x, (1, 864))), graph.const(w[4][:864]))]

    return graph.program([("x", (1, 8, 6, 6), "float32")], body), RNG.normal(size=(1, 8, 6, 6)).astype(np.float32)


def unpacked(mod):
    """The program with its looked-up weights as constants."""
    definition = graph.definitions(mod).get

    def visit(rw, var, expr):
        shared = graph.op_name(expr) in (ops.LOOK_UP, ops.HASHED)
        return graph.const(constants.known(var, definition)) if shared else None

    return graph.rewrite(mod, visit)


def results(mod, x, name="native", neutral=False):
    """What it is lowered to, and its result here."""
    target = Target.load(name)
    lowered = lower(mod, target.to_tvm(), isa_of(target.to_tvm(), target.l1d, target.l2), neutral=neutral)
    assert not lowered.fallbacks
    return lowered, machine(lowered, linking.linker(target))([x])[0]


OPTIONS = [{}, {"clusters": 200}, {"clusters": 3, "group": 4}, {"sharing": "hashed"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernels_compute_the_dense_product_with_the_shared_weights(options):
    mod, x = products()
    shared = ClusterWeights(min_size=0, **options)(mod).module
    stored = {tuple(graph.shape(c)) for b in graph.bindings(shared) for c in graph.constants_of(b.value)}
    dense, wanted = results(unpacked(shared), x)
    for neutral in (False,) if options else (False, True):
        lowered, got = results(shared, x, neutral=neutral)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        assert lowered.prepares and {tuple(t.shape) for t in lowered.stored} <= stored
        assert [row["kind"] for row in lowered.layers] == [row["kind"] for row in dense.layers]


@pytest.mark.parametrize("name", ["native", "x86-64-v3", "x86-64-v2"])
def test_shared_integers_run_in_integer_kernels(name):
    need(name)
    mod, x = products(back=False)
    quantized = QuantizeStatic(measure=False)(mod, calibration(x)).module
    shared = ClusterWeights(min_size=0)(quantized).module
    dense, wanted = results(unpacked(shared), x, name)
    for neutral in (False, True) if name == "native" else (False,):
        lowered, got = results(shared, x, name, neutral)
        assert all(row["integer"] for row in lowered.layers) and len(lowered.layers) == 4
        np.testing.assert_array_equal(got, wanted)
    # Packed for kernels they are padded with zeros; as stored they are not.
    nbytes = lambda one: sum(t.numpy().nbytes for t in one.stored if str(t.dtype) in ("uint8", "int8"))  # noqa: E731
    assert nbytes(lowered) < 0.6 * nbytes(dense)


def test_integers_of_a_transposed_convolution():
    mod, x = products()
    shared = ClusterWeights(min_size=0)(QuantizeStatic(measure=False)(mod, calibration(x)).module).module
    _, wanted = results(unpacked(shared), x)
    lowered, got = results(shared, x)
    np.testing.assert_array_equal(got, wanted)
    assert all(row["integer"] for row in lowered.layers) and len(lowered.layers) == 5


def model(mod, x, out=(1, 10)) -> Model:
    specs = (TensorSpec("x", x.shape, "float32"),), (TensorSpec("y", out, "float32"),)
    return Model(mod, *specs, Source("small", "test", 0, ""))


def wide_net():
    """As a network is: most weights in wide layers. And an input."""
    x = RNG.normal(size=(1, 32, 8, 8)).astype(np.float32)

    def body(rw, x):
        for _ in range(2):
            x = rw.emit(nn.relu(rw.emit(nn.conv2d(x, graph.const(normal(64, graph.shape(x)[1], 3, 3)), padding=1))))
        return [op.matmul(rw.emit(op.mean(x, [2, 3])), graph.const(normal(64, 100)))]

    return graph.program([("x", x.shape, "float32")], body), x


def test_sixteen_values_on_disk(tmp_path: Path):
    """Saved, loaded and packaged, for one target and for several, the weights take an eighth."""
    mod, x = wide_net()
    weights = 4 * (64 * 32 * 9 + 64 * 64 * 9 + 64 * 100)
    whole = model(mod, x, (1, 100))
    small = tc.compress(whole, "cluster16")
    whole.save(tmp_path / "whole.model")
    small.save(tmp_path / "small.model")
    saved = [(tmp_path / f"{name}.model").stat().st_size for name in ("whole", "small")]
    assert saved[0] > weights and saved[1] < 0.135 * weights + 30_000  # the program's text
    again = Model.load(tmp_path / "small.model")
    package = tc.compile(again, "native")
    assert package.sizes["weights"] <= 0.135 * weights
    y, wanted = tc.deploy(package)({"x": x})["y"], tc.deploy(tc.compile(whole, "native"))({"x": x})["y"]
    assert snr_db(wanted, y) > 15
    need("x86-64-v4")
    several = tc.compile(again, "x86-64-v3,x86-64-v4")
    assert several.sizes["weights"] <= 0.135 * weights
    for build in several.builds:
        np.testing.assert_allclose(tc.deploy(build)({"x": x})["y"], y, rtol=1e-3, atol=1e-4)


def test_the_small_network_stays_close():
    mod, x = small_net()
    for options, least in (({}, 15), ({"clusters": 256}, 40)):
        _, y = results(ClusterWeights(min_size=0, **options)(mod).module, x)
        assert snr_db(expected(x).astype(np.float32), y) > least


def test_on_the_arm_board(arm_board: ArmBoard, tmp_path: Path):  # noqa: F811
    """Shared floats, and shared integers bit by bit, for a processor with and one without the dot product."""
    mod, x = products(back=False)
    integers, given = small_int8_model()
    cases = [
        (model(ClusterWeights(min_size=0)(mod).module, x), x, 1e-4),
        (integers.with_module(ClusterWeights(min_size=0)(integers.module).module), given, 0),
    ]
    for name in ("rpi4", "rpi5"):
        for shared, data, tolerance in cases:
            try:
                tc.compile(shared, name).save(tmp_path / "shared.tar")
            except MissingDependencyError as error:
                pytest.skip(str(error))
            wanted = results(unpacked(shared.module), data)[1]
            got = arm_board.run_package(tmp_path / "shared.tar", {"x": data})["y"]
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance, err_msg=name)
