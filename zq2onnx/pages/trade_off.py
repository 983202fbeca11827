"""What a file costs against its size: every cell a point, the Pareto front a line."""

from __future__ import annotations

import dataclasses
import math

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.results import kl_text
from zq2onnx.pages.figure import TIP, Plot, Role, house_style, new_figure
from zq2onnx.pages.inline_svg import to_svg
from zq2onnx.pages.labels import Labels
from zq2onnx.pages.marks import Marks, draw_legend
from zq2onnx.pages.scales import linear_part, scale_axis
from zq2onnx.study.recommendation import Measure, pareto, recommended
from zq2onnx.study.results import CellResult, Study

_HEIGHT = 320.0
_WORDS: dict[Measure, tuple[str, str]] = {
    "gap": ("Perplexity gap against size", "perplexity above the float model's"),
    "kl": ("KL against size", "KL from the float model, nats"),
}


def plot_trade_off(study: Study, measure: Measure, marks: Marks) -> Plot:
    """Draw a study's cells: megabytes across, the measure upwards."""
    heading, axis = _WORDS[measure]
    drawn = [result for result in study.cells if math.isfinite(getattr(result, measure))]
    if len(drawn) < 2:
        return Plot(heading, "", "Fewer than two cells gave a number: there is nothing to compare.")
    front = pareto(dataclasses.replace(study, cells=tuple(drawn)), measure)
    with house_style():
        figure, axes = new_figure(_HEIGHT)
        axes.set_xlabel("MB")
        axes.set_ylabel(axis)
        scale_axis(axes, "x", [result.bytes / 1e6 for result in drawn])
        linear_to = PaperClass.CLASS_1.bound if measure == "gap" else None
        scale_axis(axes, "y", [getattr(result, measure) for result in drawn], linear_to)
        corners = [_place(result, measure) for result in front]
        axes.plot(*zip(*corners, strict=True), color=Role.ACCENT.value, linewidth=5, alpha=0.35, zorder=1.5)
        for result in drawn:
            _draw_point(axes, result, measure, marks)
        draw_legend(figure, marks.scheme_entries(), [*marks.method_entries(), _front_entry()])
        axes.margins(0.06, 0.09)
        figure.draw_without_rendering()  # the layout is settled now
        labels = Labels(axes, [_place(result, measure) for result in drawn], corners)
        if measure == "gap":
            _draw_bounds(axes, labels)
        first = [result for result in recommended(study) if result in drawn]
        for result in [*first, *(each for each in front if each not in first)]:
            labels.beside(*_place(result, measure), marks.brief(result.cell))
        label = f"{heading}: {len(drawn)} cells; the Pareto front goes " + _in_words(front, measure)
        return Plot(
            heading, to_svg(figure, f"{measure}-bytes", label), _caption(study, drawn, linear_part(axes))
        )


def _place(result: CellResult, measure: Measure) -> tuple[float, float]:
    return result.bytes / 1e6, getattr(result, measure)


def _draw_point(axes: Axes, result: CellResult, measure: Measure, marks: Marks) -> None:
    x, y = _place(result, measure)
    cost = f"gap {result.gap:+.3f}, {result.paper_class.value}, KL {kl_text(result.kl)}"
    tip = f"{result.cell.label}: {x:.2f} MB, {cost}"
    style = marks.style(result.cell.scheme, result.cell.method)
    axes.plot([x], [y], linestyle="none", gid=TIP + tip, zorder=3, clip_on=False, **style)


def _draw_bounds(axes: Axes, labels: Labels) -> None:
    """The bounds of the paper's classes, where they are within sight."""
    low, high = axes.get_ylim()
    for member in (PaperClass.CLASS_1, PaperClass.CLASS_2):
        if low < member.bound < high:
            axes.axhline(member.bound, color=Role.MUTED.value, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            labels.along(member.bound, f"{member.value}: up to {member.bound}", color=Role.MUTED.value)


def _front_entry() -> Line2D:
    return Line2D([], [], color=Role.ACCENT.value, linewidth=5, alpha=0.35, label="Pareto front")


def _in_words(front: tuple[CellResult, ...], measure: Measure) -> str:
    first, last = front[0], front[-1]
    ends = [
        f"{each.cell.label} ({each.bytes / 1e6:.2f} MB, {getattr(each, measure):.3g})"
        for each in (first, last)
    ]
    return f"from {ends[0]} to {ends[1]}." if first is not last else f"through one cell, {ends[0]}."


def _caption(study: Study, drawn: list[CellResult], linear_to: float | None) -> str:
    said = (
        "No other file is both smaller and nearer than one on the front."
        f" The float model has {study.bytes / 1e6:.2f} MB."
    )
    if linear_to is not None:
        said += f" The vertical axis is linear up to {linear_to:.2g} and logarithmic beyond."
    if missing := len(study.cells) - len(drawn):
        said += f" Not drawn: {missing} of {len(study.cells)} cells, whose value is not finite."
    return said
