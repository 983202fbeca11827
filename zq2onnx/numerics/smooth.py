"""SmoothQuant: how much of a channel's range moves from the activations into the weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from zq2onnx.numerics.grid import Float32Array
from zq2onnx.numerics.moments import Moments

ALPHA = 0.5
"""Share of the range that moves: 0 leaves the activations as uneven as they are, 1 makes them all even."""

BOUND = 1024.0
"""Scales are 1 / BOUND to BOUND."""


def smoothing_scales(
    activation_peak: Float32Array, weight_peak: Float32Array, alpha: float = ALPHA
) -> Float32Array:
    """The `s` of `y = (x / s) (W diag(s))ᵀ`: `s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)`.

    Only their ratios matter to a quantizer: they are given in the median channel's, so that most
    activations and weights stay as large as they were. Channels without a peak, where one of the two is 0
    or not finite, get 1.

    Source: Xiao et al. 2022, SmoothQuant, section 4, equation 4.

    Args:
        activation_peak: greatest `|x_j|` on calibration data, `[K]`.
        weight_peak: greatest `|W_j|` over all outputs of all linears that read x, `[K]`.
        alpha: 0 to 1.

    Returns:
        float32 `[K]`, finite and positive.

    Raises:
        ValueError: the two differ in shape, or alpha is out of bounds.
    """
    if activation_peak.ndim != 1 or activation_peak.shape != weight_peak.shape:
        raise ValueError(f"peaks of shapes {activation_peak.shape} and {weight_peak.shape}, not [K] both")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}, not 0 to 1")
    x, w = activation_peak.astype(np.float64), weight_peak.astype(np.float64)
    live = np.isfinite(x) & np.isfinite(w) & (x > 0) & (w > 0)
    scales = np.ones(len(x), np.float32)
    if live.any():
        exponents = alpha * np.log(x[live]) - (1 - alpha) * np.log(w[live])
        exponents -= np.median(exponents)
        limit = np.log(BOUND)
        scales[live] = np.exp(np.clip(exponents, -limit, limit))
    return np.clip(scales, 1 / BOUND, BOUND, dtype=np.float32)


def smoothed_moments(moments: Moments, scales: Float32Array) -> Moments:
    """The moments of `x / s`, for scales `[K]`."""
    inverse = (1 / scales).astype(np.float32)
    square = np.outer(inverse, inverse)
    return dataclasses.replace(
        moments,
        fitted=moments.fitted * square,
        held_out=None if moments.held_out is None else moments.held_out * square,
        peak=moments.peak * inverse,
    )
