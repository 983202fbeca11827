"""What is measured on a window's logits. NumPy alone, float64 sums, in memory of a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK_ELEMENTS = 1 << 18  # float64 rows that stay in the cache


@dataclass(frozen=True)
class Score:
    """Sums over scored positions; scores of several windows add up.

    Attributes:
        positions: how many tokens were predicted.
        surprise: sum of `-log p(token)`, in nats.
        agreements: at how many positions the most probable token is the reference's.
        divergence: sum of `KL(reference ‖ model)`, in nats.
    """

    positions: int = 0
    surprise: float = 0.0
    agreements: int = 0
    divergence: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.positions + other.positions,
            self.surprise + other.surprise,
            self.agreements + other.agreements,
            self.divergence + other.divergence,
        )

    @property
    def perplexity(self) -> float:
        """`exp` of the mean surprise; infinite where a float cannot hold it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.surprise / self.positions))

    @property
    def top1(self) -> float:
        """Share of positions where the most probable token is the reference's."""
        return self.agreements / self.positions

    @property
    def kl(self) -> float:
        """Mean `KL(reference ‖ model)` in nats."""
        return self.divergence / self.positions


def score_window(
    logits: npt.NDArray[np.floating],
    tokens: npt.NDArray[np.int64],
    reference: npt.NDArray[np.floating] | None = None,
) -> Score:
    """Score a window: position `i` predicts token `i + 1`, so the first token goes unscored.

    Args:
        logits: `[length, vocabulary]`, any float type.
        tokens: int64 `[length]`.
        reference: the reference model's logits for the same tokens, shaped as `logits`; None where
            the model is the reference itself, which agrees with itself everywhere.
    """
    total = Score()
    for rows in _chunks(len(tokens) - 1, logits.shape[-1]):
        log_p = _log_softmax(logits[rows])
        targets = tokens[1:][rows]
        surprise = -float(log_p[np.arange(len(targets)), targets].sum())
        if reference is None:
            total += Score(len(targets), surprise, len(targets), 0.0)
            continue
        agreements = int((logits[rows].argmax(axis=-1) == reference[rows].argmax(axis=-1)).sum())
        divergence = _divergence(_log_softmax(reference[rows]), log_p)
        total += Score(len(targets), surprise, agreements, divergence)
    return total


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows into chunks, of one row where a single one is wider."""
    step = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits make NaN, and NaN is what is reported
        shifted -= shifted.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _divergence(log_p: npt.NDArray[np.float64], log_q: npt.NDArray[np.float64]) -> float:
    """Sum over rows of `KL(p ‖ q)`; tokens that p rules out (`-inf`) add nothing."""
    p = np.exp(log_p)
    ratio = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
    return float(np.einsum("ij,ij->", p, ratio))
