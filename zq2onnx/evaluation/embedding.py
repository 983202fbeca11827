"""Compares quantized encoders with a float one: how near their embeddings of sentences are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.comparison import check_request
from zq2onnx.evaluation.results import EmbeddingEvaluation, EmbeddingScore
from zq2onnx.evaluation.sentences import SentenceEncoder, Sentences
from zq2onnx.evaluation.session import Session, opened
from zq2onnx.evaluation.subject import Subject, choose_length, examine
from zq2onnx.feeds import feed_text
from zq2onnx.language import check_tokenizer, check_vocabulary
from zq2onnx.runtime.providers import require_onnxruntime

HIDDEN = "last_hidden_state"
POOLED = ("sentence_embedding", "pooler_output", "pooled_output", "text_embeds", "embeddings", "embedding")
"""Outputs `[batch, width]` that are embeddings, by preference."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class EmbeddingPlan:
    """A comparison of encoders whose models and texts were read and found to fit each other."""

    subjects: tuple[Subject, ...]
    texts: tuple[Sentences, ...]
    length: int
    padding: int

    @property
    def runs(self) -> int:
        """How many sentences are to be run, over all models."""
        return len(self.subjects) * sum(map(len, self.texts))

    def run(self, progress: Progress | None = None) -> EmbeddingEvaluation:
        """Run every sentence once on every model, one at a time.

        Raises:
            UserError: ONNX Runtime cannot load or run a model, or their embeddings differ in width.
        """
        advance = progress or (lambda amount: None)
        with contextlib.ExitStack() as stack:
            models = [
                Embedder(subject, stack.enter_context(opened(subject.path)), self.padding)
                for subject in self.subjects
            ]
            cosines = [_compare(models, text, advance) for text in self.texts]
        return self._summarize(cosines)

    def _summarize(self, cosines: list[npt.NDArray[np.float64]]) -> EmbeddingEvaluation:
        """Gather `cosines[text][model, sentence]`."""
        together = np.concatenate(cosines, axis=1)
        results = tuple(
            EmbeddingScore(
                path=str(subject.path),
                bytes=subject.bytes,
                bits_per_weight=subject.bits_per_weight,
                cosine={
                    str(text.text): float(of[i].mean()) for text, of in zip(self.texts, cosines, strict=True)
                },
                mean_cosine=float(together[i].mean()),
                percentile_1=float(np.percentile(together[i], 1)),
                least_cosine=float(together[i].min()),
            )
            for i, subject in enumerate(self.subjects)
        )
        return EmbeddingEvaluation(results, self.length, together.shape[1], self.subjects[0].output)


def plan_embedding(
    models: Sequence[str | Path],
    texts: Sequence[str | Path],
    tokenizer: str | Path,
    *,
    length: int | None = None,
    sentences: int | None = None,
) -> EmbeddingPlan:
    """Read encoders and texts, and check that they fit each other.

    Args:
        models: encoders; the others are compared with the first.
        texts: UTF-8 files; every line that is not blank is a sentence.
        tokenizer: the models' `tokenizer.json`, or the folder that holds it; its special tokens are added.
        length: tokens that a sentence is cut to; None for what the graph, the tokenizer's own truncation
            or config.json says, in this order.
        sentences: the first of each text to use; None for all.

    Raises:
        UserError: there is nothing to compare, a file is missing or is not what it should be, a text has
            no sentence, the tokenizer is another model's, a model gives no embedding, or onnxruntime is
            not installed.
    """
    paths, files, tokenizer = [*map(Path, models)], [*map(Path, texts)], Path(tokenizer)
    check_request(paths, files, length, sentences)
    check_several(paths)
    require_onnxruntime()
    subjects = tuple(examine(path, embedding_output) for path in paths)
    for subject in subjects[1:]:
        if subject.output != subjects[0].output:
            raise UserError(
                f"{subject.path}: its embedding is {subject.output}, that of {subjects[0].path} is"
                f" {subjects[0].output}",
                "models with the same outputs",
            )
    encoder = SentenceEncoder(tokenizer)
    if length is None and not any(subject.fixed_length for subject in subjects):
        length = encoder.longest
    length = choose_length(subjects, length)
    for subject in subjects:
        check_tokenizer(subject.path, tokenizer)
    read = tuple(encoder.read(text, length, sentences) for text in files)
    for subject in subjects:
        check_vocabulary(subject.path, subject.vocabulary, read, tokenizer)
    return EmbeddingPlan(subjects, read, length, encoder.padding)


