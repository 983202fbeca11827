"""What a language model's graph takes and gives: tokens, mask, positions, and its key-value cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TEXT = ("input_ids", "attention_mask", "position_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_REQUIRED = "input_ids, attention_mask, [position_ids], past_key_values.N.key and .value"


@dataclass(frozen=True)
class CacheTensor:
    """The keys, or the values, of one layer.

    Attributes:
        past: the input `[batch, heads, past, head size]`.
        present: the output `[batch, heads, past + sequence, head size]`.
        heads, head_size: its fixed dimensions.
        dtype: of both.
    """

    past: str
    present: str
    heads: int
    head_size: int
    dtype: npt.DTypeLike

    def empty(self, batch: int) -> np.ndarray:
        """A past of no tokens."""
        return np.zeros((batch, self.heads, 0, self.head_size), self.dtype)


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a causal language model with a cache.

    Attributes:
        text: of `input_ids`, `attention_mask` and `position_ids` those that the graph has, with their types.
        cache: its tensors, each an input and an output.
        vocabulary: width of `logits`; None where the graph does not fix it.
    """

    text: dict[str, npt.DTypeLike]
    cache: tuple[CacheTensor, ...]
    vocabulary: int | None


def read_signature(path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> Signature:
    """The signature of a session's model.

    Args:
        path: the model, for messages.
        inputs, outputs: what `InferenceSession.get_inputs` and `get_outputs` return.

    Raises:
        UserError: it is no causal language model with a cache that may be empty.
    """
    given = {value.name: value for value in outputs}
    text: dict[str, npt.DTypeLike] = {}
    cache = []
    for value in inputs:
        if value.name in _TEXT and value.type in _INTEGERS:
            text[value.name] = _INTEGERS[value.type]
        elif _PAST.fullmatch(value.name):
            cache.append(_cache_tensor(path, value, given))
        else:
            raise UserError(f"{path}: input {value.name}, {value.type}{value.shape}", _REQUIRED)
    if "input_ids" not in text or "logits" not in given:
        missing = "input input_ids" if "logits" in given else "output logits"
        raise UserError(f"{path}: no {missing}", "a causal language model")
    if not cache:
        raise UserError(
            f"{path}: a graph without key-value cache",
            _REQUIRED,
            "export the model again, without --no-cache",
        )
    width = given["logits"].shape[-1]
    return Signature(text, tuple(cache), width if isinstance(width, int) else None)


def _cache_tensor(path: Path, value: Any, outputs: dict[str, Any]) -> CacheTensor:
    present = value.name.replace("past_key_values", "present", 1)
    if present not in outputs:
        raise UserError(f"{path}: input {value.name}, and no output {present}", "an output for each of them")
    if value.type not in _FLOATS:
        raise UserError(
            f"{path}: input {value.name} is {value.type}",
            "float32 or float16, which NumPy has",
            "export it with --dtype fp16, or run it by onnxruntime-genai",
        )
    shape = list(value.shape)
    fixed = len(shape) == 4 and all(isinstance(shape[axis], int) for axis in (1, 3))
    if not fixed or isinstance(shape[2], int):
        raise UserError(f"{path}: input {value.name} is of shape {shape}", "[batch, heads, past, head size]")
    return CacheTensor(value.name, present, shape[1], shape[3], _FLOATS[value.type])
