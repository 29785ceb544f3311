"""The guard: sparse kernels stay only where the whole program is faster with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

import tvmcompress as tc
from tests.lower.test_sparse import model, normal
from tests.lower.tools import need
from tvmcompress import linking
from tvmcompress.breakeven import emptied
from tvmcompress.compilation import tuned
from tvmcompress.ir import evaluate, graph
from tvmcompress.kernels.conv2d import Conv2d
from tvmcompress.lower import compressed, guard, twins
from tvmcompress.lower.builds import begun, linked
from tvmcompress.lower.guard import guarded
from tvmcompress.lower.sparse import Keep
from tvmcompress.model import Model
from tvmcompress.passes import ClusterWeights, simplified
from tvmcompress.target import Target

op, nn = relax.op, relax.op.nn
NETWORKS, NOISE, TRIES = 40, 1.05, 5


@pytest.fixture(scope="module")
def small() -> tuple[Model, np.ndarray]:
    """A layer that is nearly empty, one of which a tenth is left, and a full one."""
    conv = Conv2d(1, 28, 28, 128, 128, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    weights = [emptied(conv, density, (1, 1)) / 8 for density in (0.02, 0.1, 1.0)]

    def body(rw, x):
        for name, weight in zip(("empty", "tenth", "full"), weights):
            x = rw.emit(nn.relu(rw.emit(nn.conv2d(x, graph.const(weight)), name)))
        return [x]

    mod = graph.program([("x", (1, 128, 28, 28), "float32")], body)
    x = np.random.default_rng(0).standard_normal((1, 128, 28, 28)).astype(np.float32)
    return model(mod, x), x


class Clock:
    """In place of `twins.ratio`: gives these ratios, and counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sure: float, *ratios: float) -> None:
        self.ratios, self.asked = list(ratios), 0
        monkeypatch.setattr(twins, "SURE", sure)
        monkeypatch.setattr(guard, "FEW_MACS", 0)
        monkeypatch.setattr(twins, "ratio", self)

    def __call__(self, one, other, inputs) -> float:
        self.asked += 1
        assert not any(told.row["kept"] for told in compressed.told(other.lowered.layers))
        return self.ratios.pop(0)


def compiled(small: tuple[Model, np.ndarray], keep: str = "faster", target: str = "native") -> dict[str, dict]:
    """The rows of what was compiled, whose results are checked."""
    package = tc.compile(small[0], target, keep=keep)
    got = tc.deploy(package)({"x": small[1]})["y"]
    np.testing.assert_allclose(got, evaluate.evaluate(small[0].module, [small[1]])[0], rtol=1e-4, atol=1e-5)
    sparse = [
        row["key"] for row in package.manifest["kernels"] if row["key"].startswith(("sparse ", "blocks ", "picked "))
    ]
    rows = {row["name"]: row["sparse"] for row in package.manifest["layers"] if row.get("sparse")}
    assert len(sparse) == sum(row["kept"] for row in rows.values())
    return rows


def test_what_is_slower_comes_out_dense(small, monkeypatch):
    clock = Clock(monkeypatch, 0.0, 1.25)
    rows = compiled(small)
    assert clock.asked == 1 and set(rows) == {"empty", "tenth"}
    for row in rows.values():
        assert not row["kept"] and row["why"].startswith("measured: ") and row["whole"] == 1.25
        assert row["bytes"] == row["dense_bytes"]


@pytest.mark.parametrize("ratio, kept", [(0.5, True), (twins.WON - 0.001, True), (twins.WON, False)])
def test_what_is_faster_beyond_noise_stays(small, monkeypatch, ratio, kept):
    clock = Clock(monkeypatch, 0.0, ratio)
    rows = compiled(small)
    assert clock.asked == 1
    assert [row["kept"] for row in rows.values()] == [kept, kept]
    assert [row["whole"] for row in rows.values()] == [round(ratio, 3)] * 2


def test_nothing_is_timed_where_the_estimate_is_sure(small, monkeypatch):
    clock = Clock(monkeypatch, 2.0)
    rows = compiled(small)
    assert clock.asked == 0 and all(row["kept"] and "whole" not in row for row in rows.values())


def test_of_little_work_no_estimate_is_sure(small, monkeypatch):
    clock = Clock(monkeypatch, 2.0, 1.25)
    monkeypatch.setattr(guard, "FEW_MACS", 2 * 28 * 28 * 128 * 128 + 1)
    assert not any(row["kept"] for row in compiled(small).values()) and clock.asked == 1