def check_several(models: Sequence[Path]) -> None:
    """Refuse a single model where all that is measured is a difference.

    Raises:
        UserError: there is but one.
    """
    if len(models) < 2:
        raise UserError(
            f"{models[0]}: one model, with nothing to compare it with",
            "the float model and at least one more",
            "give FLOAT.onnx QUANT.onnx",
        )


def embedding_output(path: Path, model: ir.Model) -> ir.Value:
    """The output that embeddings are made of.

    `last_hidden_state`, else the first `[batch, length, width]` of a float type that is not logits, else a
    pooled one by its name.

    Raises:
        UserError: there is none.
    """
    floats = [
        value for value in model.graph.outputs if value.dtype is None or value.dtype.is_floating_point()
    ]
    ranked: dict[int, list[ir.Value]] = {3: [], 2: []}
    for value in floats:
        if value.shape is not None and value.name != "logits":
            ranked.get(len(value.shape), []).append(value)
    pooled = sorted(
        (value for value in ranked[2] if value.name in POOLED),
        key=lambda value: POOLED.index(value.name or ""),
    )
    named = [value for value in floats if value.name == HIDDEN]
    if found := [*named, *ranked[3], *pooled]:
        return found[0]
    names = ", ".join(f"{value.name} {value.shape}" for value in model.graph.outputs)
    raise UserError(
        f"{path}: none of its outputs is an embedding: {names}",
        f"{HIDDEN} [batch, length, width], or one of {', '.join(POOLED)}",
        "--task perplexity is for causal language models",
    )


class Embedder:
    """An encoder, loaded.

    Args:
        subject: what the file says of itself.
        session: runs it.
        padding: the id that fills up a graph of fixed length.
    """

    def __init__(self, subject: Subject, session: Session, padding: int) -> None:
        self.subject = subject
        self._session = session
        self._padding = padding

    def embed(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """The embedding of one sentence, of unit length: float64 `[width]`.

        Raises:
            UserError: ONNX Runtime cannot run it, or its output is no embedding of these tokens.
        """
        length = self.subject.fixed_length or len(tokens)
        ids = np.full((1, length), self._padding, np.int32)
        ids[0, : len(tokens)] = tokens
        mask = np.zeros((1, length), np.int32)
        mask[0, : len(tokens)] = 1
        feeds = feed_text(self.subject.inputs, ids, mask)
        what = f"a sentence of {length} tokens"
        (output,) = self._session.run([self.subject.output], feeds, what, "try a smaller --length")
        if output.shape[:-1] not in ((1, length), (1,)):
            raise UserError(
                f"{self.subject.path}: output {self.subject.output} is of shape {list(output.shape)} for"
                f" {length} tokens",
                "[1, length, width] or [1, width]",
            )
        attended = output[0, : len(tokens)] if output.ndim == 3 else output
        mean = attended.astype(np.float64).mean(axis=0)
        norm = float(np.linalg.norm(mean))
        with np.errstate(invalid="ignore"):  # infinite numbers make NaN, and NaN is what is reported
            return np.asarray(mean / norm if norm else mean, np.float64)


def _compare(models: Sequence[Embedder], text: Sentences, progress: Progress) -> npt.NDArray[np.float64]:
    """Cosine similarities to the first model's embeddings: float64 `[models, sentences]`."""
    cosines = np.empty((len(models), len(text)))
    for index in range(len(text)):
        tokens = text.sentence(index)
        first: npt.NDArray[np.float64] | None = None
        for i, model in enumerate(models):
            found = model.embed(tokens)
            first = found if first is None else first
            if found.shape != first.shape:
                raise UserError(
                    f"{model.subject.path}: embeddings of {len(found)} numbers, {len(first)} in those of"
                    f" {models[0].subject.path}",
                    "models with the same outputs",
                )
            cosines[i, index] = found @ first
            progress(1)
    return cosines
