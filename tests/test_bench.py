"""What scripts/bench makes of figures; the figures are invented."""

import json
import sys

import pytest

from scripts.benchmark import __main__ as bench
from scripts.benchmark import layers, sparse_layers, tables
from scripts.benchmark.layers import Layer
from tests import networks


def ms(median: float) -> dict:
    return {"median": median, "min": median, "p10": 0.95 * median, "p90": 1.15 * median, "runs": 9, "rounds": [median] * 3}  # fmt: skip  # noqa: E501


def profile(threads: int) -> dict:
    conv = {"name": "fused_conv2d_int8_add", "family": "tile", "macs": 10**6, "arithmetic": "int8", "of_peak": 0.5}
    conv |= {"calls": 2, "ms": 0.6, "share": 0.6, "gmacs": 3.3, "bytes": 10, "gbs": 1.0, "result": [1, 4, 4, 8]}
    copy = {"name": "concat", "calls": 1, "ms": 0.19, "share": 0.19, "bytes": 10, "gbs": 1.0, "result": [8]}
    small = {**copy, "name": "reshape", "ms": 0.01, "share": 0.01}
    peaks = {"int8": {"instruction": "vpdpbusd", "gmacs": 480.0 * threads}}
    return {"ms": 1.0, "overhead_ms": 0.2, "of_peak": 0.5, "peaks": peaks, "copy_gbs": 30.0, "kernels": [conv, copy, small]}  # fmt: skip  # noqa: E501


def network(name: str, times: dict[str, float]) -> dict:
    return {
        "name": name,
        "ms": {key: ms(value) for key, value in times.items()},
        "threads": {"gain": 1.9, "counted": 3},
        "profile": {key: {str(n): profile(n) for n in (1, 2)} for key in tables.RIVALS},
    }


KEYS = ("float32", "bf16", "int8", *tables.TITLES)
RESULT = {
    "machine": "a CPU",
    "threads": 2,
    "networks": [
        network("one", dict(zip(KEYS, (4, 2, 1, 5, 8, 2, 4, 2)))),
        network("two", dict(zip(KEYS, (5, 2, 1, 5, 4, 4, 1, 2)))),
    ],
}
LAYERS = {
    "machine": "a CPU",
    "threads": 2,
    "layers": [
        {
            "layer": "3x3 64→64 56²",
            "networks": ["resnet18"],
            "float32": {"ms": 0.4, "gmacs": 300, "of_peak": 1.25, "family": "winograd", "peak_gmacs": 240},
            "int8": {"ms": 0.2, "gmacs": 600, "of_peak": 0.62, "family": "tile", "peak_gmacs": 960},
        }
    ],
}


def test_spread():
    assert [tables.single(ms(m)) for m in (2.0, 0.0429, 250.0)] == ["2.00 ±10%", "0.0429 ±10%", "250 ±10%"]
    ours, theirs = {**ms(1), "rounds": [1.0, 2.0, 3.0]}, {**ms(2), "rounds": [2.0, 4.0, 4.0]}
    # Rounds of 0.5, 0.5 and 0.75: percentiles 10 and 90 are 0.5 and 0.7.
    assert tables.against(ours, theirs) == "0.50 ±20%"
    assert tables.against({"median": 1.0}, {"median": 2.0}) == "0.50"  # figures of before


def test_geometric_mean():
    # float32: 4/5 and 5/4; bf16: 2/2 and 2/4; int8: 1/2 and 1/1.
    assert tables.geometric(RESULT["networks"]) == (
        "Geometric mean of our time against the better of the others: float32 1.00 (greatest 1.25, two), "
        "bf16 0.71 (greatest 1.00, one), int8 0.71 (greatest 1.00, two)."
    )


