"""How much of a network runs in integers with the int8 recipe, and that every program got its schedule."""

from __future__ import annotations

import tempfile
from functools import lru_cache

import numpy as np
import onnx
import pytest

import tvmcompress as tc
from tests import networks
from tests.lower.tools import build
from tvmcompress import linking
from tvmcompress.compilation import manifest, simplified
from tvmcompress.lower import host
from tvmcompress.lower.pipeline import machine
from tvmcompress.target import Target

CONVOLUTIONAL = [name for name in networks.SMALL if name != "transformer"]


@lru_cache
def network(name: str) -> tc.Model:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(networks.SMALL[name](), f"{folder}/net.onnx")
        return tc.load(f"{folder}/net.onnx")


@lru_cache
def in_floats(name: str) -> tuple[np.ndarray, np.ndarray]:
    """An input, and what the network makes of it."""
    x = np.random.default_rng(1).standard_normal(network(name).inputs[0].shape).astype(np.float32)
    return x, host.executor(simplified(network(name).module))([x])[0]


def facts(name: str, recipe: str | None) -> dict:
    model = network(name)
    if recipe:
        rng = np.random.default_rng(0)
        samples = [rng.standard_normal(model.inputs[0].shape).astype(np.float32) for _ in range(2)]
        model = tc.compress(model, recipe, samples)
    module = simplified(model.module)
    return manifest(model, module, Target.load("native"), build(module, "native"), "auto")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_run_in_integers(name: str) -> None:
    found = facts(name, "int8")
    share = found["macs"]["integer"] / found["macs"]["total"]
    assert 0.99 <= share <= 1, [row for row in found["layers"] if not row["integer"]]
    assert found["fallbacks"] == []


@pytest.mark.parametrize("name", ["squeeze", "transformer"])
def test_every_program_of_a_float_network_has_a_schedule(name: str) -> None:
    found = facts(name, None)
    assert found["macs"]["integer"] == 0
    assert sum(row["macs"] for row in found["layers"]) == found["macs"]["total"]
    assert found["fallbacks"] == []


@lru_cache
def small_int8() -> tc.Model:
    model = network("small")
    samples = [np.random.default_rng(0).standard_normal(model.inputs[0].shape).astype(np.float32)]
    return tc.compress(model, "int8", samples)


@pytest.mark.parametrize("target", ["x86-64-v2", "alderlake", "rpi5", "rpi3-32", "riscv64"])
def test_other_targets_have_schedules_too(target: str) -> None:
    for model in (network("small"), small_int8()):
        assert build(simplified(model.module), target).fallbacks == {}


@pytest.mark.parametrize("recipe", ["fp16", "bf16", "int8-weights", "int8-dynamic"])
@pytest.mark.parametrize("name", sorted(networks.SMALL))
def test_every_recipe_on_every_network(name: str, recipe: str) -> None:
    """It compiles without a fallback, and the numbers are near those of the float network."""
    x, wanted = in_floats(name)
    lowered = build(simplified(tc.compress(network(name), recipe).module), "native")
    assert lowered.fallbacks == {}
    (got,) = machine(lowered, linking.linker(Target.load("native")))([x])
    noise = float(((got - wanted) ** 2).sum()) / float((wanted**2).sum())
    assert noise < 10 ** (-2.5), f"{10 * np.log10(1 / noise):.1f} dB"
