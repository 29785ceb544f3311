"""The page of a comparison, read in a real browser."""

import re

import pytest

from tests.browser import Browser, browser  # noqa: F401  a fixture
from tests.comparisons import comparison
from tvmcompress import comparison_tables as tables

ROWS = "[...document.querySelectorAll('section:first-of-type tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
HEADS = "[...document.querySelectorAll('section:first-of-type th')]"
INK = "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"


@pytest.fixture
def page(browser: Browser, tmp_path) -> Browser:  # noqa: F811
    comparison().save_html(tmp_path / "compare.html")
    browser.scheme("light")
    browser.width(1240)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(tmp_path / "compare.html")
    return browser


def luminance(colour: str) -> float:
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def channels(colour: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


def contrast(one: str, other: str) -> float:
    """By WCAG's formula."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_it_shows_what_was_measured(page: Browser):
    wanted = tables.end_to_end(comparison())
    assert page.value(f"{HEADS}.map(h => h.textContent)") == list(wanted.columns)
    assert page.value(ROWS) == [[cell.text for cell in row] for row in wanted.rows]
    assert "emulated" in page.value("document.body.innerText")
    assert page.value("document.querySelectorAll('svg').length") == 4
    assert page.value("[...document.querySelectorAll('svg')].every(s => s.ariaLabel && s.querySelector('title'))")


def test_nothing_is_fetched_and_nothing_goes_wrong(page: Browser):
    page.value("document.querySelectorAll('button').forEach(b => b.click())")
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page.value("location.href")]


def test_a_click_sorts_and_emulated_boards_come_last(page: Browser):
    column = list(tables.end_to_end(comparison()).columns).index("latency")
    for sort in ("ascending", "descending"):
        page.value(f"{HEADS}[{column}].querySelector('button').click()")
        assert page.value(f"{HEADS}[{column}].ariaSort") == sort
        shown = [row[column] for row in page.value(ROWS)]
        times = [float(text.split()[0]) for text in shown[:4]]
        assert times == sorted(times, reverse=sort == "descending") and shown[4:] == ["emulated", "emulated"]


def test_the_keyboard_sorts_too(page: Browser):
    page.value(f"{HEADS}[1].querySelector('button').focus()")
    page.press("Enter")
    assert [row[1] for row in page.value(ROWS)] == ["float"] * 3 + ["int8"] * 3
    assert page.value(f"{HEADS}[1].ariaSort") == "ascending"


def test_words_filter_a_long_table(page: Browser):
    page.value(
        "(f => { f.value = 'orin int8'; f.dispatchEvent(new Event('input')) })(document.querySelector('.filter'))"
    )
    rows = (
        "[...document.querySelectorAll('table.filtered tbody tr')].filter(r => r.offsetHeight).map(r => r.textContent)"
    )
    assert len(page.value(rows)) == 2 and all("orin" in row and "int8" in row for row in page.value(rows))


def test_light_and_dark(page: Browser):
    seen = {}
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        ink, back = seen[scheme] = page.value(INK)
        assert contrast(ink, back) > 7
        dim = page.value("getComputedStyle(document.querySelector('.note')).color")
        assert contrast(dim, back) > 4.5
    assert seen["light"] != seen["dark"]
    page.value("document.querySelector('.theme').click()")  # against what the system prefers
    assert page.value(INK) == seen["light"]
    page.value("document.querySelector('.theme').click()")
    assert page.value(INK) == seen["dark"]


def test_a_telephone_shows_it_without_scrolling_sideways(page: Browser):
    page.width(390)
    assert page.value("document.documentElement.scrollWidth") <= 390
