"""Finds where the error jumps, and which layers add more than is usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FACTOR = 4.0
"""How many times more than before, or than usual, is a jump. In models that were converted well, from 2 to 8
bits, no layer reaches twice the largest error before it, nor 3 times the lower quartile of own errors."""

FLOOR = 0.02
"""Relative errors below this are nothing to look for a cause of."""


@dataclass(frozen=True)
class LayerError:
    """The errors of one layer, relative to the float layer's output, as norms over all tokens.

    Attributes:
        name: the float model's node.
        operator: what the quantized model computes it with.
        block: index of the transformer block; None of what is in none.
        quantized: whether its weight is stored as codes.
        accumulated: `‖y_q - y_f‖ / ‖y_f‖`, each model reading its own activations. Infinite where there is a
            difference and the float output is all zeros.
        own: the same where the quantized layer reads the float layer's input; None where it cannot be run by
            itself, which `note` explains.
        inherited: `‖x_q - x_f‖ / ‖x_f‖` of its input; None of an embedding, or where it is not known.
        broken: numbers of its output that are NaN or infinite, and not so in the float model.
        note: why `own` is missing; else "".
    """

    name: str
    operator: str
    block: int | None
    quantized: bool
    accumulated: float
    own: float | None
    inherited: float | None
    broken: int = 0
    note: str = ""

    @property
    def snr_db(self) -> float:
        """Signal to noise of the accumulated error, in decibels.

        >>> round(LayerError("", "", None, True, 0.1, None, None).snr_db, 6)
        20.0
        """
        if self.accumulated > 0:
            return -20 * math.log10(self.accumulated)
        return math.inf if self.accumulated == 0 else math.nan


@dataclass(frozen=True)
class Jump:
    """Where the error jumps for the first time.

    Attributes:
        layer: the float model's node.
        block: its transformer block.
        before: the largest accumulated error before it; where its own error alone is what jumps, that of
            its input.
        after: its own accumulated error.
    """

    layer: str
    block: int | None
    before: float
    after: float


def usual_error(errors: Sequence[LayerError]) -> float:
    """The lower quartile of the own errors of layers that were changed: what one that nothing ails adds.

    Not the median, for half of a transformer's layers may share one fault.
    """
    known = [each.own for each in errors if each.own is not None and (each.quantized or each.own > 0)]
    known = [own for own in known if math.isfinite(own)]
    return float(np.quantile(known, 0.25)) if known else 0.0


def find_jump(errors: Sequence[LayerError], usual: float) -> tuple[int, Jump] | None:
    """The first layer whose error is more than those before it lead to expect.

    Its accumulated error exceeds `FACTOR` times the largest before it (at least the usual own error), or
    its own error exceeds `FACTOR` times the usual one and is more than its input brought along; or it is
    the first that is not finite.

    Args:
        errors: in the models' order.
        usual: what `usual_error` returned.

    Returns:
        Its index and what happens there; None where the error never jumps.
    """
    largest = 0.0
    for index, each in enumerate(errors):
        inherited = each.inherited or 0.0
        if each.broken or each.accumulated > max(FLOOR, FACTOR * max(largest, usual)):
            return index, Jump(each.name, each.block, largest, each.accumulated)
        if stands_out(each, usual) and (each.own or 0.0) > inherited:
            return index, Jump(each.name, each.block, min(inherited, each.accumulated), each.accumulated)
        if math.isfinite(each.accumulated):
            largest = max(largest, each.accumulated)
    return None


def stands_out(error: LayerError, usual: float) -> bool:
    """Whether a layer's own error is far above the usual one."""
    return error.own is not None and not error.own <= max(FLOOR, FACTOR * usual)
