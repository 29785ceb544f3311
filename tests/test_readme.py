"""What README's afternoon shows runs as it stands there, on a tiny model."""

import os
import re
import shlex

import numpy as np
import pytest

from tests.cli.files import SHAPE, briefly, network, prepare, tvmcompress
from tests.test_public_names import section

AFTERNOON = section("A user's afternoon")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", AFTERNOON, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("afternoon"))


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_command(folder, line: str):
    done = tvmcompress(shlex.split(line)[1:], folder)
    if "--target rpi4" in line and done.returncode == 5:
        assert "apt" in done.stderr  # the cross linker is not there, and that is said
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    briefly(monkeypatch)
    (code,) = blocks("python")
    small = code.replace("(1, 3, 224, 224)", str(SHAPE))
    assert small != code
    names: dict = {}
    exec(compile(small, "README.md", "exec"), names)
    ratio, speedup, snr = map(float, capsys.readouterr().out.split())
    assert ratio > 0 and speedup > 0 and snr > 20
    (output,) = network().graph.output
    assert set(names["outputs"]) == {output.name}
    assert np.isfinite(names["outputs"][output.name]).all()
    assert os.path.getsize("small.tar") == names["package"].sizes["package"]


def test_recipe_in_readme():
    """The recipe that README shows is one."""
    from tvmcompress import Recipe

    (text,) = re.findall(r"^```toml\n(.*?)^```", section("Recipes"), re.MULTILINE | re.DOTALL)
    assert [step.key for step in Recipe.from_toml(text, "mine").passes][-1] == "quantize_static"


def test_pruning_in_readme():
    from tvmcompress import Recipe

    (text,) = re.findall(r"^```toml\n(.*?)^```", section("Pruning"), re.MULTILINE | re.DOTALL)
    assert [step.density for step in Recipe.from_toml(text, "mine").passes] == [0.2, 0.5]
