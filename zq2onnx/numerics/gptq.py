"""GPTQ: round column by column, and let the columns that follow make up for the error of each.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022, in the form of `zq2onnx.numerics.feedback`. As far as the layer's own output is concerned rows are
independent, so many are taken at once, and the same row on several grids counts as several rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.columns import FloatArray, Grids, Rounding, better, round_columns
from zq2onnx.numerics.feedback import Feedback
from zq2onnx.numerics.grid import Quantized, fit_grid
from zq2onnx.scheme import Clip, PerBlock, Scheme

WORK = 1 << 23
"""Weights, on all their grids, that are rounded at once: errors and targets are float32 of this size."""

OUTPUT_ROWS = 64
"""Rows that are rounded at once where rows make up for each other."""

SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Parts of a group's range that are tried: a smaller one makes finer steps and clips what is beyond."""


def quantize_gptq(
    weight: npt.NDArray[np.generic],
    scheme: Scheme,
    scale_dtype: npt.DTypeLike,
    inputs: Feedback,
    outputs: Feedback | None = None,
    ranges: Quantized | None = None,
) -> Quantized:
    """Round a weight for the least output error.

    Args:
        weight: `[N, K]` of any float type and strides, finite; float64 is computed in float64.
        scheme: gives bits, granularity, symmetry and clip. `Clip.AUTO` tries `SHRINKS` on the range of
            every row, and of every group, and keeps for each row what leaves the least `e R eᵀ`.
        scale_dtype: the type in which scales are stored.
        inputs: factored second moment `R` of the weight's input.
        outputs: factored second moment `G` of the gradient at its output. With it the loss is
            `tr(G E R Eᵀ)`: rows are taken in order too, `OUTPUT_ROWS` at once, and those that follow make up
            for the error of those before (Tseng et al., "Model-Preserving Adaptive Rounding", 2025).
        ranges: its scales and zero points are used in place of the whole ranges'; its codes are not read.
    """
    n, k = weight.shape
    groups = scheme.granularity.groups(k)
    codes = np.empty((n, k), np.uint8)
    scales, zeros = np.empty((n, groups), scale_dtype), np.empty((n, groups), np.uint8)
    carried = None if outputs is None else _Carried(outputs, n, k)
    tried = len(SHRINKS) if scheme.clip is Clip.AUTO else 1
    unit = _unit(weight)
    for rows in _row_pieces(n, max(1, WORK // (k * tried)), outputs):
        work = _Rows(weight[rows], unit, scheme, scale_dtype, inputs)
        given = (
            None if ranges is None else Quantized(codes[:0], ranges.scales[rows], ranges.zero_points[rows])
        )
        rounded = work.round(given, None if carried is None else carried.into(len(rows)))
        if carried is not None:
            carried.add(work.errors(rounded), inputs)
        codes[np.ix_(rows, inputs.order)] = rounded.codes.T
        scales[rows] = rounded.grids.scale.T / unit
        zeros[rows] = rounded.grids.zero.T
    return Quantized(codes, scales, zeros)


def _unit(weight: npt.NDArray[np.generic]) -> float:
    """What weights are multiplied by while they are rounded: a power of two that makes the greatest about 1.

    No square of an error is then too small or too large, and nothing is rounded by it.
    """
    peak = float(np.abs(weight).max(initial=0))
    return float(2.0 ** np.clip(-np.frexp(peak)[1], -126, 126))


def _row_pieces(n: int, rows: int, outputs: Feedback | None) -> Iterator[npt.NDArray[np.intp]]:
    """The rows that are rounded at once, one set after the other."""
    order, rows = (np.arange(n), rows) if outputs is None else (outputs.order, min(rows, OUTPUT_ROWS))
    return (order[first : first + rows] for first in range(0, n, rows))


class _Carried:
    """What rows that are done leave to those that follow."""

    def __init__(self, outputs: Feedback, n: int, k: int) -> None:
        self.factor = outputs.factor
        self.errors = np.empty((n, k), outputs.factor.dtype)
        self.done = 0

    def into(self, rows: int) -> FloatArray:
        """What the next rows are moved by, `[K, rows]`.

        Rows that are rounded at once do not see each other's errors, so the factor's diagonal is made of
        unit blocks.
        """
        first, last = self.done, self.done + rows
        block = self.factor[first:last, first:last].astype(np.float64)
        above = self.factor[:first, first:last] @ np.linalg.inv(block).astype(self.factor.dtype)
        moved: FloatArray = self.errors[:first].T @ above
        return moved

    def add(self, errors: FloatArray, inputs: Feedback) -> None:
        """Note the errors `[K, rows]` of the rows just done, columns in the order of the inputs' factor."""
        rows = errors.shape[1]
        self.errors[self.done : self.done + rows, inputs.order] = errors.T
        self.done += rows


class _Rows:
    """Some rows of a weight `[rows, K]`, and what it takes to round them.

    Attributes:
        natural: the rows, `[K, rows]`, in units.
        group_of: the group of each column, in the order of the inputs' factor.
    """

    def __init__(
        self,
        weight: npt.NDArray[np.generic],
        unit: float,
        scheme: Scheme,
        scale_dtype: npt.DTypeLike,
        inputs: Feedback,
    ) -> None:
        wide = np.float64 if weight.dtype == np.float64 else np.float32
        self.natural: FloatArray = np.ascontiguousarray(weight.T, wide)
        self.natural *= unit
        self.unit = unit
        self.scheme = scheme
        self.scale_dtype = scale_dtype
        self.inputs = inputs
        k = len(self.natural)
        self.size = scheme.granularity.size if isinstance(scheme.granularity, PerBlock) else k
        self.group_of = inputs.order // self.size

    def round(self, given: Quantized | None = None, carried: FloatArray | None = None) -> Rounding:
        """The best rounding that the scheme's clip finds.

        Args:
            given: its scales and zero points are used in place of the whole ranges'.
            carried: what rows before these leave to them, `[K, rows]`.
        """
        targets = self.natural if carried is None else self.natural + carried
        targets = targets[self.inputs.order]
        whole = self._fitted(1.0) if given is None else self._given(given)
        if self.scheme.clip is not Clip.AUTO:
            return self._run(targets, whole)
        shrunk = [whole, *(self._fitted(shrink) for shrink in SHRINKS[1:])]
        n, tried = targets.shape[1], len(shrunk)
        tries = Grids(
            np.concatenate([grids.scale for grids in shrunk], axis=1),
            np.concatenate([grids.zero for grids in shrunk], axis=1),
        )
        rounded = self._run(np.tile(targets, tried), tries)
        row, group = np.arange(n), np.arange(len(tries.scale))[:, None]
        picked = rounded.loss.sum(axis=0).reshape(tried, n).argmin(axis=0) * n + row
        best = Rounding(rounded.codes[:, picked], tries.rows(picked), rounded.loss[:, picked])
        if len(group) == 1:
            return best
        each = rounded.loss.reshape(-1, tried, n).argmin(axis=1) * n + row
        return better(best, self._run(targets, Grids(tries.scale[group, each], tries.zero[group, each])))

    def errors(self, rounded: Rounding) -> FloatArray:
        """`W - Ŵ` in units, `[K, rows]`, columns in the order of the inputs' factor."""
        grids = rounded.grids
        values = (rounded.codes - grids.zero[self.group_of]) * grids.scale[self.group_of]
        errors: FloatArray = self.natural[self.inputs.order] - values
        return errors

    def _fitted(self, shrink: float) -> Grids:
        """Grids of a part of the groups' ranges."""
        starts = np.arange(0, len(self.natural), self.size)
        # In units on the way in, and divided by them: scales are those of the weights as they are.
        part = np.float32(shrink) / np.float32(self.unit)
        low = np.minimum.reduceat(self.natural, starts, axis=0).astype(np.float32)
        high = np.maximum.reduceat(self.natural, starts, axis=0).astype(np.float32)
        grid = fit_grid(low * part, high * part, self.scheme, self.scale_dtype)
        return self._in_units(grid.scale, grid.zero)

    def _given(self, ranges: Quantized) -> Grids:
        return self._in_units(ranges.scales.T.astype(np.float32), ranges.zero_points.T)

    def _in_units(self, scale: npt.NDArray[np.float32], zero: npt.NDArray[np.generic]) -> Grids:
        wide = self.natural.dtype
        return Grids(scale.astype(wide) * wide.type(self.unit), zero.astype(wide))

    def _run(self, targets: FloatArray, grids: Grids) -> Rounding:
        return round_columns(targets, grids, self.inputs, self.group_of, (1 << self.scheme.bits) - 1)
