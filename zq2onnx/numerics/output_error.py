"""What a weight's error does to the layer's output, and to the model's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.grid import Float32Array

ROWS = 1 << 22
"""Errors that are multiplied at once."""


def row_losses(error: Float32Array, second: Float32Array) -> npt.NDArray[np.float64]:
    """`e R eᵀ` of each row of `E [N, K]`, float64 `[N]`: the mean square error of each output."""
    n, k = error.shape
    losses = np.empty(n)
    step = max(1, ROWS // max(1, k))
    for first in range(0, n, step):
        part = error[first : first + step]
        losses[first : first + step] = np.einsum("nk,nk->n", part @ second, part, dtype=np.float64)
    return np.maximum(losses, 0)


def output_loss(error: Float32Array, second: Float32Array, gradients: Float32Array | None = None) -> float:
    """`tr(E R Eᵀ)`, or `tr(G E R Eᵀ)` with the gradients' second moment `G [N, N]`."""
    if gradients is None:
        return float(row_losses(error, second).sum())
    return max(
        0.0, float(np.vdot((gradients @ error).astype(np.float64), (error @ second).astype(np.float64)))
    )
