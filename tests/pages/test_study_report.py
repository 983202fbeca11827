"""The study's page: what it says, and studies of which little can be said."""

from __future__ import annotations

import dataclasses
import math
import re

import matplotlib
import pytest

from tests.pages.example import cell_result, study, with_costs
from tests.pages.markup import check_page
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.pages.marks import Marks
from zq2onnx.pages.study_report import best_by_scheme, render
from zq2onnx.pages.trade_off import plot_trade_off
from zq2onnx.planning.costs import Sensitivity
from zq2onnx.study.orderings import findings
from zq2onnx.study.recommendation import commands, sentences
from zq2onnx.study.results import Cell, CellFailure, LayerError, Study

FULL = study()


def change(**changes: object) -> Study:
    """A study of two schemes and few layers, every cell of which is changed alike."""
    small = with_costs(study(("rtn",), ("w4a16", "w2a16")), layers=FULL.cells[0].layers[:3])
    return with_costs(dataclasses.replace(small, sensitivity=()), **changes)


@pytest.fixture(scope="module")
def page() -> str:
    return render(FULL)


def text_of(page: str) -> str:
    """What is read, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)).replace(
        "&#39;", "'"
    )


def test_is_whole_and_needs_nothing_else(page: str) -> None:
    markup = check_page(page)
    assert len(markup.all("svg")) == 4 + 3 + 2
    assert len(page) < 400_000


def test_is_the_same_each_time_and_leaves_no_settings(page: str) -> None:
    before = dict(matplotlib.rcParams)
    assert render(FULL) == page
    assert dict(matplotlib.rcParams) == before


def test_says_what_was_measured_and_recommends(page: str) -> None:
    said = text_of(page)
    for sentence in sentences(FULL):
        assert sentence in said
    for fact in (
        "68.40 MB",
        "256 tokens",
        "the first 40 of each text",
        "20,400",
        "calibration.txt",
        "24 measured",
    ):
        assert fact in said
    for finding in findings(FULL):
        assert finding in said
    assert "--scheme w4a16" in said and "--group-size 64" in said


def test_table_has_a_row_per_choice_and_a_column_per_scheme(page: str) -> None:
    table = page[page.index('class="grid-table"') :].partition("</table>")[0]
    assert re.findall(r'<th scope="rowgroup" colspan="4">(\w+)</th>', table) == ["rtn", "gptq"]
    rows = [text_of(row) for row in re.findall(r"<tr>.*?</tr>", table, flags=re.S)]
    assert rows[0].split() == ["groups,", "rank", "w4a16", "w3a16", "w2a16"]
    assert [row.partition(" +")[0].strip() for row in rows[2:6]] == [
        *("row, rank 0", "row, rank 8", "g64, rank 0", "g64, rank 8")
    ]
    for row, result in zip(
        rows[2:6], (cell for cell in FULL.cells if cell.cell.scheme == "w3a16"), strict=False
    ):
        assert f"{result.bytes / 1e6:.2f} MB" in row
    for result in FULL.cells:
        number = f"{result.gap:+.3f}".replace("-", "−")
        cell = re.search(rf'<td class="([^"]*)"><span class="gap">{re.escape(number)}</span>.*?</td>', table)
        assert cell is not None, number
        assert cell[1].split()[0] == result.paper_class.value.lower()
        said = text_of(cell[0])
        assert result.paper_class.value in said
        assert f"KL {result.kl:.5f}" in said and f"{result.bytes / 1e6:.2f} MB" in said
    assert table.count(" chosen") == 2


def test_every_point_tells_its_numbers(page: str) -> None:
    figure = page[page.index('id="gap-bytes"') :].partition("</svg>")[0]
    for result in FULL.cells:
        assert figure.count(f"<title>{result.cell.label}: {result.bytes / 1e6:.2f} MB") == 1


def test_colours_are_the_themes_own(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    for drawing in drawings:
        assert re.findall(r"#[0-9a-f]{6}", drawing) == []
        assert "var(--ink)" in drawing and "var(--series-" in drawing
        assert "font-family" not in drawing
    defined = set(re.findall(r"(--[\w-]+):", page))
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= defined


def test_correlations_and_sums_by_kind_are_told(page: str) -> None:
    said = text_of(page)
    assert "Spearman correlation of 0.96" in said and "ranks them to 0.48" in said
    for sensitivity in FULL.sensitivity:
        for total in sensitivity.by_kind().values():
            assert f"{total:.5f}" in said


def test_failed_cells_are_shown_with_their_reason() -> None:
    failure = CellFailure(Cell("zq-local", "w2a16", "32", 0), "no gradients <for> this model")
    page = render(dataclasses.replace(change(), failures=(failure,), warnings=("It is a warning.",)))
    check_page(page)
    assert "8 measured, 1 failed" in text_of(page) and "Note: It is a warning." in text_of(page)
    assert page.count("no gradients &lt;for&gt; this model") == 2
    assert "<for>" not in page


def test_markup_in_names_stays_text() -> None:
    hostile = '<script>alert("1")</script>&$x_1$\x01'
    layers = tuple(LayerError(f"{hostile}.{index}", 0.1, 0.2) for index in range(3))
    page = render(dataclasses.replace(change(layers=layers), model=f"{hostile}.onnx", warnings=(hostile,)))
    check_page(page)
    assert "alert(" in page and "<script" not in page


ODD = {
    "no cell": dataclasses.replace(FULL, cells=(), sensitivity=()),
    "one cell": dataclasses.replace(study(("rtn",), ("w4a16",), ("64",), (8,)), sensitivity=()),
    "all failed": dataclasses.replace(
        FULL,
        cells=(),
        sensitivity=(),
        failures=tuple(CellFailure(each.cell, "no memory") for each in FULL.cells),
    ),
    "equal": change(gap=0.0, kl=0.0, bytes=1_000_000),
    "negative": change(gap=-0.25, kl=0.001),
    "infinite": change(gap=math.inf, kl=math.inf, mean=math.inf),
    "no number": change(gap=math.nan, kl=math.nan),
    "no layers": change(layers=()),
    "layers of no number": change(
        layers=(LayerError("a", math.nan, math.nan), LayerError("b", 0.0, math.inf))
    ),
    "huge": change(gap=3e12, kl=40.0, mean=3e12),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_studies_make_a_page(name: str) -> None:
    check_page(render(ODD[name]))


def test_what_has_nothing_to_say_is_left_out_with_a_sentence() -> None:
    page = render(ODD["one cell"])
    assert 'id="gap-bytes"' not in page and 'id="rank-kl"' not in page and 'id="group-kl"' not in page
    said = text_of(page)
    assert "Every cell has the same rank: there is nothing to compare." in said
    assert "Every cell has the same group size: there is nothing to compare." in said
    assert "Fewer than two cells gave a number" in said
    assert "Sensitivity" not in said
    assert "nothing to recommend" in text_of(render(ODD["no cell"]))


def test_what_is_recommended_is_named_though_it_be_off_the_front() -> None:
    nearest = cell_result(Cell("gptq", "w4a16", "64", 0), 0.05, 0.001)
    lucky = cell_result(Cell("rtn", "w4a16", "64", 0), -0.02, 0.01)
    small = cell_result(Cell("rtn", "w2a16", "64", 0), 30.0, 1.5)
    made = dataclasses.replace(FULL, cells=(nearest, lucky, small))
    assert [result for result, _ in commands(made)] == [nearest]
    svg = plot_trade_off(made, "gap", Marks.of(made)).svg
    assert ">w4a16 gptq</text>" in svg


def test_cells_without_a_finite_value_are_counted_not_drawn() -> None:
    broken = cell_result(Cell("rtn", "w2a16", "32", 0), math.inf, math.nan)
    small = change()
    page = render(dataclasses.replace(small, cells=(*small.cells, broken)))
    check_page(page)
    assert text_of(page).count("Not drawn: 1 of 9 cells") == 2
    assert "∞" in page and PaperClass.of(math.inf).value in page


def test_without_gradients_the_estimate_is_the_weaker_one() -> None:
    layers = tuple(dataclasses.replace(layer, kl=None, estimate=None) for layer in FULL.sensitivity[0].layers)
    page = render(dataclasses.replace(change(), sensitivity=(Sensitivity("w3a16", layers, None, None),)))
    check_page(page)
    assert "only the weaker estimate tr(E R Eᵀ) is known" in text_of(page)
    assert "By kind of layer" not in page


def test_many_layers_make_a_page_of_bounded_size_and_height() -> None:
    layers = tuple(LayerError(f"layers.{index}.proj", 0.1 + index / 900, 0.2) for index in range(600))
    page = render(dataclasses.replace(with_costs(FULL, layers=layers), sensitivity=()))
    check_page(page)
    heights = [float(height) for height in re.findall(r'viewBox="0 0 380 ([\d.]+)"', page)]
    assert max(heights) < 2000
    assert len(page) < 600_000


def test_layers_are_those_of_the_scheme_s_nearest_cell() -> None:
    for result in best_by_scheme(FULL, ("w4a16", "w3a16", "w2a16")):
        rivals = [each.kl for each in FULL.cells if each.cell.scheme == result.cell.scheme]
        assert result.kl == min(rivals)
