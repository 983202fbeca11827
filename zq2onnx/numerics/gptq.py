"""GPTQ: round column by column, and let the columns that follow make up for the error of each.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022, in the form of `zq2onnx.numerics.feedback`. As far as the layer's own output is concerned rows are
independent, so many are taken at once, and the same row on several grids counts as several rows.

Arrays here are transposed, `[K, M]`: a column of the weight is contiguous, and so is a step's work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.feedback import Feedback
from zq2onnx.numerics.grid import Quantized, UInt8Array, fit_grid
from zq2onnx.scheme import Clip, PerBlock, Scheme

FloatArray = npt.NDArray[np.floating]

COLUMNS = 128
"""Columns whose feedback from all before them is one matrix product (GPTQ, section 3)."""

STEP = 16
"""Columns of those whose feedback is gathered at once."""

WORK = 1 << 23
"""Weights, on all their grids, that are rounded at once: errors and targets are float32 of this size."""

OUTPUT_ROWS = 64
"""Rows that are rounded at once where rows make up for each other."""

SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Parts of a group's range that are tried: a smaller one makes finer steps and clips what is beyond."""


@dataclass(frozen=True, eq=False)
class _Grids:
    """The grids of some rows: `scale` and `zero` float `[G, M]`."""

    scale: FloatArray
    zero: FloatArray

    def rows(self, picked: npt.NDArray[np.intp]) -> _Grids:
        """The grids of some of the rows."""
        return _Grids(self.scale[:, picked], self.zero[:, picked])


