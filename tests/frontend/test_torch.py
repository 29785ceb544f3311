"""Float networks of torch, against torch itself."""

from __future__ import annotations

import numpy as np
import pytest

from tvmcompress.errors import ModelError, OpenShapeError, UnsupportedOperatorsError
from tvmcompress.frontend.torch import load_torch
from tvmcompress.ir import graph
from tvmcompress.ir.evaluate import evaluate

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


def check(module, *inputs, tolerance=1e-4):
    """Import, run with TVM, compare with torch; returns the model."""
    torch.manual_seed(0)
    module.eval()
    with torch.no_grad():
        wanted = module(*inputs)
    wanted = (
        list(wanted.values()) if isinstance(wanted, dict) else [wanted] if torch.is_tensor(wanted) else list(wanted)
    )
    model = load_torch(module, inputs)
    got = evaluate(model.module, [i.numpy() for i in inputs])
    assert len(got) == len(wanted) == len(model.outputs)
    for g, w, spec in zip(got, wanted, model.outputs):
        assert g.shape == spec.shape and str(g.dtype) == spec.dtype
        np.testing.assert_allclose(g, w.numpy(), atol=tolerance, rtol=tolerance)
    assert len(model.module["main"].body.blocks) == 1
    assert [p.name for p in model.module["main"].params] == [s.name for s in model.inputs]
    return model


def op_names(model):
    return [graph.op_name(b.value) for b in graph.bindings(model.module)]


def layer_names(model):
    return [b.var.name for b in graph.bindings(model.module)]


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, image):
        x = functional.relu(self.bn(self.conv(image)))
        return self.fc(x.mean((2, 3)))


def test_conv_batch_norm_relu_linear():
    module = ConvNet()
    module.bn.running_mean.uniform_(-1, 1)
    module.bn.running_var.uniform_(0.5, 2)
    model = check(module, torch.randn(2, 3, 9, 9))
    assert model.inputs[0].name == "image" and model.outputs[0].name == "output_0"
    assert {"conv", "bn", "fc"} <= set(layer_names(model))
    assert "relax.nn.batch_norm" in op_names(model)
    assert "relax.permute_dims" not in op_names(model)  # the weight of fc was transposed as a constant


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def test_transformer_block():
    model = check(Block(), torch.randn(2, 5, 16))
    assert {"mlp_0", "mlp_2", "norm1"} <= set(layer_names(model))
    assert sum(op == "relax.matmul" for op in op_names(model)) == 6


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_masks(causal, masked):
    if causal and masked:
        pytest.skip("torch refuses both")

    class Attention(nn.Module):
        def forward(self, q, k, v):
            mask = torch.tensor([[True, False, True, True]] * 3) if masked else None
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    check(Attention(), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 4, 8), torch.randn(2, 2, 4, 6))


def test_embedding_and_lstm():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)

        def forward(self, ids):
            return self.lstm(self.embedding(ids))[0]

    check(Reader(), torch.randint(0, 11, (2, 4)))


def test_gru():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(6, 5)

        def forward(self, x):
            y, h = self.gru(x)
            return {"states": y, "last": h}

    model = check(Reader(), torch.randn(3, 2, 6))
    assert [o.name for o in model.outputs] == ["states", "last"]


