"""Rounding to nearest: every weight becomes the nearest code on its group's grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.chunks import Chunk, group_chunks, lies_transposed
from zq2onnx.numerics.clip import search_clip
from zq2onnx.numerics.energy import squared_norm
from zq2onnx.numerics.grid import Float32Array, Grid, Quantized, fit_grid
from zq2onnx.scheme import Clip, Scheme


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight rounded to nearest, and what was seen on the way.

    Attributes:
        quantized: codes, scales and zero points.
        error: `W - Ŵ`, float32 `[N, K]`, lying in memory as the weight does; None where not asked for.
        weight_energy, error_energy: `‖W‖_F²` and `‖W - Ŵ‖_F²`.
        nonfinite: how many weights are NaN or infinite; where there are any, the rest is void.
    """

    quantized: Quantized
    error: Float32Array | None
    weight_energy: float
    error_energy: float
    nonfinite: int


def quantize_rtn(weight: npt.NDArray[np.generic], scheme: Scheme, scale_dtype: npt.DTypeLike) -> Quantized:
    """Round a weight to nearest.

    Args:
        weight: `[N, K]` of any float type and strides, finite.
        scheme: gives bits, granularity, symmetry and clip.
        scale_dtype: float32, float16 or bfloat16.
    """
    return round_to_nearest(weight, scheme, scale_dtype).quantized


def round_to_nearest(
    weight: npt.NDArray[np.generic],
    scheme: Scheme,
    scale_dtype: npt.DTypeLike,
    keep_error: bool = False,
) -> Rounded:
    """Round a weight to nearest, reading it once, in pieces.

    Args:
        weight: `[N, K]` of any float type and strides, finite or not.
        scheme: gives bits, granularity, symmetry and clip.
        scale_dtype: float32, float16 or bfloat16.
        keep_error: whether `W - Ŵ` is wanted.
    """
    work = _Work(weight, scheme, scale_dtype, keep_error)
    # Only weights that are not finite, or near the end of their type's range, would warn.
    with np.errstate(all="ignore"):
        for chunk, weights, scratch in work.pieces():
            grid = work.fit(chunk, weights, scratch)
            work.round(chunk, weights, grid, scratch)
    return work.result()


class _Work:
    """The arrays that `round_to_nearest` fills, all in the order in which the weight is stored."""

    def __init__(
        self, weight: npt.NDArray[np.generic], scheme: Scheme, scale_dtype: npt.DTypeLike, keep_error: bool
    ) -> None:
        n, k = weight.shape
        groups = scheme.granularity.groups(k)
        self.scheme = scheme
        self.transposed = lies_transposed(weight)
        self.source = weight.T if self.transposed else weight
        group_shape = (groups, n) if self.transposed else (n, groups)
        self.codes = np.empty(self.source.shape, np.uint8)
        self.scales = np.empty(group_shape, scale_dtype)
        self.zero_points = np.empty(group_shape, np.uint8)
        self.error = np.empty(self.source.shape, np.float32) if keep_error else None
        self.weight_energy = self.error_energy = 0.0
        self.nonfinite = 0

    def pieces(self) -> Iterator[tuple[Chunk, Float32Array, Float32Array]]:
        """Each piece of the weight as float32, with scratch space of its size; both are overwritten."""
        n, k = self.source.shape[::-1] if self.transposed else self.source.shape
        chunks = tuple(group_chunks(n, k, self.scheme.granularity, self.transposed))
        buffers = np.empty((2, max((math.prod(chunk.shape) for chunk in chunks), default=0)), np.float32)
        for chunk in chunks:
            weights, scratch = buffers[:, : math.prod(chunk.shape)]
            source = self.source[chunk.index]
            _load(source, weights.reshape(source.shape))
            yield chunk, weights.reshape(chunk.shape), scratch.reshape(chunk.shape)

    def fit(self, chunk: Chunk, weights: Float32Array, scratch: Float32Array) -> Grid:
        """The grids of a piece, which are stored."""
        low = np.minimum.reduce(weights, axis=chunk.axis, keepdims=True)
        high = np.maximum.reduce(weights, axis=chunk.axis, keepdims=True)
        grid = fit_grid(low, high, self.scheme, self.scales.dtype)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            self.nonfinite += weights.size - int(np.count_nonzero(np.isfinite(weights)))
        elif self.scheme.clip is Clip.MSE:
            grid = search_clip(weights, low, high, grid, chunk.axis, self.scheme, self.scales.dtype, scratch)
        self.scales[chunk.group_index] = grid.scale.reshape(chunk.group_shape)
        self.zero_points[chunk.group_index] = grid.zero.reshape(chunk.group_shape)
        return grid

    def round(self, chunk: Chunk, weights: Float32Array, grid: Grid, scratch: Float32Array) -> None:
        """Store a piece's codes and error."""
        grid.encode(weights, scratch)
        codes = self.codes[chunk.index]
        np.copyto(codes, scratch.reshape(codes.shape), casting="unsafe")
        grid.residue(weights, scratch)
        self.weight_energy += squared_norm(weights)
        self.error_energy += squared_norm(scratch)
        if self.error is not None:
            self.error[chunk.index] = scratch.reshape(codes.shape)

    def result(self) -> Rounded:
        """Everything as `[N, K]` and `[N, G]`."""
        codes, error, scales, zero_points = self.codes, self.error, self.scales, self.zero_points
        if self.transposed:
            codes, scales, zero_points = codes.T, scales.T, zero_points.T
            error = None if error is None else error.T
        quantized = Quantized(codes, np.ascontiguousarray(scales), np.ascontiguousarray(zero_points))
        return Rounded(quantized, error, self.weight_energy, self.error_energy, self.nonfinite)


def _load(source: npt.NDArray[np.generic], weights: Float32Array) -> None:
    """Copy a piece of the weight as float32."""
    if source.dtype == ml_dtypes.bfloat16:
        # A bfloat16 is the upper half of a float32: shifting is several times faster than the cast.
        np.copyto(weights.view(np.uint32), source.view(np.uint16))
        np.left_shift(weights.view(np.uint32), np.uint32(16), out=weights.view(np.uint32))
    else:
        np.copyto(weights, source, casting="same_kind")
