"""Scores against closed forms and against extended precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.evaluation.language import log_softmax
from zq2onnx.evaluation import metrics
from zq2onnx.evaluation.metrics import Score, score_reference, score_window


def compare(reference: np.ndarray, logits: np.ndarray, tokens: np.ndarray) -> Score:
    return score_window(logits, tokens, score_reference(reference, tokens)[1])


def test_uniform_logits_have_the_vocabulary_as_perplexity() -> None:
    score, _ = score_reference(np.zeros((5, 37), np.float32), np.array([0, 36, 3, 5, 1]))
    assert score.positions == 4
    assert score.perplexity == pytest.approx(37, rel=1e-14)


def test_the_first_token_is_not_scored_and_each_row_predicts_the_next() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]]))
    score, _ = score_reference(logits, np.array([2, 1, 2]))
    assert score.surprise == pytest.approx(-math.log(0.25) - math.log(0.7), rel=1e-14)


def test_divergence_is_that_of_the_reference_from_the_model() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
    reference, logits = np.log(np.tile(p, (3, 1))) + 7.0, np.log(np.tile(q, (3, 1))) - 3.0
    score = compare(reference, logits, np.array([0, 0, 0]))
    assert score.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-13)
    assert score.agreements == 0


@pytest.mark.parametrize(("dtype", "eps"), [(np.float16, 1e-7), (np.float32, 1e-7), (np.float64, 1e-13)])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 21])
def test_scores_match_extended_precision_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating], eps: float, chunk: int
) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", chunk)
    rng = np.random.default_rng(3)
    reference = (20 * rng.standard_normal((17, 50))).astype(dtype)
    logits = (reference + rng.standard_normal((17, 50))).astype(dtype)
    tokens = rng.integers(0, 50, 17)
    score = compare(reference, logits, tokens)
    log_p, log_q = log_softmax(reference)[:-1], log_softmax(logits)[:-1]
    assert score.positions == 16
    assert score.surprise == pytest.approx(float(-log_q[np.arange(16), tokens[1:]].sum()), rel=eps)
    assert score.divergence == pytest.approx(float((np.exp(log_p) * (log_p - log_q)).sum()), rel=10 * eps)
    assert score.agreements == (log_p.argmax(-1) == log_q.argmax(-1)).sum()


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_a_small_divergence_is_not_lost_in_rounding(noise: float) -> None:
    """As of an 8-bit model and less, over a large vocabulary."""
    rng = np.random.default_rng(4)
    reference = (5 * rng.standard_normal((65, 30000))).astype(np.float32)
    logits = reference + (noise * rng.standard_normal(reference.shape)).astype(np.float32)
    log_p, log_q = log_softmax(reference)[:-1], log_softmax(logits)[:-1]
    expected = float((np.exp(log_p) * (log_p - log_q)).sum() / 64)
    assert expected < noise**2
    score = compare(reference, logits, np.zeros(65, np.int64))
    assert score.kl == pytest.approx(expected, rel=0.01)


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = (5 * np.random.default_rng(5).standard_normal((33, 5000))).astype(np.float16)
    tokens = np.arange(33)
    first, reference = score_reference(logits, tokens)
    assert score_window(logits, tokens, reference) == first


def test_tokens_that_the_reference_rules_out_add_no_divergence() -> None:
    reference = np.array([[0.0, 0.0, -np.inf]] * 2, np.float32)
    logits = np.zeros((2, 3), np.float32)
    assert compare(reference, logits, np.array([0, 0])).kl == pytest.approx(math.log(1.5), rel=1e-7)
    logits[:, 2] = -np.inf
    assert compare(reference, logits, np.array([0, 0])).kl == 0
    logits[:, 1] = -np.inf
    assert compare(reference, logits, np.array([0, 0])).kl == math.inf


def test_scores_add_up_and_overflow_is_infinite() -> None:
    total = Score(2, 3.0, 1, 0.5) + Score(2, 1.0, 2, 0.5)
    assert total == Score(4, 4.0, 3, 1.0)
    assert (total.perplexity, total.top1, total.kl) == (math.e, 0.75, 0.25)
    assert Score(1, 1e4).perplexity == math.inf
