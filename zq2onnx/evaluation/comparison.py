"""Compares quantized models with a float one on texts: the flow of `zq2onnx eval`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.evaluation.float32_copy import float32_copy
from zq2onnx.evaluation.metrics import Score, score_reference, score_window
from zq2onnx.evaluation.session import LanguageModel
from zq2onnx.evaluation.subject import Subject, examine
from zq2onnx.language import check_tokenizer, check_vocabulary
from zq2onnx.runtime.providers import require_onnxruntime
from zq2onnx.text import Windows, cut_windows, load_tokenizer

LONGEST_DEFAULT = 2048
"""No default length exceeds this: published perplexities are those of windows of 2048 tokens."""

Progress = Callable[[float], None]
"""Told how many windows were run since the last call."""


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
    """

    path: str
    bytes: int
    bits_per_weight: float | None
    perplexity: dict[str, float]
    mean: float
    gap: float
    top1: float
    kl: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured of all models; the first is what the others are compared with.

    Attributes:
        models: in the order given.
        length: tokens in a window.
        positions: how many tokens each model predicted.
        vocabulary: how many tokens it chose from at each.
    """

    models: tuple[ModelScore, ...]
    length: int
    positions: int
    vocabulary: int

    def to_json(self) -> str:
        """`{"models": [...]}`, indented; a number that is not finite is null."""
        models = [{name: _json_value(value) for name, value in vars(model).items()} for model in self.models]
        return json.dumps({"models": models}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Plan:
    """An evaluation whose models and texts were read and found to fit each other."""

    subjects: tuple[Subject, ...]
    texts: tuple[Windows, ...]
    length: int

    @property
    def runs(self) -> int:
        """How many windows are to be run, over all models."""
        return len(self.subjects) * sum(len(text.ids) for text in self.texts)

    def run(self, progress: Progress | None = None) -> Evaluation:
        """Run every window once on every model.

        All models are open at once. For one window are held the first model's logits and
        probabilities, and the logits of one other model.

        Raises:
            UserError: ONNX Runtime cannot load or run a model.
        """
        with contextlib.ExitStack() as stack:
            models = [
                LanguageModel(subject, stack.enter_context(float32_copy(subject.path)))
                for subject in self.subjects
            ]
            scores = [_score_text(models, text, progress or (lambda amount: None)) for text in self.texts]
            vocabulary = models[0].vocabulary
        return self._summarize(scores, vocabulary)

    def _summarize(self, scores: list[list[Score]], vocabulary: int) -> Evaluation:
        """Gather `scores[text][model]`."""
        results: list[ModelScore] = []
        for i, subject in enumerate(self.subjects):
            perplexity = {
                str(text.text): of[i].perplexity for text, of in zip(self.texts, scores, strict=True)
            }
            mean = math.fsum(perplexity.values()) / len(perplexity)
            total = sum((of[i] for of in scores), Score())
            gap = mean - results[0].mean if results else 0.0
            results.append(
                ModelScore(
                    str(subject.path),
                    subject.bytes,
                    subject.bits_per_weight,
                    perplexity,
                    mean,
                    gap,
                    total.top1,
                    total.kl,
                )
            )
        return Evaluation(tuple(results), self.length, total.positions, vocabulary)


def evaluate(
    models: Sequence[str | Path],
    texts: Sequence[str | Path],
    tokenizer: str | Path,
    *,
    length: int | None = None,
    windows: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure perplexity, and how far each model's predictions are from the first one's.

    Each text is encoded whole without special tokens and cut into windows that do not overlap; a
    window's first token is not scored, and the text's tail that fills no window is dropped. bfloat16
    models run as a float32 copy. See `plan_evaluation` for the arguments and errors.
    """
    return plan_evaluation(models, texts, tokenizer, length=length, windows=windows).run(progress)


def plan_evaluation(
    models: Sequence[str | Path],
    texts: Sequence[str | Path],
    tokenizer: str | Path,
    *,
    length: int | None = None,
    windows: int | None = None,
) -> Plan:
    """Read models and texts, and check that they fit each other.

    Args:
        models: causal language models; the others are compared with the first.
        texts: UTF-8 files.
        tokenizer: the models' `tokenizer.json`, or the folder that holds it.
        length: tokens in a window; None for the models' context, as their graph or config.json
            says, at most `LONGEST_DEFAULT`.
        windows: the first windows of each text to use; None for all.

    Raises:
        UserError: a file is missing or is not what it should be, a text is shorter than one window,
            the tokenizer is another model's, a model cannot be evaluated, or onnxruntime is not
            installed.
    """
    paths, files, tokenizer = [*map(Path, models)], [*map(Path, texts)], Path(tokenizer)
    _check_request(paths, files, length, windows)
    require_onnxruntime()
    subjects = tuple(examine(path) for path in paths)
    length = _choose_length(subjects, length)
    encode = load_tokenizer(tokenizer)
    for subject in subjects:
        check_tokenizer(subject.path, tokenizer)
    cut = tuple(cut_windows(text, encode, length, windows) for text in files)
    for subject in subjects:
        check_vocabulary(subject.path, subject.vocabulary, cut, tokenizer)
    return Plan(subjects, cut, length)


def _check_request(
    models: Sequence[Path], texts: Sequence[Path], length: int | None, windows: int | None
) -> None:
    if not models or not texts:
        raise UserError(f"{len(models)} models and {len(texts)} texts", "at least one of each")
    if repeated := next((text for text in texts if list(texts).count(text) > 1), None):
        raise UserError(f"{repeated}: given twice", "each text once")
    if length is not None and length < 2:
        raise UserError(f"--length {length}", "at least 2: a window's first token is not scored")
    if windows is not None and windows < 1:
        raise UserError(f"--windows {windows}", "at least 1")


def _choose_length(subjects: Sequence[Subject], length: int | None) -> int:
    """The length asked for, or the models' own; what a graph fixes is not open to choice."""
    length = _default_length(subjects) if length is None else length
    for subject in subjects:
        if subject.fixed_length not in (None, length):
            raise UserError(
                f"{subject.path}: its graph takes {subject.fixed_length} tokens, not {length}",
                remedy=f"--length {subject.fixed_length}",
            )
    return length


def _default_length(subjects: Sequence[Subject]) -> int:
    fixed = next((subject.fixed_length for subject in subjects if subject.fixed_length is not None), None)
    context = next((subject.context for subject in subjects if subject.context is not None), None)
    if fixed is not None:
        return fixed
    if context is None:
        config = subjects[0].path.parent / "config.json"
        raise UserError(f"{config}: not found, or without a context length", remedy="give --length")
    return min(context, LONGEST_DEFAULT)


def _score_text(models: Sequence[LanguageModel], text: Windows, progress: Progress) -> list[Score]:
    """Score every model on one text."""
    scores = [Score() for _ in models]
    for tokens in text.ids:
        first = models[0].logits(tokens)
        score, reference = score_reference(first, tokens)
        scores[0] += score
        progress(1)
        for i, model in enumerate(models[1:], start=1):
            logits = model.logits(tokens)
            if logits.shape != first.shape:
                raise UserError(
                    f"{model.subject.path}: {logits.shape[1]} tokens in its vocabulary,"
                    f" {first.shape[1]} in that of {models[0].subject.path}",
                    "models of one vocabulary",
                )
            scores[i] += score_window(logits, tokens, reference)
            progress(1)
    return scores


def _json_value(value: object) -> object:
    """JSON has no infinities and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return value
