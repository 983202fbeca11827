"""Walks over a weight in pieces that stay in a core's cache and hold whole groups.

A weight is `[N, K]` to us, but lies in memory either so (Gemm with transB) or as `[K, N]` (MatMul).
*Storage order* is the order in which it lies; pieces follow it, and so does what is computed from
them, so that no pass over the data is a transpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.scheme import Granularity, PerBlock

CHUNK = 1 << 17
"""Weights in a piece: a float32 copy and scratch space are a megabyte."""

LEAST_COLUMNS = 32
"""Columns below which rows of a `[K, N]` weight are too short to walk along."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a weight.

    Attributes:
        index: where it lies in the weight, in storage order.
        group_index: where its groups lie in `[N, G]` or `[G, N]`, in storage order.
        shape: its shape with groups split off: `[n, groups, size]`, or `[groups, size, n]` of `[K, N]`.
        axis: the axis of `shape` along a group.
    """

    index: tuple[slice, slice]
    group_index: tuple[slice, slice]
    shape: tuple[int, int, int]
    axis: int

    @property
    def group_shape(self) -> tuple[int, ...]:
        """Shape of what there is one of per group."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


def lies_transposed(weight: npt.NDArray[np.generic]) -> bool:
    """Whether an `[N, K]` weight is best read as `[K, N]`."""
    return abs(weight.strides[0]) < abs(weight.strides[1]) and weight.shape[0] >= LEAST_COLUMNS


def group_chunks(n: int, k: int, granularity: Granularity, transposed: bool) -> Iterator[Chunk]:
    """All pieces of a weight `[n, k]`, each weight in exactly one; the short last group by itself.

    >>> [chunk.shape for chunk in group_chunks(8, 100, PerBlock(64), transposed=False)]
    [(8, 1, 64), (8, 1, 36)]
    """
    size = granularity.size if isinstance(granularity, PerBlock) else k
    whole = k // size
    spans = [(0, whole, size), (whole, 1, k - whole * size)]
    for first, count, width in spans:
        if count and width:
            yield from _span_chunks(n, first, count, width, first * size, transposed)


def _span_chunks(n: int, first: int, count: int, width: int, start: int, transposed: bool) -> Iterator[Chunk]:
    """Pieces of `count` groups of one width, the first of which is number `first` and begins at `start`."""
    if transposed:
        columns = min(n, max(LEAST_COLUMNS, CHUNK // width))
        groups = max(1, CHUNK // (width * n))
    else:
        groups = min(count, max(1, CHUNK // width))
        columns = max(1, CHUNK // (width * groups))
    for g in range(0, count, groups):
        g_end = min(count, g + groups)
        along_k = slice(start + g * width, start + g_end * width)
        along_groups = slice(first + g, first + g_end)
        for row in range(0, n, columns):
            along_n = slice(row, min(n, row + columns))
            rows = along_n.stop - row
            if transposed:
                shape = (g_end - g, width, rows)
                yield Chunk((along_k, along_n), (along_groups, along_n), shape, 1)
            else:
                yield Chunk((along_n, along_k), (along_n, along_groups), (rows, g_end - g, width), 2)
