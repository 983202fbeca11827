"""What evaluations found, as data: of language models, of encoders, and of models of any inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from zq2onnx.evaluation.paper_class import PaperClass


@dataclass(frozen=True)
class ModelScore:
    """What was measured of one model.

    Attributes:
        path: the file, as it was given.
        bytes: its size with all external data.
        bits_per_weight: codes, scales, zero points and factors per quantized weight (of a float
            model: per weight of its linear layers); None where there are no such weights.
        perplexity: by text, as it was given.
        mean: mean of the texts' perplexities.
        gap: that mean above the first model's.
        top1: share of scored positions where its most probable token is the first model's.
        kl: mean over scored positions of `KL(first ‖ this)`, in nats.
        paper_class: of the gap; None of the first model.
    """

    path: str
    bytes: int
    bits_per_weight: float | None
    perplexity: dict[str, float]
    mean: float
    gap: float
    top1: float
    kl: float
    paper_class: PaperClass | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured of all models; the first is what the others are compared with.

    Attributes:
        models: in the order given.
        length: tokens in a window.
        positions: how many tokens each model predicted.
        vocabulary: how many tokens it chose from at each.
        stride: tokens by which each window is ahead of the one before; None where none overlap.
    """

    models: tuple[ModelScore, ...]
    length: int
    positions: int
    vocabulary: int
    stride: int | None = None

    def to_json(self) -> str:
        """`{"models": [...]}`, indented; a number that is not finite is null."""
        return models_to_json(self.models)


@dataclass(frozen=True)
class EmbeddingScore:
    """How near one model's embeddings of sentences are to the first model's.

    Attributes:
        path, bytes, bits_per_weight: as of `ModelScore`.
        cosine: by text, the mean over its sentences of the cosine similarity.
        mean_cosine: the mean over all sentences.
        percentile_1: what 99% of the sentences exceed.
        least_cosine: the least of all sentences.
    """

    path: str
    bytes: int
    bits_per_weight: float | None
    cosine: dict[str, float]
    mean_cosine: float
    percentile_1: float
    least_cosine: float


@dataclass(frozen=True)
class EmbeddingEvaluation:
    """What was measured of all encoders; the first is what the others are compared with.

    Attributes:
        models: in the order given.
        length: tokens that a sentence is cut to.
        sentences: how many each model read.
        output: the one that was compared; means over tokens of it, where it has an axis of tokens.
    """

    models: tuple[EmbeddingScore, ...]
    length: int
    sentences: int
    output: str

    def to_json(self) -> str:
        """`{"models": [...]}`, indented; a number that is not finite is null."""
        return models_to_json(self.models)


@dataclass(frozen=True)
class OutputScore:
    """How far one model's outputs are from the first model's.

    Attributes:
        path, bytes, bits_per_weight: as of `ModelScore`.
        relative_error: by output, `‖y - y_first‖ / ‖y_first‖` over all samples.
        largest_difference: by output, the greatest `|y - y_first|`.
    """

    path: str
    bytes: int
    bits_per_weight: float | None
    relative_error: dict[str, float]
    largest_difference: dict[str, float]


@dataclass(frozen=True)
class OutputEvaluation:
    """What was measured of all models; the first is what the others are compared with.

    Attributes:
        models: in the order given.
        samples: how many each model was run on.
    """

    models: tuple[OutputScore, ...]
    samples: int

    def to_json(self) -> str:
        """`{"models": [...]}`, indented; a number that is not finite is null."""
        return models_to_json(self.models)


def kl_text(value: float) -> str:
    """A divergence in nats, to two digits at least: 8 bits cost so little that five decimals tell nothing.

    >>> kl_text(0.0123), kl_text(0.0000042), kl_text(0.0), kl_text(float("nan"))
    ('0.01230', '4.2e-06', '0.00000', 'nan')
    """
    return f"{value:.1e}" if 0 < abs(value) < 1e-4 else f"{value:.5f}"


def models_to_json(models: Sequence[object]) -> str:
    """`{"models": [...]}` of dataclasses, indented; what is not finite is null, `paper_class` is `class`."""
    renamed = {"paper_class": "class"}
    found = [
        {renamed.get(name, name): _json_value(value) for name, value in vars(model).items()}
        for model in models
    ]
    return json.dumps({"models": found}, indent=2, ensure_ascii=False) + "\n"


def _json_value(value: object) -> object:
    """JSON has no infinities and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return value.value if isinstance(value, PaperClass) else value
