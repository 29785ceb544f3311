"""How much of a network runs in integers with the int8 recipe, and that every program got its schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import tvmcompress as tc
from tests import networks
from tests.lower.tools import build
from tvmcompress.compilation import manifest, simplified
from tvmcompress.lower import host
from tvmcompress.target import Target

CONVOLUTIONAL = [name for name in networks.SMALL if name != "transformer"]


def facts(name: str, recipe: str | None, folder: Path) -> dict:
    onnx.save(networks.SMALL[name](), folder / "net.onnx")
    model = tc.load(folder / "net.onnx")
    if recipe:
        rng = np.random.default_rng(0)
        samples = [rng.standard_normal(model.inputs[0].shape).astype(np.float32) for _ in range(2)]
        model = tc.compress(model, recipe, samples)
    module = simplified(model.module)
    return manifest(model, module, Target.load("native"), build(module, "native"))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_run_in_integers(name: str, tmp_path: Path) -> None:
    found = facts(name, "int8", tmp_path)
    share = found["macs"]["integer"] / found["macs"]["total"]
    assert 0.99 <= share <= 1, [row for row in found["layers"] if not row["integer"]]
    assert found["fallbacks"] == []


@pytest.mark.parametrize("name", ["squeeze", "transformer"])
def test_every_program_of_a_float_network_has_a_schedule(name: str, tmp_path: Path) -> None:
    found = facts(name, None, tmp_path)
    assert found["macs"]["integer"] == 0
    assert sum(row["macs"] for row in found["layers"]) == found["macs"]["total"]
    assert found["fallbacks"] == []


@pytest.mark.parametrize("target", ["x86-64-v2", "alderlake", "rpi5", "rpi3-32", "riscv64"])
def test_other_targets_have_schedules_too(target: str, tmp_path: Path) -> None:
    onnx.save(networks.small(), tmp_path / "net.onnx")
    model = tc.load(tmp_path / "net.onnx")
    samples = [np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype(np.float32)]
    for recipe in (None, "int8"):
        compressed = tc.compress(model, recipe, samples) if recipe else model
        assert build(simplified(compressed.module), target).fallbacks == {}


@pytest.mark.parametrize("recipe", ["fp16", "bf16", "int8-weights", "int8-dynamic"])
@pytest.mark.parametrize("name", sorted(networks.SMALL))
def test_every_recipe_on_every_network(name: str, recipe: str, tmp_path: Path) -> None:
    """It compiles without a fallback, and the numbers are near those of the float network."""
    onnx.save(networks.SMALL[name](), tmp_path / "net.onnx")
    model = tc.load(tmp_path / "net.onnx")
    module = simplified(tc.compress(model, recipe).module)
    x = np.random.default_rng(1).standard_normal(model.inputs[0].shape).astype(np.float32)
    (wanted,), (got,) = (host.executor(m)([x]) for m in (simplified(model.module), module))
    assert build(module, "native").fallbacks == {}
    noise = float(((got - wanted) ** 2).sum()) / float((wanted**2).sum())
    assert noise < 10 ** (-2.5), f"{10 * np.log10(1 / noise):.1f} dB"
