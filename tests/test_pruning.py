"""Pruning on a network trained on real data, and how it shows."""

import json

import numpy as np
import pytest
from tvm import relax

from tests.cli.files import network, quick
from tests.ir_pairs import calibration, const
from tests.test_compression import model
from tvmcompress.compression import compress
from tvmcompress.errors import RecipeError, SampleError
from tvmcompress.frontend import load
from tvmcompress.inspection import inspect
from tvmcompress.ir import evaluate
from tvmcompress.model import Model
from tvmcompress.passes import (
    FoldBatchNorm,
    FoldConstants,
    PruneBlocks,
    PruneMagnitude,
    PruneNm,
    QuantizeStatic,
    simplified,
)
from tvmcompress.recipe import Recipe

op, nn = relax.op, relax.op.nn
SAMPLES = 100


@pytest.fixture(scope="module")
def digits():
    """A convolutional network trained on scikit-learn's digits: the model, images to calibrate with, and a test set."""
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    data = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 8, 8) / 16
    torch.manual_seed(0)
    torch.set_num_threads(1)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    train, test = order[:1200], order[1200:]
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 24, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(24, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    classes = torch.from_numpy(labels)
    for _ in range(12):
        for batch in train[torch.randperm(len(train))].split(50):
            loss = torch.nn.functional.cross_entropy(model(data[batch]), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    loaded = load((model.eval(), (torch.zeros(1, 1, 8, 8),)))
    return loaded, data[train[:SAMPLES]].numpy(), data[test].numpy(), labels[test.numpy()]


def accuracy(module, pictures, labels):
    run = evaluate.executor(module)
    return np.mean([run([x[None]])[0].argmax() == label for x, label in zip(pictures, labels)])


def pruned(digits, step):
    """Accuracy after `step`."""
    model, samples, pictures, labels = digits
    after = step(simplified(model.module), calibration(*samples[:, None]))
    return accuracy(after.module, pictures, labels)


def test_half_of_the_weights_cost_less_than_a_point(digits):
    model, _, pictures, labels = digits
    exact = accuracy(model.module, pictures, labels)
    found = {repair: pruned(digits, PruneMagnitude(density=0.5, repair=repair)) for repair in ("none", "bias", "obs")}
    print(f"float {exact:.2%}; half of the weights: {', '.join(f'{k} {v:.2%}' for k, v in found.items())}")
    assert exact > 0.95 and found["obs"] > exact - 0.01


@pytest.mark.parametrize(
    "step",
    [PruneMagnitude(density=0.15), PruneBlocks(block=(8, 4), density=0.3), PruneNm(n=1, m=8)],
    ids=lambda step: step.key,
)
def test_repair_pays(digits, step):
    plain, repaired = (pruned(digits, type(step)(**{**vars(step), "repair": r})) for r in ("none", "obs"))
    print(f"{step.key}: magnitude {plain:.2%}, repaired {repaired:.2%}")
    assert repaired > plain + 0.05


@pytest.fixture(scope="module")
def net():
    """A stem, a depthwise convolution, two layers to prune."""
    random = np.random.default_rng(0)
    w = lambda *s: const(random.normal(size=s) * np.sqrt(2 / np.prod(s[1:])))  # noqa: E731

    def body(rewriter, x):
        e = rewriter.emit
        x = e(nn.relu(e(nn.conv2d(x, w(16, 3, 3, 3), padding=1), "stem")))
        x = e(nn.relu(e(nn.conv2d(x, w(16, 1, 3, 3), padding=1, groups=16), "dw")))
        x = e(nn.relu(e(nn.conv2d(x, w(32, 16, 3, 3), padding=1), "conv")))
        return [e(op.matmul(e(op.mean(x, [2, 3])), e(op.permute_dims(w(64, 32)))), "fc")]

    return model([("x", (1, 3, 8, 8), "float32")], body)


def images(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


SHIPPED = {
    "prune90": (0.1, "unstructured"),
    "prune50-int8": (0.5, "unstructured"),
    "prune80-blocks-int8": (0.2, "blocks 16x4"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes(net, name, tmp_path):
    density, pattern = SHIPPED[name]
    small = compress(net, name, samples=images(8) if "int8" in name else None)
    assert small.applied == tuple(repr(step) for step in Recipe.load(name).passes)
    rows = {row["layer"]: row for row in small.notes if "pruned" in row}
    assert rows["stem"]["not_pruned"].startswith("reads the model's input")
    assert rows["dw"]["not_pruned"].startswith("depthwise")
    taken = [rows["conv"], rows["fc"]]
    assert all(row["pruned"] and abs(row["density"] - density) < 0.02 and row["pattern"] == pattern for row in taken)
    assert all(("error" in row) == ("int8" in name) for row in taken)
    seen = inspect(small)
    assert {row[0]: row[2] for row in seen.sparse_rows()} == {"conv": pattern, "fc": pattern}  # in integers too
    for layer in seen.layers:
        if layer.name in ("conv", "fc"):
            assert layer.density == pytest.approx(rows[layer.name]["density"], abs=0.01)  # rounding adds a few zeros
        assert name == "prune90" or layer.integer
    small.save(tmp_path / "small.model")
    assert Model.load(tmp_path / "small.model").notes == small.notes


def test_two_densities_in_one_recipe(net):
    text = "[fold_constants]\n[[prune_magnitude]]\nonly = ['fc']\ndensity = 0.2\n[[prune_nm]]\nskip = ['fc']\n"
    small = compress(net, Recipe.from_toml(text, "mine"))
    assert {name: pattern for name, _, pattern in inspect(small).sparse_rows()} == {
        "conv": "2:4",
        "fc": "unstructured",
    }


def test_pruning_after_quantizing_is_refused(net):
    wrong = Recipe("mine", (FoldBatchNorm(), FoldConstants(), QuantizeStatic(measure=False), PruneMagnitude()))
    with pytest.raises(RecipeError, match="compressed already; prune first"):
        compress(net, wrong, samples=images(2))


def test_samples_are_needed_for_repair_only(net):
    assert Recipe("plain", (PruneMagnitude(),)).needs_samples is False
    repairing = Recipe("mine", (FoldConstants(), PruneBlocks(repair="obs")))
    assert repairing.needs_samples
    with pytest.raises(SampleError, match="recipe 'mine' needs samples for prune_blocks"):
        compress(net, repairing)
    small = compress(net, repairing, samples=(x for x in images(3)))  # they can be read once
    assert any(row["pruned"] for row in small.notes)


@pytest.fixture(scope="module")
def sparse_onnx(tmp_path_factory):
    """A file in which one layer is 2:4, another has rows of zeros, as training with masks leaves them."""
    onnx = pytest.importorskip("onnx")
    model = network()
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w2":  # (16, 16, 3, 3)
            array[:, 2::4] = array[:, 3::4] = 0
        if tensor.name == "w3":
            array[:4] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path = tmp_path_factory.mktemp("sparse") / "sparse.onnx"
    onnx.save(model, path)
    return path


def test_inspect_of_a_pruned_file(sparse_onnx, capsys):
    found = inspect(sparse_onnx)
    rows = [row[1:] for row in found.sparse_rows()]
    assert rows == [("50.0%", "channels"), ("60.0%", "channels")]
    as_json = json.loads(json.dumps(found.to_json()))["layers"]
    assert [layer["pattern"] for layer in as_json] == ["dense", "channels", "channels"]
    assert [layer["density"] for layer in as_json] == [1, 0.5, 0.6]
    assert quick(f"inspect {sparse_onnx}") == 0
    told = capsys.readouterr().out
    assert "sparse layer" in told and "channels" in told and "50.0%" in told
    assert quick(f"inspect {sparse_onnx} --layers") == 0
    assert "pattern" in capsys.readouterr().out


def test_nothing_is_said_of_dense_models(net, capsys):
    assert inspect(net).sparse_rows() == []
    assert inspect(compress(net, "int4-weights")).sparse_rows() == []


def test_a_mask_of_training_is_kept(sparse_onnx):
    model = load(sparse_onnx)
    small = compress(model, Recipe("mine", (FoldConstants(), PruneMagnitude(density=0.5, min_size=0))))
    rows = {row["layer"]: row for row in small.notes}
    middle = list(rows)[1]
    assert rows[middle]["not_pruned"].startswith("as sparse already: 0.5") and rows[middle]["kept_zeros"] == 1152


def test_the_report_shows_pruned_layers(tmp_path, capsys):
    import onnx

    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(6, 3, 12, 12)).astype(np.float32))
    recipe = tmp_path / "r.toml"
    recipe.write_text('[fold_constants]\n[prune_magnitude]\nrepair = "obs"\nskip = ["*fc*"]\n[quantize_static]\n')
    here = {"recipe": recipe, "samples": tmp_path / "x.npz"}
    arguments = f"--recipe {here['recipe']} --samples {here['samples']} -o {tmp_path}"
    assert quick(f"compress {tmp_path}/m.onnx {arguments}/s.model") == 0
    told = capsys.readouterr().out
    assert "1 of 3 layers pruned" in told and "reads the model's input" in told and "3 of 3 layers quantized" in told
    assert quick(f"compile {tmp_path}/s.model -o {tmp_path}/s.tar") == 0
    capsys.readouterr()
    assert quick(f"inspect {tmp_path}/s.tar") == 0
    assert "1 of 3 layers, to densities 0.5 … 0.5: unstructured" in capsys.readouterr().out
    assert (
        quick(f"measure {tmp_path}/s.tar --samples {here['samples']} --html {tmp_path}/r.html --json {tmp_path}/r.json")
        == 0
    )
    told = capsys.readouterr().out
    assert "Pruned layers" in told and "50.00%" in told and "obs" in told and "Not pruned: " in told
    rows = json.loads((tmp_path / "r.json").read_text())["layers"]
    (row,) = [row for row in rows if row.get("pruned")]
    assert row["quantized"] and row["density"] == 0.5 and 0 < row["error"] < 0.5 and row["snr_db"] > 20
    assert "density before" in (tmp_path / "r.html").read_text()


def test_what_several_passes_say_of_a_layer():
    from tvmcompress.measurement.measure import layers as merged

    def of(*notes):
        (row,) = merged({"notes": [{"layer": "c", **note} for note in notes], "layers": [{"name": "c", "bytes": 1}]})
        return row

    prune, quantize = {"pass": "p", "pruned": True, "density": 0.5}, {"pass": "q", "quantized": True, "why": ""}
    refused = {"pass": "r", "clustered": False, "why": "too small"}
    late = {"pass": "p", "pruned": False, "density": 0.4, "not_pruned": "already compressed"}
    assert of(prune, quantize) == {**prune, **quantize, "pass": "p, q", "name": "c", "bytes": 1}
    assert of(quantize, late)["pass"] == "q" and of(quantize, late)["not_pruned"] == "already compressed"
    row = of(late, quantize, refused)  # left, quantized, left: it is a quantized layer
    assert row["pass"] == "q" and row["quantized"] and not row["why"]
    assert of(prune, late)["density"] == 0.5 and of(prune, {**prune, "density": 0.2})["density"] == 0.2
