"""The card of an evaluation, for each kind of model."""

from __future__ import annotations

import math

import pytest

from tests.pages.markup import check_page
from tests.pages.test_study_report import text_of
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.results import (
    EmbeddingEvaluation,
    EmbeddingScore,
    Evaluation,
    ModelScore,
    OutputEvaluation,
    OutputScore,
)
from zq2onnx.pages.evaluation_card import render

FLOAT = ModelScore(
    "in/model.onnx", 68_400_000, None, {"a/news.txt": 60.0, "b/web.txt": 70.0}, 65.0, 0.0, 1.0, 0.0
)


def quantized(gap: float, kl: float = 0.0123) -> ModelScore:
    perplexity = {"a/news.txt": 60.0 + gap, "b/web.txt": 70.0 + gap}
    path = "out/model.w4a16.onnx"
    return ModelScore(path, 17_100_000, 4.375, perplexity, 65.0 + gap, gap, 0.8765, kl, PaperClass.of(gap))


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (0.05, "Class-1 at most 0.1 above the float model"),
        (0.3, "Class-2 at most 0.5 above the float model"),
        (7.0, "Class-3 more than 0.5 above the float model"),
    ],
)
def test_a_language_model_has_its_class_in_words(gap: float, words: str) -> None:
    page = render(Evaluation((FLOAT, quantized(gap)), 128, 2540, 8192))
    markup = check_page(page)
    said = text_of(page)
    for fact in (words, "17.10 MB", "4.38", f"+{gap:.3f}", "87.65 %", "0.01230 nats", "128 tokens", "2,540"):
        assert fact in said, fact
    shares = [element["style"] for element in markup.all("span") if element.get("class") == "share"]
    assert shares == ["width: 100.0%", "width: 25.0%"]
    assert said.count("Gap") == 1  # the first is compared with nothing


def test_texts_of_one_name_are_told_apart_by_their_paths() -> None:
    score = ModelScore("model.onnx", 10, 4.0, {"a/text.txt": 2.0, "b/text.txt": 4.0}, 3.0, 0.0, 1.0, 0.0)
    said = text_of(render(Evaluation((score,), 8, 14, 10, stride=4)))
    assert "Perplexity, a/text.txt" in said and "Perplexity, b/text.txt" in said
    assert "a window every 4 tokens" in said and "Compared with nothing" in said


def test_what_is_not_finite_is_said_so() -> None:
    page = render(Evaluation((FLOAT, quantized(math.nan, math.inf)), 128, 2540, 8192))
    check_page(page)
    assert "not a number" in page and "∞ nats" in page and "Class-3" in page


def test_encoders_have_cosines() -> None:
    first = EmbeddingScore("a.onnx", 90, 32.0, {"x.txt": 1.0}, 1.0, 1.0, 1.0)
    second = EmbeddingScore("b.onnx", 20, 4.5, {"x.txt": 0.9981}, 0.9972, 0.9831, 0.9702)
    page = render(EmbeddingEvaluation((first, second), 128, 1000, "last_hidden_state"))
    check_page(page)
    for fact in ("0.99810", "0.99720", "0.98310", "0.97020", "1,000 sentences", "last_hidden_state"):
        assert fact in page


def test_models_of_any_inputs_have_errors() -> None:
    first = OutputScore("a.onnx", 90, None, {"y": 0.0}, {"y": 0.0})
    second = OutputScore("b.onnx", 20, 4.5, {"y": 0.0213}, {"y": 1.5})
    page = render(OutputEvaluation((first, second), 3))
    check_page(page)
    assert "0.02130" in page and "1.50000" in page and "3 samples" in page and "Class" not in text_of(page)
