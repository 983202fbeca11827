"""Whether a model's predictions are worth comparing with: else the numbers would mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from zq2onnx.evaluation.results import Evaluation


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
                "the tokenizer that the model was trained with",
            )
