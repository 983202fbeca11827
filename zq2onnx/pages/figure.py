"""What every figure has in common: its size, its style, and colours that stand for roles.

In the SVG each such colour becomes a CSS custom property (`VARIABLES`), so that one drawing serves the
light theme, the dark one and print.
"""

from __future__ import annotations

import contextlib
import enum
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 380.0
"""Width of every figure, in its own units: on a phone one is 0.9 pixels, on a desktop 1.4."""
TIP = "tip:"
"""An artist whose `gid` starts so shows the rest of it when pointed at."""
SERIES = 8
"""How many colours the page's style sheet has for data, `--series-1` and on."""

_UNITS_PER_INCH = 72.0


class Role(enum.Enum):
    """What a colour is for; the value is what Matplotlib draws with, met nowhere else."""

    INK = "#0a0b01"
    MUTED = "#0a0b02"
    GRID = "#0a0b03"
    SURFACE = "#0a0b04"
    ACCENT = "#0a0b05"

    @property
    def variable(self) -> str:
        """The custom property of the page's style sheet.

        >>> Role.INK.variable
        'var(--ink)'
        """
        return f"var(--{self.name.lower()})"


def series_colour(index: int) -> str:
    """The colour that stands for `--series-1` and on; it repeats after `SERIES`.

    >>> series_colour(0), series_colour(9)
    ('#0a0c01', '#0a0c02')
    """
    return f"#0a0c{index % SERIES + 1:02x}"


VARIABLES = {role.value: role.variable for role in Role} | {
    series_colour(index): f"var(--series-{index + 1})" for index in range(SERIES)
}
"""The custom property for each colour that is drawn with."""

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": Role.MUTED.value,
    "axes.facecolor": "none",
    "axes.labelcolor": Role.INK.value,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 11.0,
    "grid.color": Role.GRID.value,
    "legend.fontsize": 10.0,
    "legend.frameon": False,
    "legend.labelcolor": Role.INK.value,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": Role.INK.value,
    "xtick.color": Role.MUTED.value,
    "xtick.labelcolor": Role.INK.value,
    "xtick.labelsize": 10.0,
    "xtick.minor.size": 0.0,
    "ytick.color": Role.MUTED.value,
    "ytick.labelcolor": Role.INK.value,
    "ytick.labelsize": 10.0,
    "ytick.minor.size": 0.0,
}


@dataclass(frozen=True)
class Plot:
    """A figure in a page; `svg` is empty where there is nothing to draw, and `caption` says why."""

    heading: str
    svg: str
    caption: str


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw with Matplotlib's defaults and our own, whatever the user's settings; both as before after it."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's own font may have it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of `WIDTH` by `height` units with one pair of axes, to be drawn on in `house_style`."""
    figure = Figure(figsize=(WIDTH / _UNITS_PER_INCH, height / _UNITS_PER_INCH), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()
