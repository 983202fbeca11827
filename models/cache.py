"""The KV cache of a causal language model: what is in it, and a model's forward pass over it as tensors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zq2onnx.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

POSITIONS = "position_ids"

_POSITIONS_FROM_MASK = frozenset({"opt"})
"""Model types that take `position_ids`, and count them from the mask where none are given. All others
number what they are given from the end of the past, padding included."""


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether text that is padded on the left is right only where positions are given with it."""
    config: Any = model.config
    return (
        config.model_type not in _POSITIONS_FROM_MASK
        and POSITIONS in inspect.signature(model.forward).parameters
    )


def check_cache(model: torch.nn.Module) -> None:
    """Refuse a model that remembers more of a text than keys and values.

    Raises:
        UserError: it keeps states, as Mamba does, or shares keys and values between layers.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    config: Any = model.config
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    odd = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
    if odd or getattr(model, "_is_stateful", False):
        raise UserError(
            f"{type(model).__name__} remembers {', '.join(odd) or 'states'}",
            "keys and values of every layer and nothing else, which is what a KV cache holds",
            "try --no-cache",
        )


def run_cached(
    model: torch.nn.Module, text: dict[str, torch.Tensor], past: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """One pass over new tokens, with the past as plain tensors.

    A sliding window is the mask's business here: what has left it stays in the cache, so that all layers
    have the past's length.

    Args:
        model: a causal language model.
        text: `input_ids` `[batch, sequence]`, `attention_mask` `[batch, past + sequence]`, perhaps
            `position_ids` `[batch, sequence]`; int64.
        past: key and value of each layer in turn, `[batch, heads, past, width]`; empty for no past.

    Returns:
        Logits `[batch, sequence, vocabulary]`, then keys and values `[batch, heads, past + sequence, width]`.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    logits = model(**text, past_key_values=cache, use_cache=True).logits
    return (logits, *_tensors(cache))


def _tensors(cache: DynamicCache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
