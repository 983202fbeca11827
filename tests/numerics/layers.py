"""Weights, inputs and moments of small layers, and what is true of them in float64."""

from __future__ import annotations

import numpy as np

from zq2onnx.numerics.grid import Quantized
from zq2onnx.numerics.moments import Moments, MomentSum
from zq2onnx.scheme import Scheme


def weights(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


def correlated(tokens: int, k: int, seed: int = 0) -> np.ndarray:
    """Inputs of which a few directions, and a few channels, have most of the energy."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, max(1, k // 6))) @ rng.standard_normal((max(1, k // 6), k))
    x = (mixed + 0.5 * rng.standard_normal((tokens, k))) * np.exp(rng.standard_normal(k) / 2)
    return x.astype(np.float32)


def moments(x: np.ndarray, held_out: np.ndarray | None = None) -> Moments:
    gathered = MomentSum(x.shape[-1])
    gathered.add(x)
    if held_out is not None:
        gathered.add(held_out, held_out=True)
    return gathered.result()


def second(k: int, seed: int = 0) -> np.ndarray:
    """A second moment of correlated inputs, float32 `[k, k]`."""
    return moments(correlated(4 * k + 8, k, seed)).second


def values(quantized: Quantized, scheme: Scheme) -> np.ndarray:
    """What codes stand for, float64."""
    codes = quantized.codes.astype(np.float64)
    group = np.arange(codes.shape[1]) // getattr(scheme.granularity, "size", codes.shape[1])
    zeros, scales = (part.astype(np.float64)[:, group] for part in (quantized.zero_points, quantized.scales))
    return (codes - zeros) * scales


def damped(moment: np.ndarray, part: float) -> np.ndarray:
    """A moment with a part of its mean diagonal added to its diagonal, float64."""
    wide = moment.astype(np.float64)
    return wide + part * np.diagonal(wide).mean() * np.eye(len(wide))


def losses(error: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """`e R eᵀ` of each row, float64."""
    wide = error.astype(np.float64)
    return np.einsum("nk,nk->n", wide @ moment.astype(np.float64), wide)


def loss(error: np.ndarray, moment: np.ndarray, gradients: np.ndarray | None = None) -> float:
    """`tr(G E R Eᵀ)`, float64."""
    wide = error.astype(np.float64)
    left = wide if gradients is None else gradients.astype(np.float64) @ wide
    return float(np.vdot(left, wide @ moment.astype(np.float64)))


def slack(error: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """By how much float32 may misjudge `losses`."""
    wide = np.abs(error.astype(np.float64))
    return 4e-6 * np.einsum("nk,nk->n", wide @ np.abs(moment.astype(np.float64)), wide)
