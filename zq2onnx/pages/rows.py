"""Layers one below the other, each a pale bar with a mark at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from zq2onnx.pages.figure import TIP, Role
from zq2onnx.pages.labels import text_width
from zq2onnx.pages.scales import scale_axis

_ROW, _LEAST_ROW, _TALLEST = 13.0, 3.0, 900.0
_NAME_SIZE, _NAME_SPACE, _NAME_WIDTH = 9.0, 11.0, 130.0
_DOT = 5.0
_MOST_TIPS = 96


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        node: its name.
        value: where its bar ends; finite.
        second: what is marked besides; NaN for nothing.
        tip: what is shown when it is pointed at.
        style: a `Line2D`'s properties for the mark at the bar's end.
    """

    node: str
    value: float
    second: float
    tip: str
    style: dict[str, Any]


def height_of(rows: int) -> float:
    """How tall a figure of so many rows is, with its axis and legend: never endless."""
    return 84 + rows * _pitch(rows)


def draw_rows(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw them from the top down, on a scale that shows them all."""
    pitch = _pitch(len(rows))
    _scale(axes, [value for row in rows for value in (row.value, row.second) if math.isfinite(value)])
    start = axes.get_xlim()[0] if axes.get_xscale() == "log" else 0.0
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.style["color"], []).append(place)
    for colour, where in places.items():
        across = [edge for place in where for edge in (start, rows[place].value, math.nan)]
        down = [place for place in where for _ in range(3)]
        axes.plot(
            across, down, color=colour, alpha=0.4, linewidth=0.5 * pitch, solid_capstyle="butt", zorder=1.5
        )
        _draw_marks(axes, rows, where, pitch)
    seconds = [place for place, row in enumerate(rows) if math.isfinite(row.second)]
    ticks = _tick_style(min(9.0, 0.8 * pitch))
    axes.plot([rows[place].second for place in seconds], seconds, zorder=2.5, clip_on=False, **ticks)
    step = math.ceil(_NAME_SPACE / pitch)
    names = short_names([row.node for row in rows])[::step]
    axes.set_yticks(range(0, len(rows), step), names, fontsize=_NAME_SIZE)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def second_entry(label: str) -> Line2D:
    """The entry of a legend for what is marked besides."""
    return Line2D([], [], label=label, **_tick_style(9.0))


def short_names(nodes: Sequence[str]) -> list[str]:
    """Names without what they all begin with, and no longer than a figure has room for.

    >>> short_names(["model.layers.0.fc1", "model.layers.1.fc1"])
    ['0.fc1', '1.fc1']
    >>> short_names(["model.layers.0.fc1"])
    ['model.layers.0.fc1']
    """
    parts = [node.split(".") for node in nodes]
    common = 0
    while len(parts) > 1 and all(
        len(each) > common + 1 and each[common] == parts[0][common] for each in parts
    ):
        common += 1
    return [_shorten(".".join(each[common:])) for each in parts]


def _shorten(name: str) -> str:
    """Cut off a name's beginning until it fits."""
    if text_width(name, _NAME_SIZE) <= _NAME_WIDTH:
        return name
    start = next(i for i in range(len(name) + 1) if text_width("…" + name[i:], _NAME_SIZE) <= _NAME_WIDTH)
    return "…" + name[start:]


def _draw_marks(axes: Axes, rows: Sequence[Row], places: Sequence[int], pitch: float) -> None:
    """The marks of one style; each answers when pointed at, unless they are too many for a page's size."""
    look = {
        "markersize": min(_DOT, 0.6 * pitch),
        "markeredgewidth": 1.0,
        "linestyle": "none",
        "clip_on": False,
    }
    style = {**rows[places[0]].style, **look, "zorder": 3.0}
    if len(rows) > _MOST_TIPS:
        axes.plot([rows[place].value for place in places], places, **style)
        return
    for place in places:
        axes.plot([rows[place].value], [place], gid=f"{TIP}{rows[place].node}: {rows[place].tip}", **style)


def _pitch(rows: int) -> float:
    return min(_ROW, max(_TALLEST / rows, _LEAST_ROW))


def _tick_style(size: float) -> dict[str, Any]:
    colour = Role.INK.value
    return {"marker": "|", "markersize": size, "markeredgewidth": 1.6, "color": colour, "linestyle": "none"}


def _scale(axes: Axes, values: list[float]) -> None:
    """Bars begin at zero, or at the left of a logarithmic axis."""
    least, greatest = min(values), max(values)
    if not scale_axis(axes, "x", values):
        axes.set_xlim(min(0.0, least * 1.05), (max(greatest, 0.0) or 1.0) * 1.05)
    elif axes.get_xscale() == "log":
        axes.set_xlim(least / 1.6, greatest * 1.3)
    else:
        axes.set_xlim(min(0.0, least * 1.3), greatest * 1.3)
