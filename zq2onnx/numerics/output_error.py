"""What a weight's error does to the layer's output, and to the model's."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.grid import Float32Array

ROWS = 1 << 22
"""Errors that are multiplied at once."""


def row_losses(error: Float32Array, second: Float32Array) -> npt.NDArray[np.float64]:
    """`e R eᵀ` of each row of `E [N, K]`, float64 `[N]`: the mean square error of each output."""
    return np.maximum(_row_products(error, error, second), 0)


def output_loss(error: Float32Array, second: Float32Array, gradients: Float32Array | None = None) -> float:
    """`tr(E R Eᵀ)`, or `tr(G E R Eᵀ)` with the gradients' second moment `G [N, N]`."""
    left = error if gradients is None else gradients @ error
    return max(0.0, math.fsum(_row_products(left, error, second)))


def branch_gain(
    error: Float32Array,
    u: Float32Array,
    v: Float32Array,
    second: Float32Array,
    gradients: Float32Array | None = None,
) -> float:
    """By how much `output_loss` is less for `E - (UV)ᵀ` than for `E`; good to 1e-6 of the latter.

    Args:
        error: `E`, float32 `[N, K]`.
        u, v: the branch, float32 `[K, R]` and `[R, N]`.
        second, gradients: as `output_loss` takes them.
    """
    unit = _unit(error)
    seen = second @ (u / unit)
    weighted = v if gradients is None else v @ gradients
    cross = float(np.vdot(weighted.astype(np.float64).T, error @ seen))
    product = (weighted.astype(np.float64) @ v.T) * (u.T.astype(np.float64) @ seen)
    return float(unit) * (2 * cross - float(product.sum()))


def _row_products(left: Float32Array, right: Float32Array, second: Float32Array) -> npt.NDArray[np.float64]:
    """`l R rᵀ` of each row of two matrices `[N, K]`, in pieces, and in units that no product leaves."""
    n, k = right.shape
    products = np.empty(n)
    unit = _unit(right)
    step = max(1, ROWS // max(1, k))
    for first in range(0, n, step):
        seen = (right[first : first + step] / unit) @ second
        products[first : first + step] = np.einsum(
            "nk,nk->n", seen, left[first : first + step], dtype=np.float64
        )
    return products * float(unit)


def _unit(matrix: Float32Array) -> np.float32:
    """A power of two that is about a matrix's greatest value: dividing by it rounds nothing."""
    exponent = np.frexp(np.abs(matrix).max(initial=0))[1]
    return np.float32(2.0 ** np.clip(exponent, -126, 126))
