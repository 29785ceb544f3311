import dataclasses

import pytest

from tvmcompress.errors import RecipeError
from tvmcompress.passes import PASSES, ClusterWeights, FoldBatchNorm, PruneMagnitude, QuantizeStatic, QuantizeWeights
from tvmcompress.passes.support.base import key_of
from tvmcompress.recipe import SHIPPED, Recipe


def test_shipped_recipes():
    integers = ["int4-weights", "int8", "int8-dynamic", "int8-weights"]
    pruned = ["prune50-int8", "prune80-blocks-int8", "prune90"]
    assert Recipe.list() == [
        "bf16",
        "channels50",
        "cluster16",
        "deep-compression",
        "fp16",
        *integers,
        "lowrank",
        *pruned,
    ]
    for name in Recipe.list():
        recipe = Recipe.load(name)
        assert recipe.name == name and recipe.description
        assert recipe.needs_samples == (name in ("int8", "prune50-int8", "prune80-blocks-int8"))
        # Every pass has its reason, as a comment above it.
        lines = (SHIPPED / f"{name}.toml").read_text().splitlines()
        tables = [i for i, line in enumerate(lines) if line.startswith("[")]
        assert len(tables) == len(recipe.passes) and any(line.startswith("# ") for line in lines)


def test_file_key_and_class_share_one_name():
    for key, cls in PASSES.items():
        assert key == key_of(cls) and cls.__module__ == f"tvmcompress.passes.{key}"
        assert all(spec.metadata["doc"] for spec in dataclasses.fields(cls))


def test_a_pass_is_a_value():
    assert QuantizeWeights(bits=4, group=64) == QuantizeWeights(bits=4, group=64) != QuantizeWeights()
    assert repr(QuantizeWeights(bits=4, group=64)).startswith("QuantizeWeights(bits=4, group=64, ")


@pytest.mark.parametrize("name", Recipe.list())
def test_toml_and_back(name):
    recipe = Recipe.load(name)
    assert Recipe.from_toml(recipe.to_toml(), name) == recipe


def test_a_pass_twice():
    recipe = Recipe.from_toml("[[quantize_weights]]\nskip=['fc*']\n[[quantize_weights]]\nbits=4\ngroup=32\n", "two")
    assert recipe.passes == (QuantizeWeights(skip=("fc*",)), QuantizeWeights(bits=4, group=32))
    assert Recipe.from_toml(recipe.to_toml(), "two") == recipe


def test_passes_run_in_the_order_of_the_text():
    """TOML's own order would put both prunings first."""
    text = (
        "[[prune_magnitude]]\ndensity = 0.5\n# [quantize_weights]\n[cluster_weights]\n"
        '[[ "prune_magnitude" ]]  # again\ndensity = 0.2\n'
    )
    recipe = Recipe.from_toml(text, "three")
    wanted = (PruneMagnitude(density=0.5), ClusterWeights(), PruneMagnitude(density=0.2))
    assert recipe.passes == wanted and Recipe.from_toml(recipe.to_toml(), "three") == recipe
    inline = Recipe.from_toml("prune_magnitude = [{density = 0.5}, {density = 0.2}]\n[cluster_weights]\n", "inline")
    assert inline.passes == (wanted[0], wanted[2], wanted[1])


def test_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[fold_batch_norm]\n[quantize_static]\npercentile = 99\nskip = ["conv1", "head_*"]\n')
    recipe = Recipe.load(path)
    assert recipe.name == "mine"
    assert recipe.passes == (FoldBatchNorm(), QuantizeStatic(percentile=99.0, skip=("conv1", "head_*")))


@pytest.mark.parametrize(
    "text, message",
    [
        ("[quantise_static]", "there is no pass 'quantise_static'; did you mean 'quantize_static'"),
        ("[quantize_static]\nmetod = 'mse'", "quantize_static has no option 'metod'; did you mean 'method'?"),
        ("[fold_batch_norm]\nbits = 8", "fold_batch_norm has no option 'bits'; its options: none"),
        ("[quantize_static]\nmethod = 'mze'", "method must be one of .*, got 'mze'; did you mean 'mse'"),
        ("[quantize_static]\nmethod = 3", "quantize_static: method must be str, got 3"),
        ("[quantize_static]\npercentile = 101.0", "percentile must be in 50.0 … 100.0, got 101.0"),
        ("[quantize_static]\npercentile = nan", "percentile must be in 50.0 … 100.0, got nan"),
        ("[quantize_static]\nattention = 1", "quantize_static: attention must be bool, got 1"),
        ("[quantize_static]\nskip = 'conv1'", "skip must be a list of str, got 'conv1'"),
        ("[prune_magnitude]\ndensity = 0.0", "prune_magnitude: density must be above 0 and at most 1 .*, got 0.0"),
        ("[prune_magnitude]\nsparsity = 0.9", "prune_magnitude has no option 'sparsity'"),
        ("[prune_blocks]\nblock = 16", "prune_blocks: block must be a list of int, got 16"),
        ("[prune_nm]\nn = 8", "prune_nm: n must be less than m, got 8:4; try 2:4"),
        ("[quantize_weights]\nbits = 5", "quantize_weights: bits must be one of 8, 4, got 5"),
        ("[quantize_weights]\nbits = true", "quantize_weights: bits must be int, got True"),
        ("[quantize_weights]\nmin_size = -1", "min_size must be 0 or more, got -1"),
        ("quantize_weights = 4", r"'quantize_weights' must be a table of options, got 4"),
        ("description = 3", "description must be a text, got 3"),
        ("[quantize_weights", "not valid TOML: Expected"),
        ("description = 'nothing'", "the recipe has no passes"),
    ],
)
def test_faults_are_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value) and "bad.toml" in str(caught.value)


def test_unknown_names(tmp_path):
    with pytest.raises(RecipeError, match="no recipe 'int9'; did you mean 'int8'"):
        Recipe.load("int9")
    with pytest.raises(RecipeError, match=r"no recipe 'nowhere\.toml'"):
        Recipe.load("nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        Recipe.load(tmp_path / "binary.toml")