@dataclass(frozen=True, eq=False)
class _Rounding:
    """Rows after rounding.

    Attributes:
        codes: uint8 `[K, M]`, columns in the feedback's order.
        grids: what they are codes of.
        loss: float `[G, M]`, what each group adds to the row's `e R eᵀ`.
    """

    codes: UInt8Array
    grids: _Grids
    loss: FloatArray


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
    for rows in _row_pieces(n, max(1, WORK // (k * tried)), outputs):
        natural = _natural(weight[rows])
        grids = (
            _whole_grids(natural, scheme, scale_dtype) if ranges is None else _given(ranges, rows, natural)
        )
        target = natural if carried is None else natural + carried.into(len(rows))
        rounded = _Rows(natural, target, scheme, scale_dtype, inputs).round(grids)
        if carried is not None:
            carried.add(
                natural[inputs.order] - _values(rounded, inputs.order // _group_size(scheme, k)), inputs
            )
        codes[np.ix_(rows, inputs.order)] = rounded.codes.T
        scales[rows] = rounded.grids.scale.T
        zeros[rows] = rounded.grids.zero.T
    return Quantized(codes, scales, zeros)


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
        block = self.factor[first:last, first:last]
        above = np.linalg.solve(block.T, self.factor[:first, first:last].T)
        return (above @ self.errors[:first]).T

    def add(self, errors: FloatArray, inputs: Feedback) -> None:
        """Note the errors `[K, rows]` of the rows just done, columns in the order of the inputs' factor."""
        rows = errors.shape[1]
        self.errors[self.done : self.done + rows, inputs.order] = errors.T
        self.done += rows


def _values(rounded: _Rounding, group_of: npt.NDArray[np.intp]) -> FloatArray:
    """What the codes stand for, `[K, M]`."""
    return (rounded.codes - rounded.grids.zero[group_of]) * rounded.grids.scale[group_of]


def _group_size(scheme: Scheme, k: int) -> int:
    return scheme.granularity.size if isinstance(scheme.granularity, PerBlock) else k


def _natural(weight: npt.NDArray[np.generic]) -> FloatArray:
    """Rows of a weight as contiguous `[K, rows]`, float32 at least."""
    wide = np.float64 if weight.dtype == np.float64 else np.float32
    return np.ascontiguousarray(weight.T, wide)


def _given(ranges: Quantized, rows: npt.NDArray[np.intp], targets: FloatArray) -> _Grids:
    scale, zero = ranges.scales[rows].T, ranges.zero_points[rows].T
    return _Grids(scale.astype(np.float32).astype(targets.dtype), zero.astype(targets.dtype))


def _whole_grids(
    targets: FloatArray, scheme: Scheme, scale_dtype: npt.DTypeLike, shrink: float = 1.0
) -> _Grids:
    """Grids of the groups' ranges, or of a part of them."""
    starts = np.arange(0, len(targets), _group_size(scheme, len(targets)))
    low = np.minimum.reduceat(targets, starts, axis=0).astype(np.float32)
    high = np.maximum.reduceat(targets, starts, axis=0).astype(np.float32)
    grid = fit_grid(low * np.float32(shrink), high * np.float32(shrink), scheme, scale_dtype)
    return _Grids(grid.scale.astype(targets.dtype), grid.zero.astype(targets.dtype))


class _Rows:
    """Some rows of a weight, and what it takes to round them."""

    def __init__(
        self,
        natural: FloatArray,
        targets: FloatArray,
        scheme: Scheme,
        scale_dtype: npt.DTypeLike,
        factored: Feedback,
    ) -> None:
        self.natural = natural
        self.targets = targets[factored.order]
        self.scheme = scheme
        self.scale_dtype = scale_dtype
        self.factored = factored
        self.group_of = factored.order // _group_size(scheme, len(targets))

    def round(self, whole: _Grids) -> _Rounding:
        """The best rounding that the scheme's clip finds, beginning with the whole ranges."""
        if self.scheme.clip is not Clip.AUTO:
            return self._run(self.targets, whole)
        shrunk = [whole]
        shrunk += [
            _whole_grids(self.natural, self.scheme, self.scale_dtype, shrink) for shrink in SHRINKS[1:]
        ]
        n, tried = self.targets.shape[1], len(shrunk)
        everything = _Grids(
            np.concatenate([grids.scale for grids in shrunk], axis=1),
            np.concatenate([grids.zero for grids in shrunk], axis=1),
        )
        all_rounded = self._run(np.tile(self.targets, tried), everything)
        row = np.arange(n)
        picked = all_rounded.loss.sum(axis=0).reshape(tried, n).argmin(axis=0) * n + row
        best = _Rounding(all_rounded.codes[:, picked], everything.rows(picked), all_rounded.loss[:, picked])
        groups = len(whole.scale)
        if groups == 1:
            return best
        each = all_rounded.loss.reshape(groups, tried, n).argmin(axis=1) * n + row
        group = np.arange(groups)[:, None]
        mixed = self._run(self.targets, _Grids(everything.scale[group, each], everything.zero[group, each]))
        return _better(best, mixed)

    def _run(self, targets: FloatArray, grids: _Grids) -> _Rounding:
        """GPTQ itself, on rows `[K, M]` and a grid for each of their groups."""
        factor, variance, group_of = self.factored.factor, self.factored.variance, self.group_of
        k, m = targets.shape
        codes = np.empty((k, m), np.uint8)
        errors = np.empty_like(targets)
        loss = np.zeros(grids.scale.shape, targets.dtype)
        top = (1 << self.scheme.bits) - 1
        for first in range(0, k, COLUMNS):
            last = min(k, first + COLUMNS)
            wanted = targets[first:last] + factor[:first, first:last].T @ errors[:first]
            for step in range(first, last, STEP):
                end = min(last, step + STEP)
                ahead = wanted[step - first : end - first]
                ahead += factor[first:step, step:end].T @ errors[first:step]
                for column in range(step, end):
                    target = ahead[column - step]
                    target += factor[step:column, column] @ errors[step:column]
                    group = group_of[column]
                    scale, zero = grids.scale[group], grids.zero[group]
                    code = target / scale
                    np.rint(code, out=code)
                    code += zero
                    np.clip(code, 0, top, out=code)
                    codes[column] = code
                    code -= zero
                    code *= scale
                    np.subtract(targets[column], code, out=errors[column])
                    target -= code
                    target *= target
                    target *= variance[column]
                    loss[group] += target
        return _Rounding(codes, grids, loss)


def _better(one: _Rounding, other: _Rounding) -> _Rounding:
    """Of each row the rounding with the lesser loss; a tie keeps the first."""
    taken = other.loss.sum(axis=0) < one.loss.sum(axis=0)
    return _Rounding(
        np.where(taken, other.codes, one.codes),
        _Grids(
            np.where(taken, other.grids.scale, one.grids.scale),
            np.where(taken, other.grids.zero, one.grids.zero),
        ),
        np.where(taken, other.loss, one.loss),
    )
