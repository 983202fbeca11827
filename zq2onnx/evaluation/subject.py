"""Reads off a model's file what its evaluation needs to know: nothing is run, no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import read_model
from zq2onnx.language import INPUTS, context_length, fixed_length, read_config, static_dim, vocabulary
from zq2onnx.passes.measure_sizes import bits_per_weight, file_bytes


@dataclass(frozen=True)
class Subject:
    """A causal language model under evaluation.

    Attributes:
        path: the file, as it was given.
        bytes: its size with all external data.
        bits_per_weight: as `passes.measure_sizes` counts; None where it counts none.
        inputs: names and dtypes of its inputs, all of them among `language.INPUTS`.
        output: name of the output that holds the logits.
        vocabulary: the least count of tokens that its graph or config.json admits; None where
            neither tells.
        fixed_length: the one length its graph takes; None where it takes any.
        context: the longest text that its config.json promises; None where that is not said.
    """

    path: Path
    bytes: int
    bits_per_weight: float | None
    inputs: tuple[tuple[str, npt.DTypeLike], ...]
    output: str
    vocabulary: int | None
    fixed_length: int | None
    context: int | None


def examine(path: Path) -> Subject:
    """Read a model's description.

    Raises:
        UserError: the file or its external data is missing, it is no ONNX model, or it is no causal
            language model that can be fed whole windows.
    """
    model = read_model(path)
    try:
        size = file_bytes(path)
    except OSError as error:
        raise UserError(
            f"{path}: its external data {error.filename} cannot be read ({error.strerror})"
        ) from error
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    for value in inputs:
        _check_input(path, value)
    if not any(value.name == "input_ids" for value in inputs):
        raise UserError(f"{path}: no input named input_ids", "a causal language model")
    output = _logits(path, model)
    config = read_config(path)
    return Subject(
        path=path,
        bytes=size,
        bits_per_weight=bits_per_weight(model),
        inputs=tuple((value.name or "", _dtype(value)) for value in inputs),
        output=output.name or "",
        vocabulary=vocabulary(model, output, config),
        fixed_length=fixed_length(inputs),
        context=context_length(config),
    )


def _check_input(path: Path, value: ir.Value) -> None:
    """Refuse an input that evaluation cannot feed."""
    name = value.name or ""
    if name.startswith(("past", "cache")):
        raise UserError(
            f"{path}: input {name}",
            "a model without a KV cache, which eval does not support yet",
            "export it with --no-cache",
        )
    if name not in INPUTS:
        raise UserError(f"{path}: unknown input {name}", f"no inputs but {', '.join(INPUTS)}")
    if value.shape is not None and len(value.shape) != 2:
        raise UserError(f"{path}: input {name} is of shape {value.shape}", "[batch, length]")
    if static_dim(value, 0) not in (None, 1):
        raise UserError(f"{path}: input {name} is of shape {value.shape}", "a batch of 1, or a dynamic one")


def _logits(path: Path, model: ir.Model) -> ir.Value:
    """The output named logits; where there is none, the first."""
    named = [value for value in model.graph.outputs if value.name == "logits"]
    output = named[0] if named else model.graph.outputs[0]
    rank = None if output.shape is None else len(output.shape)
    if output.name == "last_hidden_state" or rank not in (None, 3):
        raise UserError(
            f"{path}: its first output is {output.name} of shape {output.shape}",
            "logits [batch, length, vocabulary]: perplexity is that of a causal language model",
        )
    return output


def _dtype(value: ir.Value) -> npt.DTypeLike:
    return np.int64 if value.dtype is None else value.dtype.numpy()
