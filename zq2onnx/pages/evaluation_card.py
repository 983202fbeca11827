"""What `zq2onnx eval` found, as one short HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.results import (
    EmbeddingEvaluation,
    EmbeddingScore,
    Evaluation,
    ModelScore,
    OutputEvaluation,
    OutputScore,
)
from zq2onnx.pages.page import file_name, gap_text, number, percent, render_template

_Score = ModelScore | EmbeddingScore | OutputScore


@dataclass(frozen=True)
class Fact:
    """A measure of a model, in words."""

    term: str
    value: str


@dataclass(frozen=True)
class Model:
    """What the card says of one model.

    Attributes:
        path: the file, as it was given.
        bytes: its size.
        size_share: of the largest model's size, 0 to 1.
        paper_class: of its gap; None of the first, and where no perplexity was measured.
        facts: in the order shown.
    """

    path: str
    bytes: int
    size_share: float
    paper_class: PaperClass | None
    facts: tuple[Fact, ...]


def render(evaluation: Evaluation | EmbeddingEvaluation | OutputEvaluation) -> str:
    """The card as a page that needs nothing but itself.

    Args:
        evaluation: of language models, of encoders, or of models of any inputs.
    """
    scores: Sequence[_Score] = evaluation.models
    largest = max(score.bytes for score in scores)
    models = [
        Model(
            score.path,
            score.bytes,
            score.bytes / largest if largest else 0.0,
            score.paper_class if isinstance(score, ModelScore) else None,
            (Fact("Bits per weight", number(score.bits_per_weight, 2)), *_facts(score, first=not index)),
        )
        for index, score in enumerate(scores)
    ]
    return render_template("card.html.j2", models=models, measured=_measured(evaluation))


def _facts(score: _Score, first: bool) -> list[Fact]:
    """A model's measures; those that compare it with the first are not told of the first."""
    if isinstance(score, ModelScore):
        perplexities = _by_name("Perplexity", score.perplexity)
        mean = [Fact("Mean perplexity", number(score.mean))] if len(perplexities) > 1 else []
        compared = [
            Fact("Gap", gap_text(score.gap)),
            Fact("Top-1 agreement", f"{percent(score.top1)} %"),
            Fact("KL", f"{number(score.kl, 5)} nats"),
        ]
        return [*perplexities, *mean, *([] if first else compared)]
    if first:
        return []
    if isinstance(score, EmbeddingScore):
        return [
            *_by_name("Cosine", score.cosine, 5),
            Fact("Mean cosine", number(score.mean_cosine, 5)),
            Fact("99 % of sentences exceed", number(score.percentile_1, 5)),
            Fact("Least cosine", number(score.least_cosine, 5)),
        ]
    return [
        *_by_name("Relative error", score.relative_error, 5),
        *_by_name("Largest difference", score.largest_difference, 5),
    ]


def _by_name(term: str, values: dict[str, float], decimals: int = 3) -> list[Fact]:
    """A fact for each text or output; files by name where that tells them apart."""
    names = [file_name(key) for key in values]
    shown = names if len(set(names)) == len(names) else list(values)
    return [
        Fact(f"{term}, {name}", number(value, decimals))
        for name, value in zip(shown, values.values(), strict=True)
    ]


def _measured(evaluation: Evaluation | EmbeddingEvaluation | OutputEvaluation) -> str:
    """What the models were run on."""
    if isinstance(evaluation, Evaluation):
        said = f"Windows of {evaluation.length} tokens, {evaluation.positions:,} tokens predicted"
        return said + (f", a window every {evaluation.stride} tokens." if evaluation.stride else ".")
    if isinstance(evaluation, EmbeddingEvaluation):
        return (
            f"{evaluation.sentences:,} sentences of at most {evaluation.length} tokens; cosine similarity of"
            f" {evaluation.output} to the first model's."
        )
    return f"{evaluation.samples:,} samples; errors of the outputs relative to the first model's."
