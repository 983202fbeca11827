"""Compares quantized language models with a float one on texts: the flow of `zq2onnx eval`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.metrics import Reference, Score, score_reference, score_window
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.reference import ReferenceCache
from zq2onnx.evaluation.results import Evaluation, ModelScore
from zq2onnx.evaluation.session import LanguageModel, opened
from zq2onnx.evaluation.subject import Subject, choose_length, examine
from zq2onnx.language import check_tokenizer, check_vocabulary
from zq2onnx.runtime.providers import require_onnxruntime
from zq2onnx.text import Windows, cut_windows, load_tokenizer

Progress = Callable[[float], None]
"""Told how many windows were run since the last call."""


@dataclass(frozen=True)
class Plan:
    """An evaluation whose models and texts were read and found to fit each other."""

    subjects: tuple[Subject, ...]
    texts: tuple[Windows, ...]
    length: int
    stride: int | None = None

    @property
    def runs(self) -> int:
        """How many windows are to be run, over all models."""
        return len(self.subjects) * sum(len(text.ids) for text in self.texts)

    def run(
        self, progress: Progress | None = None, *, reference_cache: str | Path | None = None
    ) -> Evaluation:
        """Run every window once on every model.

        All models are open at once. For one window are held the first model's logits and
        probabilities, and the logits of one other model.

        Args:
            progress: is told of each window.
            reference_cache: a folder that keeps the first model's predictions; see `ReferenceCache`.

        Raises:
            UserError: ONNX Runtime cannot load or run a model, or their vocabularies differ.
        """
        advance = progress or (lambda amount: None)
        with contextlib.ExitStack() as stack:
            first = _First(self.subjects[0], stack, reference_cache)
            others = [
                LanguageModel(subject, stack.enter_context(opened(subject.path)))
                for subject in self.subjects[1:]
            ]
            scores = [_score_text(first, others, text, advance) for text in self.texts]
        return self._summarize(scores, first.vocabulary)

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
                    path=str(subject.path),
                    bytes=subject.bytes,
                    bits_per_weight=subject.bits_per_weight,
                    perplexity=perplexity,
                    mean=mean,
                    gap=gap,
                    top1=total.top1,
                    kl=total.kl,
                    paper_class=PaperClass.of(gap) if results else None,
                )
            )
        return Evaluation(tuple(results), self.length, total.positions, vocabulary, self.stride)


def evaluate(
    models: Sequence[str | Path],
    texts: Sequence[str | Path],
    tokenizer: str | Path,
    *,
    length: int | None = None,
    windows: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
    reference_cache: str | Path | None = None,
) -> Evaluation:
    """Measure perplexity, and how far each model's predictions are from the first one's.

    Each text is encoded whole without special tokens and cut into windows; a window's first token is
    not scored, and the text's tail that fills no window is dropped. bfloat16 models run as a float32
    copy, models with a KV cache with an empty one. See `plan_evaluation` for the arguments and errors.

    Args:
        progress: is told how many windows were run since the last call.
        reference_cache: a folder that keeps the first model's predictions from one call to the next,
            so that it is run once; see `ReferenceCache`. None to run it every time.
    """
    plan = plan_evaluation(models, texts, tokenizer, length=length, windows=windows, stride=stride)
    return plan.run(progress, reference_cache=reference_cache)


def plan_evaluation(
    models: Sequence[str | Path],
    texts: Sequence[str | Path],
    tokenizer: str | Path,
    *,
    length: int | None = None,
    windows: int | None = None,
    stride: int | None = None,
) -> Plan:
    """Read models and texts, and check that they fit each other.

    Args:
        models: causal language models; the others are compared with the first.
        texts: UTF-8 files.
        tokenizer: the models' `tokenizer.json`, or the folder that holds it.
        length: tokens in a window; None for the models' context, as their graph or config.json
            says, at most `LONGEST_DEFAULT`.
        windows: the first windows of each text to use; None for all.
        stride: tokens by which each window is ahead of the one before, 1 to `length`. Each token is
            scored once: a window's last `stride`, with what comes before them as context. None for
            windows that do not overlap.

    Raises:
        UserError: a file is missing or is not what it should be, a text is shorter than one window,
            the tokenizer is another model's, a model cannot be evaluated, or onnxruntime is not
            installed.
    """
    paths, files, tokenizer = [*map(Path, models)], [*map(Path, texts)], Path(tokenizer)
    check_request(paths, files, length, windows)
    require_onnxruntime()
    subjects = tuple(examine(path, _logits) for path in paths)
    length = choose_length(subjects, length)
    if stride is not None and not 1 <= stride <= length:
        raise UserError(f"--stride {stride}", f"1 to the {length} tokens of a window")
    encode = load_tokenizer(tokenizer)
    for subject in subjects:
        check_tokenizer(subject.path, tokenizer)
    cut = tuple(cut_windows(text, encode, length, windows, stride=stride) for text in files)
    for subject in subjects:
        check_vocabulary(subject.path, subject.vocabulary, cut, tokenizer)
    return Plan(subjects, cut, length, stride)


def check_request(
    models: Sequence[Path], texts: Sequence[Path], length: int | None, windows: int | None
) -> None:
    """Refuse what makes no sense whatever the files hold.

    Raises:
        UserError: there is no model or no text, a text is given twice, or a number is too small.
    """
    if not models or not texts:
        raise UserError(f"{len(models)} models and {len(texts)} texts", "at least one of each")
    if repeated := next((text for text in texts if list(texts).count(text) > 1), None):
        raise UserError(f"{repeated}: given twice", "each text once")
    if length is not None and length < 2:
        raise UserError(f"--length {length}", "at least 2: a window's first token is not scored")
    if windows is not None and windows < 1:
        raise UserError(f"--windows {windows}", "at least 1")


def _logits(path: Path, model: ir.Model) -> ir.Value:
    """The output named logits; where there is none, the first."""
    named = [value for value in model.graph.outputs if value.name == "logits"]
    output = named[0] if named else model.graph.outputs[0]
    rank = None if output.shape is None else len(output.shape)
    if output.name == "last_hidden_state" or rank not in (None, 3):
        raise UserError(
            f"{path}: its first output is {output.name} of shape {output.shape}",
            "logits [batch, length, vocabulary]: perplexity is that of a causal language model",
            "zq2onnx eval --task embedding compares the embeddings of encoders",
        )
    return output


class _First:
    """The model that others are compared with; it is loaded once its predictions are not in the cache."""

    def __init__(self, subject: Subject, stack: contextlib.ExitStack, cache: str | Path | None) -> None:
        self.subject = subject
        self.vocabulary = 0
        """Tokens that it predicts among, once it has been run."""
        self._stack = stack
        self._cache = None if cache is None else ReferenceCache(Path(cache), subject.path)
        self._model: LanguageModel | None = None

    def predictions(self, text: Windows) -> Generator[tuple[Score, Reference]]:
        """What it makes of each window."""
        if self._cache is None:
            return (self._predict(text, index) for index in range(len(text.ids)))
        return self._cache.predictions(text, self._predict)

    def _predict(self, text: Windows, index: int) -> tuple[Score, Reference]:
        if self._model is None:
            self._model = LanguageModel(self.subject, self._stack.enter_context(opened(self.subject.path)))
        tokens, first = text.ids[index], len(text.ids[index]) - text.scored(index) - 1
        return score_reference(self._model.logits(tokens)[first:], tokens[first:])


def _score_text(
    first: _First, others: Sequence[LanguageModel], text: Windows, progress: Progress
) -> list[Score]:
    """Score every model on one text."""
    scores = [Score() for _ in range(1 + len(others))]
    with contextlib.closing(first.predictions(text)) as predictions:
        for index, (score, reference) in enumerate(predictions):
            scores[0] += score
            first.vocabulary = reference.probabilities.shape[1]
            progress(1)
            tokens = text.ids[index]
            begin = len(tokens) - text.scored(index) - 1
            for i, model in enumerate(others, start=1):
                logits = model.logits(tokens)
                if logits.shape[1] != first.vocabulary:
                    raise UserError(
                        f"{model.subject.path}: {logits.shape[1]} tokens in its vocabulary,"
                        f" {first.vocabulary} in that of {first.subject.path}",
                        "models of one vocabulary",
                    )
                scores[i] += score_window(logits[begin:], tokens[begin:], reference)
                progress(1)
    return scores
