"""breakeven: measured on this machine, as the command tells it, and its page in a real browser."""

import json

import pytest

from tests.browser import Browser, browser  # noqa: F401  a fixture
from tests.cli.files import quick
from tests.test_comparison_page import INK, contrast
from tvmcompress.breakeven import BreakEven, Curve
from tvmcompress.breakeven_html import render
from tvmcompress.kernels.conv2d import Conv2d

FOUND = BreakEven(
    "native",
    True,
    tuple(
        Curve(text, dtype, layer, ((0.1, 0.2), (0.5, ratio), (0.9, 2.0)))
        for layer in ("a <b>layer</b>", "another")
        for text, dtype, ratio in (
            ("rows", "float32", 1.5),
            ("16x1 blocks", "float32", 0.9),
            ("16x4 blocks", "int8", 0.8),
        )
    ),
)


@pytest.fixture
def tiny(monkeypatch):
    conv = Conv2d(1, 4, 8, 32, 32, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    monkeypatch.setattr("tvmcompress.breakeven.LAYERS", {"tiny": conv})
    monkeypatch.setattr("tvmcompress.breakeven.breakeven.__defaults__", ((0.1, 0.9), None))


def test_measured_here(tiny, tmp_path, capsys):
    page, told = tmp_path / "page.html", tmp_path / "found.json"
    assert quick(f"breakeven --target native -o {page} --json {told}") == 0
    found, text = json.loads(told.read_text()), capsys.readouterr().out
    assert found["measured"] and found["target"] and 3 <= len(found["curves"]) <= 9
    for curve in found["curves"]:
        assert curve["layer"] == "tiny" and [density for density, _ in curve["ratios"]] == [0.1, 0.9]
        assert all(0.01 < ratio < 100 for _, ratio in curve["ratios"]) and 0 <= curve["breakeven"] <= 0.9
    assert "measured" in text and "wins below" in text and "tiny" in text
    assert "timed on this machine" in page.read_text()


def test_estimated_for_a_board(tiny, capsys):
    assert quick("breakeven --target rpi4 --json -") == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["measured"] and {curve["dtype"] for curve in found["curves"]} == {"float32", "int8"}


@pytest.mark.parametrize(
    ("target", "said"), [("rpi44", "did you mean"), ("cuda-sm80", "no sparse kernels"), ("x86-64-any", "no sparse")]
)
def test_what_has_none_is_said_in_a_line(target, said, capsys):
    assert quick(f"breakeven --target {target}") != 0
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) <= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(browser: Browser, tmp_path, scheme):  # noqa: F811
    path = tmp_path / "breakeven.html"
    path.write_text(render(FOUND), encoding="utf-8")
    browser.scheme(scheme)
    browser.width(1100)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(path)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
    assert browser.value("document.querySelectorAll('svg').length") == 4
    assert browser.value("document.querySelector('h2').textContent") == "a <b>layer</b>, float32"
    assert "rows: wins below 35%" in browser.value("document.body.innerText")
    assert contrast(*browser.value(INK)) > 7
    lines = "[...document.querySelectorAll('svg path[style]')].map(p => getComputedStyle(p).stroke)"
    assert len(set(browser.value(lines))) == 2  # a colour for each format of a dtype, in the charts of both layers
    assert browser.value("document.documentElement.scrollWidth") <= 1100
