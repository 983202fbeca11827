"""GPTQ itself: columns are rounded one by one, and those that follow make up for the error of each.

Arrays are transposed, `[K, M]`: a column of the weight is contiguous, and so is a step's work. M rows, or
the same rows on several grids, are taken at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.feedback import Feedback
from zq2onnx.numerics.grid import UInt8Array

FloatArray = npt.NDArray[np.floating]

COLUMNS = 128
"""Columns whose feedback from all before them is one matrix product (GPTQ, section 3)."""

STEP = 16
"""Columns of those whose feedback is gathered at once."""


@dataclass(frozen=True, eq=False)
class Grids:
    """The grids of some rows: `scale`, in units of the walk, and `zero`, float `[G, M]`."""

    scale: FloatArray
    zero: FloatArray

    def rows(self, picked: npt.NDArray[np.intp]) -> Grids:
        """The grids of some of the rows."""
        return Grids(self.scale[:, picked], self.zero[:, picked])


@dataclass(frozen=True, eq=False)
class Rounding:
    """Rows after rounding.

    Attributes:
        codes: uint8 `[K, M]`, columns in the feedback's order.
        grids: what they are codes of.
        loss: float `[G, M]`, what each group adds to the row's `e R eᵀ`, in units.
    """

    codes: UInt8Array
    grids: Grids
    loss: FloatArray


def round_columns(
    targets: FloatArray, grids: Grids, inputs: Feedback, group_of: npt.NDArray[np.intp], levels: int
) -> Rounding:
    """Round rows.

    Args:
        targets: `[K, M]`, columns in the feedback's order.
        grids: of the M rows' groups.
        inputs: factored second moment of the weight's input.
        group_of: the group of each column.
        levels: the greatest code.
    """
    return _Walk(targets, grids, inputs, group_of, levels).rounded()


def better(one: Rounding, other: Rounding) -> Rounding:
    """Of each row the rounding with the lesser loss; a tie keeps the first."""
    taken = other.loss.sum(axis=0) < one.loss.sum(axis=0)
    return Rounding(
        np.where(taken, other.codes, one.codes),
        Grids(
            np.where(taken, other.grids.scale, one.grids.scale),
            np.where(taken, other.grids.zero, one.grids.zero),
        ),
        np.where(taken, other.loss, one.loss),
    )


class _Walk:
    """GPTQ itself: a walk over the columns of rows `[K, M]`, with a grid for each of their groups.

    Attributes:
        codes, errors: of the columns that are done, `[K, M]`; errors are `targets - Ŵ`.
    """

    def __init__(
        self,
        targets: FloatArray,
        grids: Grids,
        inputs: Feedback,
        group_of: npt.NDArray[np.intp],
        levels: int,
    ) -> None:
        self.targets, self.grids = targets, grids
        self.factor, self.variance = inputs.factor, inputs.variance
        self.group_of = group_of
        self.levels = levels
        self.codes = np.empty(targets.shape, np.uint8)
        self.errors = np.empty_like(targets)

    def rounded(self) -> Rounding:
        """Take all columns, and sum up what remains of their errors."""
        loss = np.zeros_like(self.grids.scale)
        for first in range(0, len(self.targets), COLUMNS):
            last = min(len(self.targets), first + COLUMNS)
            wanted = self.targets[first:last] + self.factor[:first, first:last].T @ self.errors[:first]
            for step in range(first, last, STEP):
                ahead = wanted[step - first : step - first + STEP]
                ahead += self.factor[first:step, step : step + len(ahead)].T @ self.errors[first:step]
                self._step(step, ahead)
            wanted *= wanted
            wanted *= self.variance[first:last, None]
            for column, part in enumerate(wanted, first):
                loss[self.group_of[column]] += part
        return Rounding(self.codes, self.grids, loss)

    def _step(self, first: int, wanted: FloatArray) -> None:
        """Round some columns one by one; `wanted` becomes what remains of their errors."""
        for column, target in enumerate(wanted, first):
            target += self.factor[first:column, column] @ self.errors[first:column]
            group = self.group_of[column]
            scale, zero = self.grids.scale[group], self.grids.zero[group]
            code = target / scale
            np.rint(code, out=code)
            code += zero
            np.maximum(code, 0, out=code)
            np.minimum(code, self.levels, out=code)
            self.codes[column] = code
            code -= zero
            code *= scale
            np.subtract(self.targets[column], code, out=self.errors[column])
            target -= code
