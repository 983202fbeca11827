"""What a language model's graph takes and gives: tokens, mask, positions, and its key-value cache."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zq2onnx.errors import UserError

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TEXT = ("input_ids", "attention_mask", "position_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_BFLOAT16 = "tensor(bfloat16)"
_REQUIRED = "input_ids, attention_mask, [position_ids], past_key_values.N.key and .value"


@dataclass(frozen=True)
class CacheTensor:
    """The keys, or the values, of one layer.

    Attributes:
        past: the input `[batch, heads, past, head size]`.
        present: the output `[batch, heads, past + sequence, head size]`.
        heads, head_size: its fixed dimensions.
        type: of both, as ONNX Runtime says it: `tensor(float)`.
    """

    past: str
    present: str
    heads: int
    head_size: int
    type: str

    def empty(self, batch: int) -> np.ndarray:
        """A past of no tokens; of a type that NumPy has."""
        return np.zeros((batch, self.heads, 0, self.head_size), _FLOATS[self.type])


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

    def check_types(self, path: Path) -> None:
        """Refuse a cache that NumPy cannot hold.

        Raises:
            UserError: it is bfloat16.
        """
        if any(tensor.type == _BFLOAT16 for tensor in self.cache):
            raise UserError(
                f"{path}: its cache is bfloat16",
                "float32 or float16, which NumPy has",
                "export it with --dtype fp16, or run it by onnxruntime-genai",
            )


class GraphValue(Protocol):
    """An input or output, as ONNX Runtime describes it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> str:
        """As `tensor(int64)`."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Its dimensions; those that are free have a name, or none."""


def read_signature(path: Path, inputs: Sequence[GraphValue], outputs: Sequence[GraphValue]) -> Signature:
    """The signature of a session's model.

    Args:
        path: the model, for messages.
        inputs, outputs: what `InferenceSession.get_inputs` and `get_outputs` return, or its like.

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


def _cache_tensor(path: Path, value: GraphValue, outputs: Mapping[str, GraphValue]) -> CacheTensor:
    present = value.name.replace("past_key_values", "present", 1)
    if present not in outputs:
        raise UserError(f"{path}: input {value.name}, and no output {present}", "an output for each of them")
    if value.type not in (*_FLOATS, _BFLOAT16):
        raise UserError(f"{path}: input {value.name} is {value.type}", "float32, float16 or bfloat16")
    match list(value.shape):
        case [_, int(heads), past, int(head_size)] if not isinstance(past, int):
            return CacheTensor(value.name, present, heads, head_size, value.type)
    raise UserError(
        f"{path}: input {value.name} is of shape {list(value.shape)}",
        "[batch, heads, past, head size] with a past that may be empty",
    )
