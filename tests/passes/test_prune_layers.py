import numpy as np
import pytest
from tvm import relax

from tests import networks
from tests.frontend.onnx_tools import load_proto
from tests.ir_pairs import calibration, check_pair, const, program, run
from tvmcompress.errors import ModelError, RecipeError, SampleError
from tvmcompress.passes import PruneLayers
from tvmcompress.passes.support.residual_blocks import blocks

nn, op = relax.op.nn, relax.op
RNG = np.random.default_rng(0)


def residual(*scales, gone=()):
    """Blocks relu(conv(x)) of weights eye * scale, named block0, block1 …, without those that are `gone`."""

    def layers(e, x):
        for i, scale in enumerate(scales):
            if i not in gone:
                y = e(nn.relu(e(nn.conv2d(x, const(np.eye(2)[:, :, None, None] * scale)), f"conv{i}")))
                x = e(op.add(y, x), f"block{i}")
        return [e(nn.conv2d(x, const(np.ones((3, 2, 1, 1)))), "head")]

    return program((1, 2, 2, 2), layers)


SAMPLES = [RNG.normal(size=(1, 2, 2, 2)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("criterion", ["cosine", "error"])
@pytest.mark.parametrize("try_out", [True, False])
def test_the_block_that_changes_least_goes(criterion, try_out):
    step = PruneLayers(count=2, criterion=criterion, try_out=try_out)
    outcome = check_pair(
        step, residual(1, 0.01, 2, 0.02), residual(1, 0.01, 2, 0.02, gone=(1, 3)), calibration(*SAMPLES)
    )
    rows = {r["block"]: r for r in outcome.notes if "block" in r}
    assert [rows[f"block{i}"]["dropped"] for i in range(4)] == [False, True, False, True]
    assert rows["block1"]["influence"] < rows["block0"]["influence"]
    assert (rows["block1"]["output_error"] is not None) == try_out
    assert [r["layer"] for r in outcome.notes if "layer" in r] == ["conv1", "conv3"]
    numbers = {"parameters_before": 22, "macs_before": 88, "parameters": 14, "macs": 56}
    assert outcome.notes[-1] == {"pass": "prune_layers", **numbers}


def test_density_rounds_in_favour_of_blocks():
    assert len(blocks(PruneLayers(density=0.7)(residual(1, 1, 1), calibration(*SAMPLES)).module)) == 3
    assert len(blocks(PruneLayers(density=0.6)(residual(1, 1, 1), calibration(*SAMPLES)).module)) == 2


@pytest.mark.parametrize(
    "proto, count, first",
    [
        (networks.transformer(), 4, "add"),
        (networks.encoder(8, 32, 2, 2, 50), 4, "add"),
        (networks.resnet((2, 2), True, 32, 10, 8), 2, "add"),
        (networks.mobilenet_v2(32, 10), 10, "add"),
        (networks.unet(32), 0, ""),
        (networks.recurrent(3, 8, 16), 0, ""),
    ],
)
def test_blocks_of_networks(proto, count, first):
    model = load_proto(proto)
    found = blocks(model.module)
    assert len(found) == count and all(block.name.startswith(first) for block in found)
    if "float" in model.inputs[0].dtype and count and count < 10:
        samples = [RNG.normal(size=model.inputs[0].shape).astype(np.float32) for _ in range(2)]
        small = PruneLayers(density=0.5, try_out=False)(model.module, calibration(*samples)).module
        assert len(blocks(small)) == count - count // 2
        assert run(small, samples[0]).shape == model.outputs[0].shape


def test_a_block_within_another_is_the_block():
    def layers(e, x):
        y = e(op.add(x, e(nn.conv2d(x, const(np.ones((2, 2, 1, 1)))))), "inner")
        return [e(op.add(e(nn.conv2d(y, const(np.ones((2, 2, 1, 1))))), x), "outer")]

    assert [block.name for block in blocks(program((1, 2, 2, 2), layers))] == ["inner"]


def test_faults():
    samples = calibration(*SAMPLES)
    with pytest.raises(RecipeError, match=r"density must be above 0 and at most 1, got 0.0"):
        PruneLayers(density=0.0)
    with pytest.raises(RecipeError, match="3 blocks are to go, and the model has 2 that may"):
        PruneLayers(count=3, skip=("conv0",))(residual(1, 1, 1), samples)
    with pytest.raises(RecipeError, match="skip 'fc' matches none"):
        PruneLayers(skip=("fc",))(residual(1, 1), samples)
    with pytest.raises(ModelError, match="finds no residual block"):
        PruneLayers()(program((1, 2), lambda e, x: [e(op.matmul(x, const(np.ones((2, 2)))))]), samples)
    with pytest.raises(SampleError, match="prune_layers needs samples"):
        PruneLayers()(residual(1, 1))
