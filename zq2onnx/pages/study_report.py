"""The report of a study, as one HTML page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.pages.layer_costs import costs_by_kind, plot_costs
from zq2onnx.pages.layer_errors import plot_layer_errors
from zq2onnx.pages.marks import Marks
from zq2onnx.pages.page import render_template
from zq2onnx.pages.sweeps import plot_group_sizes, plot_ranks
from zq2onnx.pages.trade_off import plot_trade_off
from zq2onnx.study.orderings import findings
from zq2onnx.study.recommendation import commands, pareto, sentences
from zq2onnx.study.results import CellResult, Study
from zq2onnx.study.table import Row, table, text_names


def render(study: Study) -> str:
    """The report as a page that needs nothing but itself.

    Colours, text and the answer to a narrow screen are the style sheet's; no script is needed.

    Args:
        study: finished; failed cells, gaps that are not finite and grids of one cell are shown as such.
    """
    laid_out = table(study)
    chosen = commands(study)
    return render_template(
        "study.html.j2",
        study=study,
        schemes=laid_out.schemes,
        methods=[(method, list(rows)) for method, rows in itertools.groupby(laid_out.rows, _method)],
        texts=text_names(study),
        sentences=sentences(study),
        findings=findings(study),
        chosen=chosen,
        chosen_cells={result.cell for result, _ in chosen},
        front={result.cell for result in pareto(study)},
        by_size=sorted(study.cells, key=lambda result: (result.bytes, result.kl)),
        classes=list(PaperClass),
        **_plots(study),
    )


def _plots(study: Study) -> dict[str, Any]:
    """The figures, by section of the page, each with what its tables tell."""
    marks = Marks.of(study)
    return {
        "plots": [
            plot_trade_off(study, "gap", marks),
            plot_trade_off(study, "kl", marks),
            plot_ranks(study, marks),
            plot_group_sizes(study, marks),
        ],
        "errors": [
            (plot_layer_errors(result, marks, index), result)
            for index, result in enumerate(best_by_scheme(study, marks.schemes))
        ],
        "costs": [
            (plot_costs(each, index), each, costs_by_kind(each))
            for index, each in enumerate(study.sensitivity)
        ],
    }


def best_by_scheme(study: Study, schemes: Sequence[str]) -> list[CellResult]:
    """Of each scheme the cell that diverges least, of those that told their layers' errors."""
    told = [result for result in study.cells if result.layers]
    found = ([result for result in told if result.cell.scheme == scheme] for scheme in schemes)
    return [min(cells, key=lambda result: _rank(result.kl)) for cells in found if cells]


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _method(row: Row) -> str:
    return row.method
