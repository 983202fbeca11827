"""Low-rank compensation (LoRC, ZeroQuant-V2): two thin factors that give back part of the rounding error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.energy import frobenius_energy
from zq2onnx.numerics.grid import Float32Array, stored_scale
from zq2onnx.numerics.krylov import leading_subspace
from zq2onnx.scheme import FactorType

INT8_LIMIT = 127
"""Codes of a factor reach from -127 to 127."""

UNITS = (1e-30, 1e30)
"""Bounds of what an error is measured in, far enough from the ends of float32."""


@dataclass(frozen=True, eq=False)
class Factors:
    """`(W - Ŵ)ᵀ [K, N] ≈ (u * u_scales) @ (v * v_scales)`.

    Attributes:
        u: `[K, R]`, int8 or the activations' type.
        v: `[R, N]`, as `u`.
        u_scales: `[1, R]` in the activations' type, one per rank component; ones where `u` is float.
        v_scales: `[R, 1]`, as `u_scales`.
    """

    u: npt.NDArray[np.generic]
    v: npt.NDArray[np.generic]
    u_scales: npt.NDArray[np.generic]
    v_scales: npt.NDArray[np.generic]

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.u.shape[1]

    def floats(self) -> tuple[Float32Array, Float32Array]:
        """The factors that are stored, `[K, R]` and `[R, N]`, as float32."""
        u = self.u.astype(np.float32) * self.u_scales.astype(np.float32)
        v = self.v.astype(np.float32) * self.v_scales.astype(np.float32)
        return u, v


def low_rank(
    error: Float32Array,
    rank: int,
    factor_type: FactorType,
    dtype: npt.DTypeLike,
    seed: int = 0,
    energy: float | None = None,
) -> Factors:
    """The factors of a rounding error, each with half of every singular value.

    Args:
        error: `W - Ŵ`, float32 `[N, K]`, any strides, finite.
        rank: clipped to `min(K, N)`.
        factor_type: how the factors are stored.
        dtype: the activations' type: float32, float16 or bfloat16.
        seed: of the random start; the same seed gives the same bytes.
        energy: `‖error‖_F²`, if it is known.
    """
    energy = frobenius_energy(error) if energy is None else energy
    unit = min(max(math.sqrt(energy / error.size), UNITS[0]), UNITS[1])
    left, right = leading_subspace(error, min(rank, *error.shape), seed, unit)
    left, right = balance_factors(np.asarray(left), np.asarray(right))
    u, u_scales = store_factor(right, factor_type, dtype)
    v, v_scales = store_factor(left, factor_type, dtype)
    return Factors(u, np.ascontiguousarray(v.T), u_scales, np.ascontiguousarray(v_scales.T))


def residual_energy(error: Float32Array, factors: Factors, energy: float | None = None) -> float:
    """`‖errorᵀ - UV‖_F²` of the stored factors, without forming `UV`; good to 1e-6 of `‖error‖_F²`.

    Args:
        error: float32 `[N, K]`.
        factors: as `low_rank` returns them.
        energy: `‖error‖_F²`, if it is known.
    """
    energy = frobenius_energy(error) if energy is None else energy
    u, v = factors.floats()
    wide_u, wide_v = u.astype(np.float64), v.astype(np.float64)
    cross = float(np.vdot((error @ u).astype(np.float64), wide_v.T))
    product = float(np.vdot(wide_u.T @ wide_u, wide_v @ wide_v.T))
    return max(0.0, energy - 2.0 * cross + product)


def balance_factors(left: Float32Array, right: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Give both factors' columns the norm `S^½`; a component without energy becomes zero in both."""
    left_norm = np.linalg.norm(left.astype(np.float64), axis=0)
    right_norm = np.linalg.norm(right.astype(np.float64), axis=0)
    alive = (left_norm > 0) & (right_norm > 0)
    ratio = np.sqrt(np.where(alive, right_norm, 0) / np.where(alive, left_norm, 1))
    inverse = np.where(alive, 1 / np.where(alive, ratio, 1), 0)
    return (left * ratio).astype(np.float32), (right * inverse).astype(np.float32)


def store_factor(
    factor: Float32Array, factor_type: FactorType, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """A factor `[n, R]` as it is stored, and its scales `[1, R]`."""
    if factor_type is FactorType.FLOAT:
        return factor.astype(dtype), np.ones((1, factor.shape[1]), dtype)
    scales = stored_scale(np.max(np.abs(factor), axis=0, keepdims=True) / np.float32(INT8_LIMIT), dtype)
    codes = np.clip(np.rint(factor / scales), -INT8_LIMIT, INT8_LIMIT)
    return codes.astype(np.int8), scales.astype(dtype)
