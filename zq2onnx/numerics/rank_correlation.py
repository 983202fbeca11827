"""Whether two measures put things into the same order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spearman(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Spearman's rank correlation, -1 to 1; equal values share their mean rank.

    >>> spearman([1, 2, 3], [10, 30, 20]), spearman([1, 2, 2, 3], [1, 5, 5, 9])
    (0.5, 1.0)

    Args:
        one, other: of one length.

    Returns:
        NaN where either has fewer than two different values.
    """
    ranks = np.stack([_ranks(np.asarray(values, np.float64)) for values in (one, other)])
    deviations = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(deviations, axis=1)
    if not lengths.all():
        return float("nan")
    return float(round(float(deviations[0] @ deviations[1] / (lengths[0] * lengths[1])), 12))


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 0."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: npt.NDArray[np.float64] = np.cumsum(counts) - (counts + 1) / 2
    return last[inverse]
