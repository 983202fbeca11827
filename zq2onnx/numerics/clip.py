"""The search for a group's range: a smaller range makes finer steps, and clips the greatest weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.grid import Float32Array, Grid, fit_grid
from zq2onnx.scheme import Scheme

SHRINKS = tuple(1 - step / 32 for step in range(1, 20))
"""Factors that are tried on a group's range."""


def search_clip(
    weights: Float32Array,
    low: Float32Array,
    high: Float32Array,
    whole: Grid,
    axis: int,
    scheme: Scheme,
    scale_dtype: npt.DTypeLike,
    scratch: Float32Array,
) -> Grid:
    """The grid of each group that gives the least squared error.

    Args:
        weights: groups of weights, finite, overwritten nowhere.
        low, high: least and greatest weight of each group, with `axis` kept.
        whole: the grids of the whole ranges; a tie keeps them.
        axis: the axis of `weights` along a group.
        scheme: gives bits and symmetry.
        scale_dtype: the type in which scales will be stored.
        scratch: space of the shape of `weights`.
    """
    scale, zero = whole.scale, whole.zero
    least = _loss(weights, whole, whole, axis, scratch)
    for shrink in SHRINKS:
        grid = fit_grid(low * np.float32(shrink), high * np.float32(shrink), scheme, scale_dtype)
        loss = _loss(weights, grid, whole, axis, scratch)
        better = loss < least
        least = np.where(better, loss, least)
        scale, zero = np.where(better, grid.scale, scale), np.where(better, grid.zero, zero)
    return Grid(scale, zero, whole.levels)


def _loss(weights: Float32Array, grid: Grid, unit: Grid, axis: int, scratch: Float32Array) -> Float32Array:
    """Squared error of each group, in squared steps of `unit`: no weight is too small or large for that."""
    grid.encode(weights, scratch)
    grid.residue(weights, scratch)
    np.divide(scratch, unit.scale, out=scratch)
    np.multiply(scratch, scratch, out=scratch)
    loss: Float32Array = np.add.reduce(scratch, axis=axis, keepdims=True)
    return loss
