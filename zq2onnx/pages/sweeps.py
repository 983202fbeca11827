"""KL against one choice at a time: the rank of the low-rank branch, or the size of a group."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zq2onnx.evaluation.results import kl_text
from zq2onnx.pages.figure import TIP, Plot, house_style, new_figure
from zq2onnx.pages.inline_svg import to_svg
from zq2onnx.pages.marks import Marks, dash_entries, dashes, distinct, draw_legend
from zq2onnx.pages.scales import scale_axis
from zq2onnx.study.results import Cell, CellResult, Study
from zq2onnx.study.table import width

_HEIGHT = 320.0


@dataclass(frozen=True)
class _Sweep:
    """What goes across, and what tells lines of one scheme and method apart."""

    name: str
    heading: str
    axis: str
    noun: str
    choice: Callable[[Cell], str]
    other: Callable[[Cell], str]


def _rank(cell: Cell) -> str:
    return f"rank {cell.lorc_rank}"


def _group(cell: Cell) -> str:
    return "whole row" if cell.group_size == "row" else f"group {cell.group_size}"


_RANK = _Sweep(
    name="rank-kl",
    heading="LoRC rank against KL",
    axis="rank of the low-rank branch (LoRC)",
    noun="rank",
    choice=lambda cell: str(cell.lorc_rank),
    other=_group,
)
_GROUP = _Sweep(
    name="group-kl",
    heading="Block size against KL",
    axis="weights that share a scale (group size)",
    noun="group size",
    choice=lambda cell: cell.group_size,
    other=_rank,
)


def plot_ranks(study: Study, marks: Marks) -> Plot:
    """Draw a line for each scheme, method and group size over the ranks."""
    return _plot(_RANK, study, marks)


def plot_group_sizes(study: Study, marks: Marks) -> Plot:
    """Draw a line for each scheme, method and rank over the group sizes, whole rows last."""
    return _plot(_GROUP, study, marks)


def _plot(sweep: _Sweep, study: Study, marks: Marks) -> Plot:
    drawn = [result for result in study.cells if math.isfinite(result.kl)]
    choices = sorted({sweep.choice(result.cell) for result in drawn}, key=width)
    if len(choices) < 2:
        said = f"Every cell has the same {sweep.noun}: there is nothing to compare."
        said = said if drawn else "No cell gave a number."
        return Plot(sweep.heading, "", said)
    others = distinct(
        sweep.other(result.cell) for result in sorted(drawn, key=lambda each: _sort_key(each.cell))
    )
    with house_style():
        figure, axes = new_figure(_HEIGHT)
        axes.set_xlabel(sweep.axis)
        axes.set_ylabel("KL from the float model, nats")
        scale_axis(axes, "y", [result.kl for result in drawn])
        lines = _lines(drawn, sweep.other)
        for (scheme, method, other), line in lines.items():
            line = sorted(line, key=lambda result: width(sweep.choice(result.cell)))
            style = {
                **marks.style(scheme, method),
                "linestyle": dashes(others.index(other)),
                "linewidth": 1.3,
            }
            places = [choices.index(sweep.choice(result.cell)) for result in line]
            axes.plot(places, [result.kl for result in line], zorder=2.5, **{**style, "marker": "none"})
            for place, result in zip(places, line, strict=True):
                tip = f"{TIP}{result.cell.label}: KL {kl_text(result.kl)}"
                axes.plot([place], [result.kl], gid=tip, zorder=3, clip_on=False, **style)
        axes.set_xticks(range(len(choices)), choices)
        axes.margins(0.08, 0.06)
        draw_legend(figure, marks.scheme_entries(), marks.method_entries(), dash_entries(others))
        label = f"{sweep.heading}, {len(lines)} lines. {_change(sweep, list(lines.values()), choices)}"
        return Plot(
            sweep.heading, to_svg(figure, sweep.name, label), _change(sweep, list(lines.values()), choices)
        )


def _lines(
    results: Sequence[CellResult], other: Callable[[Cell], str]
) -> dict[tuple[str, str, str], list[CellResult]]:
    """Results that make a line together, by scheme, method and what else differs."""
    lines: dict[tuple[str, str, str], list[CellResult]] = {}
    for result in results:
        lines.setdefault((result.cell.scheme, result.cell.method, other(result.cell)), []).append(result)
    return lines


def _sort_key(cell: Cell) -> tuple[float, int]:
    return width(cell.group_size), cell.lorc_rank


def _change(sweep: _Sweep, lines: list[list[CellResult]], choices: list[str]) -> str:
    """How KL changes from the first choice to the last, over the lines that have both."""
    first, last = choices[0], choices[-1]
    ratios = []
    for line in lines:
        ends = {sweep.choice(result.cell): result.kl for result in line}
        if ends.get(first, 0) > 0 and last in ends:
            ratios.append(ends[last] / ends[first])
    if not ratios:
        return "No line has both ends."
    middle = statistics.median(ratios)
    return (
        f"From {sweep.noun} {first} to {last}, KL is multiplied by {middle:.2f} in the median line"
        f" ({min(ratios):.2f} to {max(ratios):.2f})."
    )
