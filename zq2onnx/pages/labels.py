"""Labels in a figure, where they fit without touching a point, another label or the frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

from zq2onnx.pages.figure import Role

SIZE = 9.0
_HEIGHT = 1.25 * SIZE
_GAP = 7.0
_POINT = 5.5  # half the side of the square that a point keeps free

# Where a label's box lies: its nearest corner or edge as a part of its width and height, and the way to it.
_BESIDE_POINT = (
    (0.0, 0.5, 1.0, 0.0),
    (1.0, 0.5, -1.0, 0.0),
    (0.0, 0.0, 0.6, 0.6),
    (1.0, 1.0, -0.6, -0.6),
    (0.0, 1.0, 0.6, -0.6),
    (1.0, 0.0, -0.6, 0.6),
    (0.5, 0.0, 0.0, 1.0),
    (0.5, 1.0, 0.0, -1.0),
)
_FAR_FROM_POINT = tuple(
    (0.5 - 0.5 * math.copysign(across != 0, across), 0.0 if up > 0 else 1.0, far * across, far * up)
    for far in (1.0, 1.5, 2.0, 2.75, 3.5, 4.5)
    for across in (-1.8, 1.8, -0.9, 0.9, 0.0)
    for up in (-3.0 + abs(across), 3.0 - abs(across))
)
_ON_LINE = ((0.0, 0.0, 0.3, 0.2), (0.0, 1.0, 0.3, -0.2))
_ON_LINES_END = ((1.0, 0.0, -0.3, 0.2), (1.0, 1.0, -0.3, -0.2))


class Labels:
    """The labels of a figure under way, and what they keep off.

    Args:
        axes: with their final limits and layout.
        points: all that are drawn, in data coordinates.
        line: corners of a line that labels keep off.
    """

    def __init__(
        self, axes: Axes, points: Iterable[tuple[float, float]], line: Sequence[tuple[float, float]] = ()
    ) -> None:
        self._axes = axes
        self._frame = self._in_units(axes.bbox)
        self._taken = [_around(*self._place(*point), _POINT) for point in points]
        self._taken += _along([self._place(*point) for point in line])

    def beside(self, x: float, y: float, text: str) -> bool:
        """Write a label beside a point, or farther off with a line to it; whether it fitted anywhere."""
        point = self._place(x, y)
        if self._write(text, [(point, way) for way in _BESIDE_POINT]):
            return True
        for way in _FAR_FROM_POINT:
            end = (point[0] + way[2] * _GAP, point[1] + way[3] * _GAP)
            leader = _along([point, end])[2:]
            if not any(box.count_overlaps(self._taken) for box in leader) and self._write(
                text, [(point, way)]
            ):
                self._taken += leader
                across, up = zip((x, y), self._to_data(*end), strict=True)
                self._axes.plot(across, up, color=Role.MUTED.value, linewidth=0.7, zorder=2)
                return True
        return False

    def along(self, y: float, text: str, **properties: Any) -> bool:
        """Write a label at either end of a horizontal line; whether it fitted."""
        level = self._place(self._axes.get_xlim()[0], y)[1]
        places = [((self._frame.x0, level), way) for way in _ON_LINE]
        places += [((self._frame.x1, level), way) for way in _ON_LINES_END]
        return self._write(text, places, **properties)

    def _write(
        self, text: str, places: Sequence[tuple[tuple[float, float], tuple[float, ...]]], **properties: Any
    ) -> bool:
        width = text_width(text, SIZE)
        for (x, y), (part_x, part_y, way_x, way_y) in places:
            left, bottom = x + way_x * _GAP - part_x * width, y + way_y * _GAP - part_y * _HEIGHT
            box = Bbox.from_bounds(left, bottom, width, _HEIGHT)
            if _holds(self._frame, box) and not box.count_overlaps(self._taken):
                look = {"fontsize": SIZE, "va": "bottom", "ha": "left", "in_layout": False, "zorder": 4}
                self._axes.text(*self._to_data(left, bottom), text, **{**look, **properties})
                self._taken.append(box)
                return True
        return False

    def _to_data(self, across: float, up: float) -> tuple[float, float]:
        x, y = self._axes.transData.inverted().transform((across / self._scale, up / self._scale))
        return float(x), float(y)

    @property
    def _scale(self) -> float:
        """Units of a figure, in which text is measured, per pixel."""
        return 72.0 / self._axes.get_figure(root=True).dpi  # type: ignore[union-attr]

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across, up = self._axes.transData.transform((x, y))
        return float(across) * self._scale, float(up) * self._scale

    def _in_units(self, box: Any) -> Bbox:
        return Bbox(box.get_points() * self._scale)


def text_width(text: str, size: float) -> float:
    """How wide a line of text is, in a figure's units, in Matplotlib's own font: others are narrower."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def _holds(frame: Bbox, box: Bbox) -> bool:
    return bool(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1)


def _around(x: float, y: float, margin: float) -> Bbox:
    return Bbox.from_extents(x - margin, y - margin, x + margin, y + margin)


def _along(corners: Sequence[tuple[float, float]]) -> list[Bbox]:
    """Small boxes on a line."""
    boxes = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) // 3))
        for step in range(1, steps):
            part = step / steps
            boxes.append(_around(x0 + part * (x1 - x0), y0 + part * (y1 - y0), 1.5))
    return boxes
