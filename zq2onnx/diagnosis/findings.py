"""What can be the matter with a layer, and the words for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NAMED = 3
"""Rows or channels that a sentence names at most."""

Indices = npt.NDArray[np.intp]


class Cause(enum.Enum):
    """Why a layer's error is what it is."""

    NOT_FINITE = "not finite"
    DEAD_ROW = "dead row"
    CLIPPED_RANGE = "clipped range"
    WRONG_SCALE = "wrong scale"
    UNRELATED_WEIGHTS = "unrelated weights"
    OUTLIER_CHANNEL = "outlier channel"
    CLIPPED_ACTIVATIONS = "clipped activations"
    FEW_ROWS = "few rows"
    INHERITED = "inherited"
    AMPLIFIED = "amplified"
    NONE = "no single cause"


@dataclass(frozen=True)
class Finding:
    """What is the matter with a layer.

    Attributes:
        layer: the float model's node.
        cause: the likely one.
        sentence: the same in words, with numbers.
        share: of the layer's own error that it explains, by energy, 0 to 1.
        indices: the channels of the input, or the rows (channels of the output), that it names; the worst
            first.
    """

    layer: str
    cause: Cause
    sentence: str
    share: float = 0.0
    indices: tuple[int, ...] = ()


def as_indices(order: Indices) -> tuple[int, ...]:
    """As plain numbers."""
    return tuple(int(index) for index in order)


def named(kind: str, order: Indices) -> str:
    """The worst few by number.

    >>> named("row", np.array([7])), named("row", np.array([7, 3, 1, 2, 9]))
    ('row 7', 'rows 7, 3, 1 and 2 more')
    """
    numbers = [str(index) for index in order]
    if len(numbers) == 1:
        return f"{kind} {numbers[0]}"
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{kind}s {', '.join(numbers[:NAMED])}{more}"


def verb(indices: Indices) -> str:
    """What follows the name of one, or of several."""
    return "is" if len(indices) == 1 else "are"


def percent(share: float) -> str:
    """
    >>> percent(0.714)
    '71%'
    """
    return f"{100 * share:.0f}%"


def number(value: float) -> str:
    """
    >>> number(0.012345), number(139.7)
    ('0.0123', '140')
    """
    return f"{value:.3g}"
