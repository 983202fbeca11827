"""Makes every input of a graph from tokens: what a text can give, and a cache that holds nothing yet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.language import INPUTS, free_inputs, read_config

_CACHE = re.compile(r"past|cache", re.IGNORECASE)
_PAST = re.compile(r"past|seq", re.IGNORECASE)


@dataclass(frozen=True)
class TextInput:
    """One input of a model of text.

    Attributes:
        name: of the input.
        dtype: as the graph says.
        cache: of a cache, its shape with a past of length 0 and None for the batch; else None.
    """

    name: str
    dtype: npt.DTypeLike
    cache: tuple[int | None, ...] | None = None


def text_inputs(model: ir.Model, path: Path, remedy: str) -> tuple[TextInput, ...]:
    """How a graph's inputs are made from text.

    Args:
        model: a model of text.
        path: its file, beside which config.json is looked for.
        remedy: what to do about an input that text cannot give.

    Raises:
        UserError: it has one, or a cache whose sizes neither the graph nor config.json tells.
    """
    config = read_config(path)
    return tuple(_text_input(value, path, config, remedy) for value in free_inputs(model))


def feed_text(
    inputs: Sequence[TextInput], ids: npt.NDArray[np.integer], mask: npt.NDArray[np.integer] | None = None
) -> dict[str, np.ndarray]:
    """What a model reads of windows of tokens, after an empty past.

    Args:
        inputs: what `text_inputs` returned.
        ids: `[samples, length]`.
        mask: `[samples, length]`, 0 for tokens not to be attended to; None for none of these.

    Returns:
        By input: `[samples, length]` in the input's own type, or a cache with an axis of length 0.
    """
    made = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids) if mask is None else mask,
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
        "token_type_ids": np.zeros_like(ids),
    }
    return {
        each.name: made[each.name].astype(each.dtype)
        if each.cache is None
        else np.zeros([len(ids) if size is None else size for size in each.cache], each.dtype)
        for each in inputs
    }


def _text_input(value: ir.Value, path: Path, config: Mapping[str, int], remedy: str) -> TextInput:
    name, dtype = value.name or "", np.int64 if value.dtype is None else value.dtype.numpy()
    if name in INPUTS and (value.shape is None or len(value.shape) == 2):
        return TextInput(name, dtype)
    if name not in INPUTS and _CACHE.search(name) and value.shape is not None and len(value.shape) in (4, 5):
        return TextInput(name, dtype, _cache_shape(path, value, config, remedy))
    raise UserError(
        f"{path}: input {name} of shape {value.shape}",
        f"{', '.join(INPUTS)} of [batch, length] and past_key_values of"
        " [batch, heads, past, head size], which are what a text can give",
        remedy,
    )


def _cache_shape(
    path: Path, value: ir.Value, config: Mapping[str, int], remedy: str
) -> tuple[int | None, ...]:
    """Shape of an empty cache: what the graph does not fix, config.json says.

    With five axes, the first one is keys and values.
    """
    assert value.shape is not None
    batch = len(value.shape) - 4
    past = _past_axis(value, batch)
    heads, size = (axis for axis in range(batch + 1, len(value.shape)) if axis != past)
    count = config.get("num_attention_heads", config.get("n_head", 0))
    width = config.get("hidden_size", config.get("n_embd", 0))
    told = {
        past: 0,
        heads: config.get("num_key_value_heads", count),
        size: config.get("head_dim", width // count if count else 0),
    }
    shape = [told.get(axis, 0) if not isinstance(dim, int) else dim for axis, dim in enumerate(value.shape)]
    if shape[past] != 0 or not all(shape[axis] for axis in (*range(batch), heads, size)):
        fixed = f"a past of {shape[past]}" if shape[past] else "heads that neither it nor config.json tells"
        raise UserError(
            f"{path}: input {value.name} is of shape {value.shape}, with {fixed}",
            "[batch, heads, past, head size] with a past that may be empty",
            remedy,
        )
    return tuple(None if axis == batch else length for axis, length in enumerate(shape))


def _past_axis(value: ir.Value, batch: int) -> int:
    """The axis that grows: the one named so, or the only one not fixed; else that before the last."""
    assert value.shape is not None
    free = {
        axis: str(dim) for axis, dim in enumerate(value.shape) if axis > batch and not isinstance(dim, int)
    }
    named = [axis for axis, name in free.items() if _PAST.search(name)]
    candidates = named if len(named) == 1 else list(free)
    return candidates[0] if len(candidates) == 1 else len(value.shape) - 2
