"""The grids that codes stand for: `Ŵ = (code - zero point) * scale`, one scale and zero point per group.

asymmetric   scale = (max - min) / (2^b - 1) over the group with 0 included, integer zero point
symmetric    scale = max|w| / (2^(b-1) - 1), zero point 2^(b-1)

A scale is rounded up to the type it is stored in before any code is computed, so that the codes are
the nearest ones on the grid that the file holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from zq2onnx.scheme import Granularity, PerBlock, PerChannel, Scheme

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight `[N, K]` as codes on the grids of its groups.

    Attributes:
        codes: uint8 `[N, K]`, unsigned codes 0 to 2^bits - 1, whatever the symmetry. They lie in
            memory as the weight did, so they may be the transpose of a C-contiguous `[K, N]`.
        scales: `[N, G]`, float32, float16 or bfloat16, each finite and above zero.
        zero_points: uint8 `[N, G]`.
    """

    codes: UInt8Array
    scales: npt.NDArray[np.generic]
    zero_points: UInt8Array


@dataclass(frozen=True, eq=False)
class Grid:
    """The grids of some groups, in a shape that broadcasts against their weights.

    Attributes:
        scale: float32, values that the stored type holds.
        zero: zero points as float32.
        levels: the greatest code.
    """

    scale: Float32Array
    zero: Float32Array
    levels: int

    def encode(self, weights: Float32Array, out: Float32Array) -> None:
        """Write the weights' codes as floats, as ONNX's `QuantizeLinear` does: half to even, then shifted."""
        np.divide(weights, self.scale, out=out)
        np.rint(out, out=out)
        np.add(out, self.zero, out=out)
        np.clip(out, np.float32(0), np.float32(self.levels), out=out)

    def residue(self, weights: Float32Array, codes: Float32Array) -> None:
        """Turn float codes into `W - Ŵ`, in place."""
        np.subtract(codes, self.zero, out=codes)
        np.multiply(codes, self.scale, out=codes)
        np.subtract(weights, codes, out=codes)


def fit_grid(low: Float32Array, high: Float32Array, scheme: Scheme, scale_dtype: npt.DTypeLike) -> Grid:
    """The grids of groups that reach from `low` to `high`.

    Args:
        low, high: least and greatest weight of each group, any shape; 0 is included here.
        scheme: gives bits and symmetry.
        scale_dtype: the type in which scales will be stored.
    """
    levels = (1 << scheme.bits) - 1
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    if scheme.symmetric:
        reach: Float32Array = np.maximum(-low, high)
        scale = stored_scale(reach / np.float32(scheme.midpoint - 1), scale_dtype)
        return Grid(scale, np.full_like(scale, scheme.midpoint), levels)
    scale = stored_scale((high - low) / np.float32(levels), scale_dtype)
    zero = np.rint(low / -scale)
    return Grid(scale, np.minimum(zero, np.float32(levels), out=zero), levels)


def stored_scale(scale: Float32Array, dtype: npt.DTypeLike) -> Float32Array:
    """Round scales to values that `dtype` holds: never 0 or infinite, and 1 for a group of zeros.

    They are rounded up, because a scale that is too small cuts off the greatest weights: by half a step
    for bfloat16 and 255 steps, by more for subnormal float16.
    """
    scale = np.where(scale == 0, np.float32(1), scale)
    scale = np.minimum(scale, np.float32(ml_dtypes.finfo(dtype).max))
    if np.dtype(dtype) != np.float32:
        near = scale.astype(dtype)
        above = np.nextafter(near, np.array(np.inf, dtype))
        scale = np.where(near.astype(np.float32) < scale, above, near).astype(np.float32)
    return np.maximum(scale, np.float32(least_scale(dtype)))


def least_scale(dtype: npt.DTypeLike) -> float:
    """The smallest scale that is stored in a type.

    float16 keeps its subnormals, because 8-bit scales of ordinary weights lie there. The other
    types have range to spare, and some processors read their subnormals as zero.

    >>> least_scale(np.float16)
    5.960464477539063e-08
    """
    info = ml_dtypes.finfo(dtype)
    return float(info.smallest_subnormal if np.dtype(dtype) == np.float16 else info.smallest_normal)


def dequantize(quantized: Quantized, granularity: Granularity) -> Float32Array:
    """The weight that the codes stand for, float32 `[N, K]`."""
    k = quantized.codes.shape[1]
    match granularity:
        case PerBlock(size):
            group_of = np.arange(k) // size
        case PerChannel():
            group_of = np.zeros(k, np.intp)
    weight = quantized.codes.astype(np.float32)
    weight -= quantized.zero_points[:, group_of]
    weight *= quantized.scales.astype(np.float32)[:, group_of]
    return weight
