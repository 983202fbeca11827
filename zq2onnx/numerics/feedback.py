"""How the error of one column is made up for by those that follow: the factor behind GPTQ.

With `R = E[x xᵀ]` (damped) and `R = U D Uᵀ`, `U` upper triangular with a unit diagonal, the output
error of a row of errors `e` is `e R eᵀ = Σ_k D_k (e U)_k²`. Taking the columns in order, the best code
of column k is the nearest to `w_k + Σ_{j<k} e_j U_jk`: what remains is `(e U)_k`, and nothing done
before has to be changed. These are GPTQ's codes (Frantar et al. 2022, whose factor of `R⁻¹` is the
inverse of this one; Chee et al. 2023, theorem 6, calls it LDLQ) without an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DAMPING = 0.01
"""Part of the mean diagonal that is added to the diagonal (GPTQ, section 3)."""

DAMPINGS = (DAMPING, 0.1, 1.0)
"""What is tried where the factorization fails."""

OUTPUT_DAMPING = 0.05
"""The same of the gradients' second moment: fewer tokens than directions stand behind it."""

WIDEST_DOUBLE = 8192
"""Channels up to which the factorization is in float64."""

BLOCK = 512
"""Columns that are factored at once."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """The factor of a damped second moment, its columns in the order in which they are taken.

    Attributes:
        order: int64 `[K]`, the channel that each column is.
        factor: `U`, float `[K, K]`, upper triangular with a unit diagonal.
        variance: `D`, float `[K]`, in units of the moment's mean diagonal: what a squared error of each
            column weighs.
        damping: what was added to the diagonal, as a part of its mean.
    """

    order: npt.NDArray[np.intp]
    factor: npt.NDArray[np.floating]
    variance: npt.NDArray[np.floating]
    damping: float


def feedback(
    second: npt.NDArray[np.floating],
    damping: float | None = None,
    ordered: bool = True,
    dtype: npt.DTypeLike = np.float32,
) -> Feedback | None:
    """Factor a second moment.

    Args:
        second: `R`, `[K, K]`, symmetric. Channels that are always zero (*dead*) are apart from the others:
            their codes are those nearest to their weights, and they weigh what the damping adds.
        damping: None tries `DAMPINGS`.
        ordered: take the channels of the greatest variance first (activation order).
        dtype: of the result.

    Returns:
        None where no damping makes it positive definite, or where it is not finite.
    """
    diagonal = np.diagonal(second).astype(np.float64)
    if not np.isfinite(diagonal).all():
        return None
    order = np.argsort(-diagonal, kind="stable") if ordered else np.arange(len(second))
    unit = float(np.maximum(diagonal, 0).mean()) or 1.0
    for part in DAMPINGS if damping is None else (damping,):
        # Seen from the end, so that a lower triangular factor becomes an upper one.
        matrix = _taken(second, order[::-1])
        matrix /= unit
        matrix[np.diag_indices_from(matrix)] += part
        if _factorize(matrix):
            pivots = np.diagonal(matrix).astype(np.float64)
            matrix /= np.diagonal(matrix).copy()
            factor = np.ascontiguousarray(matrix[::-1, ::-1], dtype)
            return Feedback(order, factor, (pivots[::-1] ** 2).astype(dtype), part)
    return None


def _taken(second: npt.NDArray[np.floating], order: npt.NDArray[np.intp]) -> npt.NDArray[np.floating]:
    """The moment with its channels in an order, in the type it is factored in, copied block by block."""
    wide = np.float64 if len(second) <= WIDEST_DOUBLE else np.float32
    matrix: npt.NDArray[np.floating] = np.empty(second.shape, wide)
    for first in range(0, len(order), BLOCK):
        matrix[first : first + BLOCK] = second[np.ix_(order[first : first + BLOCK], order)]
    return matrix


def _factorize(matrix: npt.NDArray[np.floating]) -> bool:
    """Make a symmetric matrix its lower triangular Cholesky factor, in place.

    LAPACK's, as NumPy calls it, holds three copies of the matrix.

    Returns:
        Whether it is positive definite and finite; if not, it is left half done.
    """
    for first in range(0, len(matrix), BLOCK):
        last = min(len(matrix), first + BLOCK)
        head, below = matrix[first:last, first:last], matrix[last:, first:last]
        head -= matrix[first:last, :first] @ matrix[first:last, :first].T
        try:
            head[:] = np.linalg.cholesky(head)
        except np.linalg.LinAlgError:
            return False
        if not np.isfinite(head).all():
            return False
        below -= matrix[last:, :first] @ matrix[first:last, :first].T
        below[:] = below @ np.linalg.inv(head).T
        matrix[first:last, last:] = 0
    return True