@pytest.mark.parametrize("text", [tables.table(RESULT), tables.kernels(RESULT), tables.layers(LAYERS)])
def test_tables_are_rectangles(text: str):
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_table_says_what_was_measured():
    text = tables.table(RESULT)
    assert "| one | 4.00 ±10% | 0.80 ±0% | 0.50 ±0% | 2.00 ±10% | 1.00 ±0% | 1.00 ±10% | 0.25 ±0% | 0.50 ±0% |" in text
    assert "| one | 50% | 50% | 20.0% |" in text and "medians are int8 960 GMAC/s" in text
    detail = tables.kernels(RESULT)
    assert "## one int8, 2 threads" in detail
    assert "| `conv2d_int8_add` | 1x4x4x8 | 2 | 0.6000 | 60.0% | 2.0 | 3 | 50% | 1 |" in detail
    assert "| 1 more |  | 1 | 0.0100 | 1.0% |" in detail and "| outside kernels |  |  | 0.2000 | 20.0% |" in detail


def test_single_layers_against_the_bar():
    text = tables.layers(LAYERS)
    assert "| 125%* |" in text and "| 62% |" in text
    assert "float32: 1 of 1 reach 85% of the peak (240 GMAC/s)" in text and "int8: 0 of 1 reach 75%" in text


def test_layers_of_a_network():
    found = layers.layers_of(networks.resnet((1, 1, 1), False, size=64))
    assert sorted(found) == [
        Layer(1, 8, 128, 256, 2), Layer(1, 16, 64, 128, 2), Layer(3, 4, 256, 256, 1), Layer(3, 8, 128, 128, 1),
        Layer(3, 8, 128, 256, 2), Layer(3, 16, 64, 64, 1), Layer(3, 16, 64, 128, 2),
    ]  # fmt: skip
    (again,) = layers.layers_of(Layer(3, 7, 64, 96, 2).model())
    assert again == Layer(3, 7, 64, 96, 2) and str(again) == "3x3 64→96 7² /2"


@pytest.mark.parametrize("result, pictures", [(RESULT, ["x.png", "x-shares.png"]), (LAYERS, ["x.png"])])
def test_everything_is_written_from_stored_figures(result, pictures, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "README.md").write_text(f"before\n{bench.MARKERS[0]}\nold\n{bench.MARKERS[1]}\nafter\n")
    (tmp_path / "x.json").write_text(json.dumps(result))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--from", str(tmp_path / "x.json"), "--readme"])
    bench.main()
    printed = capsys.readouterr().out
    assert (tmp_path / "x.md").read_text().startswith(printed[:200])
    assert json.loads((tmp_path / "x.json").read_text()) == result
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (tmp_path / name).stat().st_size > 10_000
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("\nafter\n")
    assert ("old" not in readme) == ("networks" in result)


def test_products_of_a_network():
    found = sparse_layers.products_of(networks.encoder(tokens=16, dim=32, heads=4, depth=1))
    assert {(p.depth, p.out) for p in found} == {(32, 32), (32, 128), (128, 32)} and {p.rows for p in found} == {16}
    (again,) = sparse_layers.products_of(sparse_layers.Product(7, 32, 96).model())
    assert again == sparse_layers.Product(7, 32, 96) and again.macs == 7 * 32 * 96


def test_single_sparse_layers_against_the_bar():
    ms = {"dense": 0.4, "sparse": 0.1}
    row = {"layer": "1x1 64→256 56²", "networks": ["resnet50"], "family": "sparse_rows", "peak_gmacs": 200.0}
    row |= {"ms": ms, "model_ms": {"dense": 0.9, "sparse": 0.3}}
    rows = [row | {"of_peak": share, "most": most} for share, most in ((4.5, 20.0), (2.0, 2.4), (2.4, 5.0))]
    text = sparse_layers.table({"machine": "m", "threads": 2, "recipe": "prune90", "sparse_layers": rows})
    assert "| 4.00 | 3.00 | 4.50 | 20.00 | sparse_rows | resnet50 |" in text
    wanted = "1 of 3 reach 3 times the peak; of the rest 1 have bytes for which an activation takes longer, too; "
    assert text.endswith(f"{wanted}geometric mean 2.78.")


def test_figures_say_of_which_commit_they_are():
    result = {"machine": "m", "threads": 2, "commit": "1234abc-dirty"}
    assert tables.where(result) == "m, 2 threads, batch 1, commit 1234abc-dirty"
    del result["commit"]
    assert tables.where(result).endswith("commit unknown")  # written before tables said so
