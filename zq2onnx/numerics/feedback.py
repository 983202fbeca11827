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

WIDEST_DOUBLE = 8192
"""Channels up to which the factorization is in float64."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """The factor of a damped second moment, its columns in the order in which they are taken.

    Attributes:
        order: int64 `[K]`, the channel that each column is.
        factor: `U`, float `[K, K]`, upper triangular with a unit diagonal.
        variance: `D`, float `[K]`: what a squared step of each column weighs.
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
        second: `R`, `[K, K]`, symmetric. A channel that is always zero (*dead*) gets a variance of its
            own: its codes are those nearest to its weights.
        damping: None tries `DAMPINGS`.
        ordered: take the channels of the greatest variance first (activation order).
        dtype: of the result.

    Returns:
        None where no damping makes it positive definite.
    """
    diagonal = np.diagonal(second)
    if not np.isfinite(diagonal).all():
        return None
    order = np.argsort(-diagonal, kind="stable") if ordered else np.arange(len(second))
    for part in DAMPINGS if damping is None else (damping,):
        factored = _factor(second, order, part)
        if factored is not None and np.isfinite(factored).all():
            pivots = np.diagonal(factored).copy()
            factored /= pivots
            return Feedback(order, factored.astype(dtype, copy=False), (pivots**2).astype(dtype), part)
    return None


def _factor(
    second: npt.NDArray[np.floating], order: npt.NDArray[np.intp], damping: float
) -> npt.NDArray[np.floating] | None:
    """The upper triangular factor of the damped, ordered moment: a Cholesky factor seen from the end."""
    wide = np.dtype(np.float64 if len(second) <= WIDEST_DOUBLE else np.float32)
    backwards = order[::-1]
    matrix: npt.NDArray[np.floating] = second[np.ix_(backwards, backwards)].astype(wide)
    diagonal = np.diagonal(matrix)
    dead = diagonal <= 0
    added = damping * float(diagonal.mean(dtype=np.float64))
    # A dead channel's variance is the mean: where all are dead, one.
    alone = added / damping if added > 0 else 1.0
    matrix[np.diag_indices_from(matrix)] += np.where(dead, alone, added)
    try:
        return np.linalg.cholesky(matrix)[::-1, ::-1]
    except np.linalg.LinAlgError:
        return None
