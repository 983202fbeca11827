"""Each layer's relative error in one cell of the grid."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.lines import Line2D

from zq2onnx.pages.figure import Plot, house_style, new_figure
from zq2onnx.pages.inline_svg import to_svg
from zq2onnx.pages.marks import Marks, draw_legend
from zq2onnx.pages.rows import Row, draw_rows, height_of, second_entry
from zq2onnx.study.results import CellResult, LayerError


def plot_layer_errors(result: CellResult, marks: Marks, index: int) -> Plot:
    """Draw each layer's error, and beside it what it is without the low-rank branch, if there is one.

    Args:
        result: whose layers.
        marks: how the study's cells look.
        index: which of the page's figures of this kind it is: ids are distinct in a page.
    """
    heading = f"Error by layer: {result.cell.label}"
    layers = [layer for layer in result.layers if math.isfinite(layer.error)]
    if not layers:
        return Plot(heading, "", "The conversion told no layer's error.")
    branch = result.cell.lorc_rank > 0
    style = marks.style(result.cell.scheme, result.cell.method)
    rows = [_row(layer, branch, style) for layer in layers]
    worst = max(layers, key=lambda layer: layer.error)
    median = statistics.median(layer.error for layer in layers)
    caption = f"The greatest is {worst.error:.3g}, of {worst.node}; the median {median:.3g}."
    with house_style():
        figure, axes = new_figure(height_of(len(rows)))
        axes.set_xlabel("relative error")
        draw_rows(axes, rows)
        if branch:
            entry = Line2D([], [], linestyle="none", label=f"rank {result.cell.lorc_rank}", **style)
            draw_legend(figure, [entry, second_entry("without the branch")])
        label = f"{heading}, a bar for each of {len(rows)} layers. {caption}"
        return Plot(heading, to_svg(figure, f"errors-{index}", label), caption)


def _row(layer: LayerError, branch: bool, style: dict[str, Any]) -> Row:
    if not branch:
        return Row(layer.node, layer.error, math.nan, f"{layer.error:.4g}", style)
    tip = f"{layer.error:.4g}, {layer.error_without_lorc:.4g} without the branch"
    return Row(layer.node, layer.error, layer.error_without_lorc, tip, style)
