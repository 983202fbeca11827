"""Axes for measures: linear where that shows all, logarithmic where the range asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

WIDE = 20.0
"""A measure whose greatest value is so many times its least is shown on a logarithmic axis."""
_SMALLEST_PART = 1e-4  # of the greatest value: what is less is drawn linearly, next to zero


def scale_axis(
    axes: Axes, which: Literal["x", "y"], values: Iterable[float], linear_to: float | None = None
) -> bool:
    """Choose an axis' scale for what is drawn on it, and label its ticks in plain numbers.

    Args:
        axes: whose axis.
        which: of the two.
        values: finite, and not empty.
        linear_to: the scale is linear up to here, if it is logarithmic beyond and values are not all greater.

    Returns:
        Whether it is logarithmic (beyond `linear_to`).
    """
    known = sorted(values)
    least, greatest = known[0], max(abs(known[0]), abs(known[-1]))
    axis, set_scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
    if linear_to is not None and least <= linear_to < greatest / WIDE:
        set_scale("symlog", linthresh=linear_to)
    elif linear_to is None and least <= 0 and greatest > 0 and _spread(known) > WIDE:
        set_scale("symlog", linthresh=max(greatest * _SMALLEST_PART, _least_positive(known)))
    elif least > 0 and greatest / least > WIDE:
        set_scale("log")
    else:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(_plain))
        return False
    decades = math.log10(greatest / _least_positive(known))
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0), numticks=9))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())
    return True


def linear_part(axes: Axes) -> float | None:
    """Up to where a vertical axis is linear that is logarithmic beyond; None where it is only one of them."""
    transform = axes.yaxis.get_transform()
    return transform.linthresh if isinstance(transform, SymmetricalLogTransform) else None


def _least_positive(values: Iterable[float]) -> float:
    return min(abs(value) for value in values if value)


def _spread(values: list[float]) -> float:
    """How many times the least magnitude the greatest is; zero, if there is one, is not counted."""
    return max(map(abs, values)) / _least_positive(values)


def _plain(value: float, _position: int | None = None) -> str:
    """A tick's label.

    >>> _plain(0.001), _plain(2.5), _plain(20000.0), _plain(1e-05)
    ('0.001', '2.5', '20000', '1e−5')
    """
    text = f"{value:.5g}" if abs(value) < 1e6 else f"{value:.3g}"
    number, exponent, power = text.partition("e")
    return (number + (exponent + str(int(power)) if power else "")).replace("-", "−")
