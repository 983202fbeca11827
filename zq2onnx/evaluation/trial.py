"""How far a captured model's answers are from those that torch gave to the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.evaluation.model_file import read_model
from zq2onnx.evaluation.session import opened
from zq2onnx.feeds import feed_text, text_inputs


class Turn(Protocol):
    """One run of the model, and what torch gave."""

    @property
    def feeds(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """`input_ids` `[batch, tokens]`, `attention_mask` `[batch, past + tokens]`, and others."""

    @property
    def expected(self) -> npt.NDArray[np.float32]:
        """`[batch, tokens, width]`."""


def shown(turn: Turn) -> npt.NDArray[np.bool_]:
    """Which of a turn's tokens are shown, and not padding: `[batch, tokens]`."""
    return turn.feeds["attention_mask"][:, -turn.feeds["input_ids"].shape[1] :] != 0


def largest_difference(path: Path, turns: Sequence[Turn]) -> float:
    """Run the turns one after the other on ONNX Runtime's CPU provider; bfloat16 models as a float32 copy.

    The first begins with an empty cache, and each hands its `present` to the next one as `past_key_values`.

    Args:
        path: a model whose first output torch gave too.
        turns: what it is asked.

    Returns:
        The largest difference of the first output at a token that is shown; NaN where one is not finite.

    Raises:
        CheckFailed: ONNX Runtime cannot run the model.
        UserError: it cannot load it, or there is no room for a float32 copy.
    """
    model = read_model(path)
    inputs = text_inputs(model, path, "")
    names = [value.name or "" for value in model.graph.outputs]
    past: dict[str, np.ndarray] = {}
    worst = [0.0]
    with opened(path, lean=True) as session:
        for turn in turns:
            ids, mask = turn.feeds["input_ids"], turn.feeds["attention_mask"]
            feeds = {**feed_text(inputs, ids, mask), **turn.feeds, **past}
            try:
                answer, *present = session.run(names, feeds, f"{ids.shape[1]} tokens")
            except UserError as error:  # the graph is wrong, and not what it was asked
                raise CheckFailed(str(error)) from error
            past = {
                name.replace("present", "past_key_values", 1): value
                for name, value in zip(names[1:], present, strict=True)
            }
            with np.errstate(invalid="ignore"):  # infinite in both: NaN, which is told as an error
                difference = np.abs(answer.astype(np.float32) - turn.expected)
            worst.append(float(difference[shown(turn)].max()))
    return float(np.max(worst))  # which a NaN wins
