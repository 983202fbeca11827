"""Sums of squares, `‖·‖_F²`, of arrays that may be large and of any magnitude."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

PIECE = 1 << 17
"""Values whose squares are summed in float32, before the sums are added in float64."""


def squared_norm(piece: Float32Array) -> float:
    """Sum of squares of about `PIECE` contiguous values: in float32, unless they are too small or large."""
    flat = piece.reshape(-1)
    with np.errstate(over="ignore"):
        energy = float(np.dot(flat, flat))
    if 1e-30 < energy < math.inf:
        return energy
    wide = flat.astype(np.float64)
    return float(np.dot(wide, wide))


def frobenius_energy(matrix: Float32Array) -> float:
    """Sum of squares of a matrix of any size and strides."""
    return math.fsum(squared_norm(piece) for piece in _pieces(matrix))


def _pieces(matrix: Float32Array) -> Iterator[Float32Array]:
    stored = matrix.T if matrix.strides[0] < matrix.strides[1] else matrix
    rows = max(1, PIECE // max(1, stored.shape[1]))
    for first in range(0, stored.shape[0], rows):
        yield np.ascontiguousarray(stored[first : first + rows])
