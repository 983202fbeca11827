"""Inputs to try a model with: four tokens, and a cache that holds nothing yet."""

from __future__ import annotations

from zq2onnx.packaging.source import Value

TOKENS = 4
POSITIONS = "position_ids"
"""The input that counts the tokens, from 0; other integers are 1."""
_CACHE = "past_key_values."


def is_cache(value: Value) -> bool:
    """Whether an input is the keys or values of earlier tokens."""
    return value.name.startswith(_CACHE)


def example_shape(value: Value) -> list[int]:
    """A shape that the input takes: one sample, `TOKENS` of everything else that is free, no past."""
    free = 0 if is_cache(value) else TOKENS
    return [dim if isinstance(dim, int) else 1 if axis == 0 else free for axis, dim in enumerate(value.shape)]
