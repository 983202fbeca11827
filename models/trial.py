"""Asks a torch model a little, so that what is captured of it can be asked the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zq2onnx.models.cache import POSITIONS, takes_positions
from zq2onnx.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_LENGTHS = (6, 4)
"""Tokens of each prompt; the second is padded on the left."""


@dataclass(frozen=True)
class Turn:
    """One run of the model.

    Attributes:
        feeds: `input_ids` `[batch, tokens]`, `attention_mask` `[batch, past + tokens]`, perhaps
            `position_ids` `[batch, tokens]`; int64. The past is that of the turns before.
        expected: what torch gives, `[batch, tokens, width]`; float32.
    """

    feeds: Mapping[str, npt.NDArray[np.int64]]
    expected: npt.NDArray[np.float32]


def ask(loaded: Checkpoint, cached: bool) -> tuple[Turn, ...]:
    """Run two prompts of random tokens; with a cache, also one token after each.

    The cache is the model's own kind, whatever the capture makes of it.
    """
    import torch

    config: Any = loaded.model.config
    longest = max(_LENGTHS)
    vocabulary = config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (len(_LENGTHS), longest + 1))
    mask = np.array([[0] * (longest - length) + [1] * (length + 1) for length in _LENGTHS])
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    turns: list[Turn] = []
    cache = None
    with torch.no_grad():
        for start, end in ((0, longest), (longest, longest + 1)) if cached else ((0, longest),):
            feeds = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            if cached and takes_positions(loaded.model):
                feeds[POSITIONS] = positions[:, start:end]
            tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
            if cached:
                outputs = loaded.model(**tensors, past_key_values=cache, use_cache=True)
                cache = outputs.past_key_values
            else:
                outputs = loaded.model(**tensors)
            turns.append(Turn(feeds, _floats(outputs[loaded.output])))
    return tuple(turns)


def _floats(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.float().numpy())
