"""The pages as Chromium shows them: nothing said on the console, all drawn, nothing cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pages.browser import Browser, running
from tests.pages.example import study
from tests.pages.test_evaluation_card import FLOAT, quantized
from zq2onnx.evaluation.results import Evaluation
from zq2onnx.pages import evaluation_card, study_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

MEASURE = """
(() => {
  const box = element => {
    const found = element.getBoundingClientRect();
    return [found.left, found.top, found.right, found.bottom];
  };
  const root = document.documentElement;
  return {
    overflow: root.scrollWidth - root.clientWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: [...document.querySelectorAll("svg text")].map(text => getComputedStyle(text).fill),
    plots: [...document.querySelectorAll("svg")].map(svg => ({
      name: svg.id, box: box(svg), marks: svg.querySelectorAll("use, path").length,
      texts: [...svg.querySelectorAll("text")].map(text => [text.textContent, ...box(text)]),
    })),
    cut: [...document.querySelectorAll("h1, h2, h3, p, dd, dt, pre, figcaption, li")]
      .filter(element => element.scrollWidth > element.clientWidth + 1).map(element => element.textContent),
    tables: [...document.querySelectorAll("table")].filter(table => table.checkVisibility()).map(table =>
      ({width: table.scrollWidth, room: table.closest(".scroll").clientWidth})),
  };
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with running(CHROMIUM) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pages")
    (made / "study.html").write_text(study_report.render(study()), encoding="utf-8")
    card = evaluation_card.render(Evaluation((FLOAT, quantized(0.3), quantized(7.0)), 128, 2540, 8192))
    (made / "card.html").write_text(card, encoding="utf-8")
    return made


def overlap(first: list[Any], second: list[Any]) -> float:
    """By how much two boxes reach into each other, in pixels; the lesser of both directions."""
    across = min(first[3], second[3]) - max(first[1], second[1])
    down = min(first[4], second[4]) - max(first[2], second[2])
    return float(min(across, down))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["study", "card"])
def test_page_is_drawn_whole(browser: Browser, folder: Path, name: str, width: int, dark: bool) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    page = folder / f"{name}.html"
    browser.open(page, width, dark)
    found = browser.evaluate(MEASURE)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert found["overflow"] <= 0
    assert found["cut"] == []
    assert found["ground"] == ("rgb(16, 20, 24)" if dark else "rgb(245, 246, 248)")
    assert len(found["plots"]) == (9 if name == "study" else 0)
    assert (len({*found["ink"]}) > 0) == (name == "study")
    for plot in found["plots"]:
        check_plot(plot, width)


def check_plot(plot: dict[str, Any], width: int) -> None:
    left, top, right, bottom = plot["box"]
    assert 300 < right - left < width and bottom - top > 200, plot["name"]
    assert plot["marks"] > 20, plot["name"]
    texts = plot["texts"]
    assert len(texts) > 8
    for index, text in enumerate(texts):
        inside = left - 1 <= text[1] and text[3] <= right + 1 and top - 1 <= text[2] and text[4] <= bottom + 1
        assert inside, f"{plot['name']}: {text[0]} is outside"
        for other in texts[:index]:
            # A line's box is taller than its letters: neighbours may share two pixels.
            assert overlap(text, other) <= 3, f"{plot['name']}: {text[0]} on {other[0]}"


def test_the_papers_table_fits_a_phone(browser: Browser, folder: Path) -> None:
    browser.open(folder / "study.html", 390)
    first = browser.evaluate(MEASURE)["tables"][0]
    assert first["width"] <= first["room"]


def test_prints_light_and_within_the_page(browser: Browser, folder: Path) -> None:
    browser.open(folder / "study.html", 680, dark=True, media="print")
    found = browser.evaluate(MEASURE)
    assert found["ground"] == "rgb(255, 255, 255)"
    assert set(found["ink"]) == {"rgb(27, 33, 40)", "rgb(85, 96, 108)"}
    assert found["overflow"] <= 0
    assert [table for table in found["tables"] if table["width"] > table["room"]] == []
    document = browser.pdf()
    assert document.startswith(b"%PDF") and 3 <= document.count(b"/Type /Page\n") <= 14


def test_the_measures_tell_a_bad_page(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><p style='width:2000px'>wide<p style='width:9px;white-space:nowrap'>cut off</p>"
        "<svg id='s' viewBox='0 0 9 9'><text>a</text><text>a</text></svg>"
        "<img src='absent.png'><script>console.error('no'); undefined_name()</script>"
    )
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page, 390)
    found = browser.evaluate(MEASURE)
    assert found["overflow"] > 0 and found["cut"] == ["cut off"]
    assert len(browser.complaints) >= 2 and len(browser.requests) == 2
    with pytest.raises(AssertionError):
        check_plot(found["plots"][0], 390)
