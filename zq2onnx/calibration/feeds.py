"""Makes every input of a graph from windows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.language import INPUTS, read_config

_NPZ = "--calib FILE.npz with the model's own inputs"
_HEADS, _PAST, _HEAD_SIZE = 1, 2, 3
"""Axes of a cache `[batch, heads, past, head size]`."""


def free_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that must be fed: those without a default."""
    return [value for value in model.graph.inputs if value.const_value is None]


def text_feeds(model: ir.Model, path: Path, ids: npt.NDArray[np.int64]) -> dict[str, np.ndarray]:
    """What a graph reads of windows of tokens: all of them attended to, after an empty past.

    Args:
        model: a model of text.
        path: its file.
        ids: `[samples, length]`.

    Returns:
        By input: `[samples, length]` in the input's own type, or a cache with an axis of length 0.

    Raises:
        UserError: it has an input that text cannot give.
    """
    made = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
        "token_type_ids": np.zeros_like(ids),
    }
    feeds = {}
    for value in free_inputs(model):
        name, dtype = value.name or "", np.int64 if value.dtype is None else value.dtype.numpy()
        if name in INPUTS and (value.shape is None or len(value.shape) == 2):
            feeds[name] = made[name].astype(dtype)
        elif name.startswith("past") and value.shape is not None and len(value.shape) == 4:
            shape = _past_shape(path, value, read_config(path))
            feeds[name] = np.zeros((len(ids), *shape[1:]), dtype)
        else:
            raise UserError(
                f"{path}: input {name} of shape {value.shape}",
                f"{', '.join(INPUTS)} of [batch, length] and past_key_values of"
                " [batch, heads, past, head size], which are what a text can give",
                _NPZ,
            )
    return feeds


def _past_shape(path: Path, value: ir.Value, config: Mapping[str, int]) -> list[int]:
    """Shape of an empty cache, its batch 1: what the graph does not fix, config.json says."""
    heads = config.get("num_attention_heads", config.get("n_head", 0))
    width = config.get("hidden_size", config.get("n_embd", 0))
    told = {
        0: 1,
        _HEADS: config.get("num_key_value_heads", heads),
        _PAST: 0,
        _HEAD_SIZE: config.get("head_dim", width // heads if heads else 0),
    }
    assert value.shape is not None
    shape = [size if isinstance(size, int) else told[axis] for axis, size in enumerate(value.shape)]
    if shape[_PAST] != 0 or not shape[_HEADS] or not shape[_HEAD_SIZE]:
        fixed = f"a past of {shape[_PAST]}" if shape[_PAST] else "heads that neither it nor config.json tells"
        raise UserError(
            f"{path}: input {value.name} is of shape {value.shape}, with {fixed}",
            "[batch, heads, past, head size] with a past that may be empty",
            _NPZ,
        )
    return shape
