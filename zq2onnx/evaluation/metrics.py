"""What is measured on a window's logits. NumPy alone, in the logits' own width, with float64 sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK_ELEMENTS = 1 << 17  # float32 rows that stay in the cache, three times


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


@dataclass(frozen=True)
class Reference:
    """A reference model's predictions of a window, as scoring other models needs them.

    Attributes:
        probabilities: `[length - 1, vocabulary]`, float32, or float64 where the logits are.
        best: `[length - 1]`, the most probable tokens.
        negentropy: float64 `[length - 1]`, `sum(p log p)`, in nats.
    """

    probabilities: npt.NDArray[np.floating]
    best: npt.NDArray[np.intp]
    negentropy: npt.NDArray[np.float64]


def gap_error(perplexity: float, kl: float, positions: int) -> float:
    """About how far the gap of two perplexities may be off for want of tokens: a standard error.

    Where a model differs little from another, the difference of their log-probabilities of a token varies by
    twice their divergence; so the mean over `n` tokens by `2 KL / n`, and the perplexity with it.

    Args:
        perplexity: of the model that the other is compared with.
        kl: divergence from it, in nats.
        positions: tokens predicted.
    """
    return perplexity * float(np.sqrt(max(0.0, 2 * kl) / positions))


def score_reference(
    logits: npt.NDArray[np.floating], tokens: npt.NDArray[np.int64]
) -> tuple[Score, Reference]:
    """Score a window of the model that others are compared with; it agrees with itself everywhere.

    Args:
        logits: `[length, vocabulary]`, any float type.
        tokens: int64 `[length]`; position `i` predicts token `i + 1`, the first goes unscored.
    """
    rows, width = len(tokens) - 1, logits.shape[-1]
    probabilities = np.empty((rows, width), _working_type(logits))
    best = np.empty(rows, np.intp)
    negentropy = np.empty(rows)
    surprise = 0.0
    for part in _chunks(rows, width):
        shifted, best[part] = _shift(logits[part])
        exponentials = np.exp(shifted, out=probabilities[part])
        log_total = _divide_by_sum(exponentials)
        negentropy[part] = _expectation(exponentials, shifted) - log_total
        surprise += _surprise(shifted, log_total, tokens[1:][part])
    return Score(rows, surprise, rows, 0.0), Reference(probabilities, best, negentropy)


def score_window(
    logits: npt.NDArray[np.floating], tokens: npt.NDArray[np.int64], reference: Reference
) -> Score:
    """Score a window of another model.

    Args:
        logits: `[length, vocabulary]`, any float type.
        tokens: int64 `[length]`; position `i` predicts token `i + 1`, the first goes unscored.
        reference: what `score_reference` made of the first model's logits for the same tokens.
    """
    rows, width = len(tokens) - 1, logits.shape[-1]
    surprise = divergence = 0.0
    agreements = 0
    for part in _chunks(rows, width):
        shifted, best = _shift(logits[part])
        # KL(p || q) = sum(p log p) - sum(p log q): p's rounding is in both terms alike.
        expected = _expectation(reference.probabilities[part], shifted)
        log_total = _log_sum(np.exp(shifted))
        divergence += float((reference.negentropy[part] - (expected - log_total)).sum())
        surprise += _surprise(shifted, log_total, tokens[1:][part])
        agreements += int((best == reference.best[part]).sum())
    return Score(rows, surprise, agreements, divergence)


def _working_type(logits: npt.NDArray[np.floating]) -> np.dtype[np.floating]:
    return np.result_type(logits, np.float32)


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Cut rows into chunks, of one row where a single one is wider."""
    step = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _shift(logits: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.intp]]:
    """A copy of the logits less the greatest of their row, and where that is."""
    shifted = logits.astype(_working_type(logits))
    best = shifted.argmax(axis=-1)
    with np.errstate(invalid="ignore"):  # infinite logits make NaN, and NaN is what is reported
        shifted -= np.take_along_axis(shifted, best[:, None], axis=-1)
    return shifted, best


def _log_sum(exponentials: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] = np.log(exponentials.sum(axis=-1, dtype=np.float64))
    return total


def _divide_by_sum(exponentials: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Make each row a distribution, in place; the logarithm of what its sum was."""
    log_total = _log_sum(exponentials)
    exponentials *= np.exp(-log_total)[:, None].astype(exponentials.dtype)
    return log_total


def _surprise(
    shifted: npt.NDArray[np.floating],
    log_total: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
) -> float:
    """Sum over rows of `-log p(target)`."""
    return float((log_total - shifted[np.arange(len(targets)), targets]).sum())


def _expectation(
    probabilities: npt.NDArray[np.floating], values: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Sums over rows of `p x`; what p rules out adds nothing, though it be `-inf`."""
    with np.errstate(invalid="ignore"):
        sums: npt.NDArray[np.float64] = (probabilities * values).sum(axis=-1, dtype=np.float64)
    if np.isfinite(sums).all():
        return sums
    products = np.multiply(probabilities, values, out=np.zeros_like(values), where=probabilities != 0)
    return products.sum(axis=-1, dtype=np.float64)