def test_residual_blocks():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(16)
            self.down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))

        def forward(self, x):
            x = self.stem(x)
            y = torch.relu_(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            y += self.down(x)
            return torch.flatten(self.pool(y.relu()), 1)

    model = check(Residual(), torch.randn(1, 3, 33, 33))
    assert {"stem_0", "conv1", "conv2", "down_0"} <= set(layer_names(model))


def test_mobile_block():
    class Mobile(nn.Module):
        def __init__(self):
            super().__init__()
            self.expand = nn.Conv2d(8, 24, 1)
            self.depthwise = nn.Conv2d(24, 24, 5, 1, 2, groups=24)
            self.squeeze = nn.Conv2d(24, 6, 1)
            self.excite = nn.Conv2d(6, 24, 1)
            self.project = nn.Conv2d(24, 8, 1)
            self.act = nn.Hardswish()

        def forward(self, x):
            y = self.act(self.depthwise(self.act(self.expand(x))))
            s = functional.adaptive_avg_pool2d(y, 1)
            s = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(s))))
            return x + self.project(functional.silu(y * s))

    check(Mobile(), torch.randn(2, 8, 7, 7))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), (1, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (1, 4, 9, 9)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 4, 8, 8)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 4, 5, 5)),
        (nn.Upsample(scale_factor=2, mode="nearest"), (1, 4, 5, 5)),
        (nn.GroupNorm(2, 4), (2, 4, 5, 5)),
        (nn.InstanceNorm2d(4, affine=True), (2, 4, 5, 5)),
        (nn.PReLU(4), (2, 4, 5)),
        (nn.LeakyReLU(0.2), (2, 4)),
        (nn.ELU(), (2, 4)),
        (nn.Softmax(1), (2, 4)),
        (nn.PixelShuffle(2), (1, 8, 3, 3)),
        (nn.ZeroPad2d((1, 2, 0, 1)), (1, 2, 3, 3)),
        (nn.ReflectionPad2d(1), (1, 2, 4, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers(layer, shape):
    check(layer, torch.randn(shape))


def test_saved_file_and_open_dimensions(tmp_path):
    batch = torch.export.Dim("batch")
    module = ConvNet().eval()
    exported = torch.export.export(module, (torch.randn(2, 3, 9, 9),), dynamic_shapes={"image": {0: batch}})
    path = tmp_path / "net.pt2"
    torch.export.save(exported, path)
    with pytest.raises(OpenShapeError, match=r"'image'.*--shape image=\?x3x9x9"):
        load_torch(path)
    with pytest.raises(ModelError, match="did you mean 'image'"):
        load_torch(path, shapes={"imagee": (1, 3, 9, 9)})
    model = load_torch(path, shapes={"image": (3, 3, 9, 9)})
    assert model.inputs[0].shape == (3, 3, 9, 9) and model.source.name == "net.pt2"
    assert {"conv", "fc"} <= set(layer_names(model))
    x = torch.randn(3, 3, 9, 9)
    np.testing.assert_allclose(evaluate(model.module, [x.numpy()])[0], module(x).detach().numpy(), atol=1e-4)


def test_keyword_inputs():
    class Two(nn.Module):
        def forward(self, left, right):
            return left - right

    model = load_torch(Two(), {"left": torch.ones(2), "right": torch.zeros(2)})
    assert [i.name for i in model.inputs] == ["left", "right"]


def test_weights_that_share_memory_are_one_constant():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids))

    check(Tied(), torch.randint(0, 9, (1, 3)))


def test_all_unsupported_operators_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x) + torch.special.bessel_y0(x) + torch.special.bessel_j0(x + 1)

    with pytest.raises(UnsupportedOperatorsError) as caught:
        load_torch(Odd(), (torch.eye(3),))
    rows = {(op, domain, count) for op, domain, count, _ in caught.value.operators}
    assert ("special_bessel_j0.default", "aten", 2) in rows and len(rows) == 2


def test_pickled_files_are_refused(tmp_path):
    torch.save(ConvNet(), tmp_path / "net.pth")
    torch.save(ConvNet().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("net.pth", "old.pt"):
        with pytest.raises(ModelError, match=r"write the model with torch\.export\.save"):
            load_torch(tmp_path / name)


def test_code_in_an_archive_is_not_run(tmp_path):
    import pickle
    import zipfile

    good = tmp_path / "good.pt2"
    torch.export.save(torch.export.export(nn.ReLU(), (torch.ones(2),)), good)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as new:
        for item in old.namelist():
            new.writestr(item, pickle.dumps(Evil()) if "sample_inputs" in item else old.read(item))
    with pytest.raises(ModelError, match="sample inputs"):
        load_torch(tmp_path / "evil.pt2")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "shape.pt2", "w") as new:
        for item in old.namelist():
            text = b'{"expr_str": "lambdify((), \'exit()\')()"}'
            new.writestr(item, text if item.endswith("model.json") else old.read(item))
    with pytest.raises(ModelError, match="not a shape expression"):
        load_torch(tmp_path / "shape.pt2")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "library.pt2", "w") as new:
        for item in old.namelist():
            new.writestr(item, old.read(item))
        new.writestr(old.namelist()[0].partition("/")[0] + "/data/aotinductor/model/x.so", b"")
    with pytest.raises(ModelError, match="not data"):
        load_torch(tmp_path / "library.pt2")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(range(256)) * 8], ids=["empty", "cut", "random"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.pt2"):
        load_torch(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(ConvNet().eval(), (torch.randn(1, 3, 9, 9),)), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError):
        load_torch(path)
