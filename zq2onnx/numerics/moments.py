"""What calibration remembers of a linear layer's input: second moments and peaks, not the input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.grid import Float32Array

WIDEST_DOUBLE = 2048
"""Channels up to which sums are kept in float64: 34 MB of them. Wider ones are kept in float32."""

PIECE = 1 << 22
"""Values of an input that are multiplied at once, in float32."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of an input `x` of K channels over calibration tokens.

    Samples are of two kinds: most are *fitted*, some are *held out*, so that what was chosen by the
    former can be judged by the latter.

    Attributes:
        fitted: `E[x xᵀ]` over the tokens of fitted samples, float32 `[K, K]`, symmetric.
        held_out: the same of held-out samples; None where there are none.
        peak: greatest `|x|` of each channel over all tokens, float32 `[K]`.
        tokens: how many were fitted, how many held out.
    """

    fitted: Float32Array
    held_out: Float32Array | None
    peak: Float32Array
    tokens: tuple[int, int]

    @property
    def second(self) -> Float32Array:
        """`R = E[x xᵀ]` over all tokens, float32 `[K, K]`; made anew at each call."""
        if self.held_out is None:
            return self.fitted
        share = self.tokens[1] / sum(self.tokens)
        both: Float32Array = self.fitted * np.float32(1 - share)
        both += self.held_out * np.float32(share)
        return both

    @property
    def finite(self) -> bool:
        """Whether no NaN and no infinity was seen."""
        seen = [self.peak, np.diagonal(self.fitted)]
        if self.held_out is not None:
            seen.append(np.diagonal(self.held_out))
        return all(bool(np.isfinite(part).all()) for part in seen)


class MomentSum:
    """Gathers `Moments` batch by batch: float32 products, summed in float64 where that fits.

    Args:
        k: channels.
    """

    def __init__(self, k: int) -> None:
        self._dtype = np.float64 if k <= WIDEST_DOUBLE else np.float32
        self._sums: list[npt.NDArray[np.floating] | None] = [None, None]
        self._tokens = [0, 0]
        self._peak = np.zeros(k, np.float32)

    def add(self, x: npt.NDArray[np.floating], held_out: bool = False) -> None:
        """Take in an input `[.., K]` of any float type."""
        k = len(self._peak)
        rows = x.reshape(-1, k)
        for first in range(0, len(rows), max(1, PIECE // k)):
            piece = np.ascontiguousarray(rows[first : first + max(1, PIECE // k)], np.float32)
            np.maximum(self._peak, np.abs(piece).max(axis=0), out=self._peak)
            product = piece.T @ piece
            sums = self._sums[held_out]
            if sums is None:
                self._sums[held_out] = product.astype(self._dtype)
            else:
                sums += product
        self._tokens[held_out] += len(rows)

    def result(self) -> Moments:
        """The means; the sums are given up. With held-out samples alone, they are fitted.

        Raises:
            ValueError: nothing was added, or it was taken already.
        """
        means, tokens = [], []
        for kind, sums in enumerate(self._sums):
            self._sums[kind] = None
            if sums is not None:
                sums /= self._tokens[kind]
                means.append(sums.astype(np.float32, copy=False))
                tokens.append(self._tokens[kind])
        if not means:
            raise ValueError("no input was added")
        fitted, held_out = (*means, None)[:2]
        assert fitted is not None
        return Moments(fitted, held_out, self._peak, (tokens[0], sum(tokens[1:])))
