"""Whether models, texts and a tokenizer belong together: else the numbers would mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zq2onnx.errors import UserError
from zq2onnx.evaluation.subject import Subject
from zq2onnx.evaluation.text import Windows, base_vocabulary, tokenizer_file

if TYPE_CHECKING:
    from zq2onnx.evaluation.comparison import Evaluation

_REQUIRED = "the tokenizer that the model was trained with"


def check_tokenizer(subject: Subject, tokenizer: Path) -> None:
    """Refuse a tokenizer whose tokens are not those of the one beside the model.

    Tokens added later, such as a chat's, may differ.

    Raises:
        UserError: they are another model's, or one of the files cannot be read.
    """
    given, own = tokenizer_file(tokenizer), subject.path.parent / "tokenizer.json"
    if not own.is_file() or given.read_bytes() == own.read_bytes():
        return
    ours, theirs = base_vocabulary(given), base_vocabulary(own)
    if ours != theirs:
        differing = len(ours.items() ^ theirs.items())
        raise UserError(
            f"{given}: its {len(ours)} tokens are not the {len(theirs)} of {own}, beside {subject.path}"
            f" ({differing} differ)",
            _REQUIRED,
            f"--tokenizer {own}",
        )


def check_vocabulary(subject: Subject, texts: Sequence[Windows], tokenizer: Path) -> None:
    """Refuse ids that the model does not know.

    Raises:
        UserError: a text holds one.
    """
    for text in texts:
        if subject.vocabulary is not None and text.largest_id >= subject.vocabulary:
            raise UserError(
                f"{tokenizer}: it encodes {text.text} with ids up to {text.largest_id}, and"
                f" {subject.path} knows {subject.vocabulary} tokens: it is another model's tokenizer",
                _REQUIRED,
            )


def check_perplexity(evaluation: Evaluation) -> None:
    """Refuse to compare with a model that predicts worse than one that knows nothing.

    Raises:
        UserError: the first model's perplexity on a text is above the count of tokens it chose from.
    """
    first = evaluation.models[0]
    for text, perplexity in first.perplexity.items():
        if perplexity > evaluation.vocabulary:
            raise UserError(
                f"{first.path}: its perplexity on {text} is {perplexity:.4g}, and guessing among its"
                f" {evaluation.vocabulary} tokens has less: probably tokenizer and model do not match",
                _REQUIRED,
            )