@pytest.mark.parametrize("second, kept", [(0.7, [True, False]), (1.1, [False, False])])
def test_without_those_in_doubt_it_is_tried_once_more(small, monkeypatch, second, kept):
    Clock(monkeypatch, 2.0)
    estimates = {name: row["estimate"] for name, row in compiled(small).items()}
    assert estimates["empty"] < estimates["tenth"]
    clock = Clock(monkeypatch, 0.6 * estimates["empty"] + 0.4 * estimates["tenth"], 1.3, second)
    rows = compiled(small)
    assert clock.asked == 2 and [rows[name]["kept"] for name in ("empty", "tenth")] == kept
    assert {row["whole"] for row in rows.values()} == {0.7 if second < 1 else 1.3}


@pytest.mark.parametrize("keep, kept", [("always", 2), ("never", 0), ("smaller", 1)])
def test_other_wishes_are_not_timed(small, monkeypatch, keep, kept):
    """Where a tenth is left a package stores that in as few bytes for a dense kernel."""
    clock = Clock(monkeypatch, 0.0)
    assert sum(row["kept"] for row in compiled(small, keep).values()) == kept and clock.asked == 0


def test_of_several_builds_the_estimate_decides(small, monkeypatch):
    need("x86-64-v3")
    clock = Clock(monkeypatch, 0.0)
    package = tc.compile(small[0], "x86-64-v3,x86-64-v2")
    assert clock.asked == 0
    for build in package.builds:
        assert sum(row.get("sparse", {}).get("kept", False) for row in build.manifest["layers"]) == 2


@pytest.mark.parametrize("ratio, kept", [(0.5, True), (1.25, False)])
def test_shared_values_are_timed_too(monkeypatch, ratio, kept):
    """One layer looks its values up; the twin has them unpacked."""
    need("x86-64-v4")
    weight = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    mod = graph.program([("x", (1, 1024), "float32")], lambda _, x: [op.matmul(x, graph.const(weight))])
    x = np.random.default_rng(1).standard_normal((1, 1024)).astype(np.float32)
    clock = Clock(monkeypatch, 0.0, ratio)
    package = tc.compile(model(ClusterWeights()(mod).module, x), "native")
    (row,) = (layer["shared"] for layer in package.manifest["layers"])
    assert clock.asked == 1 and row["kept"] == kept and row["whole"] == ratio
    assert row["format"] == ("16 values looked up" if kept else "unpacked")
    assert row["why"] == ("" if kept else "measured: 16 values looked up are slower")


def mixed(seed: int) -> tuple[tvm.IRModule, np.ndarray]:
    """A network of a few layers, each with a density of its own and zeros of its own kind."""
    rng = np.random.default_rng(seed)
    c, side = int(rng.choice([32, 64, 96, 128])), int(rng.choice([7, 14, 28]))

    def weight(o: int, i: int, kernel: int) -> np.ndarray:
        block = [(1, 1), (16, 1), (8, 1), (1, 4)][rng.integers(4)]
        conv = Conv2d(1, side, side, i, o, (kernel, kernel), (1, 1), (0, 0, 0, 0), (1, 1))
        return normal(int(rng.integers(1 << 30)), o, i, kernel, kernel) * (emptied(conv, rng.random(), block) != 0)

    layers = []
    for _ in range(int(rng.integers(2, 6))):
        o, kernel = int(rng.choice([32, 64, 128, 192])), int(rng.choice([1, 1, 3]))
        layers.append((weight(o, c, kernel), kernel // 2))
        c = o
    dense = weight(100, c, 1)[:, :, 0, 0].T.copy()

    def body(rw, x):
        for taps, padding in layers:
            y = rw.emit(nn.relu(rw.emit(nn.conv2d(x, graph.const(taps), 1, padding))))
            x = rw.emit(op.add(x, y)) if graph.shape(x) == graph.shape(y) else y
        return [op.matmul(rw.emit(op.mean(x, [2, 3])), graph.const(dense))]

    shape = (1, layers[0][0].shape[1], side, side)
    return graph.program([("x", shape, "float32")], body), rng.standard_normal(shape).astype(np.float32)


def slower(seed: int, folder: Path, keep: str) -> float:
    """The time of a program over that of the dense one: the median of TRIES, each of which noise may spoil."""
    mod, x = mixed(seed)
    target = Target.load("native")
    begin = begun(simplified(mod), target, tables=tuned(target, None))
    finish = partial(linked, target, linking.linker(target), folder)
    made, dense = begin(Keep(keep)), finish(begin(Keep("never")))
    kept = guarded(made, begin, finish, [x], Keep()) if keep == "faster" else finish(made)
    return float(np.median([twins.ratio(kept, dense, [x]) for _ in range(TRIES)]))


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.parametrize("seed", range(NETWORKS))
def test_a_guarded_program_is_never_slower_than_the_dense_one(seed, tmp_path):
    assert slower(seed, tmp_path, "faster") <= NOISE


@pytest.mark.alone
def test_without_the_guard_it_would_be(tmp_path):
    """Five layers, most of whose weights are not zero."""
    assert slower(26, tmp_path, "always") > NOISE
