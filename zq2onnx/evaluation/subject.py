"""Reads off a model's file what its evaluation needs to know: nothing is run, no weight is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.configuration import context_length
from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import read_model
from zq2onnx.feeds import TextInput, text_inputs
from zq2onnx.language import (
    INPUTS,
    fixed_length,
    free_inputs,
    read_config,
    static_dim,
    vocabulary,
)
from zq2onnx.passes.measure_sizes import bits_per_weight, file_bytes

LONGEST_DEFAULT = 2048
"""No default length exceeds this: published perplexities are those of windows of 2048 tokens."""

_OWN_INPUTS = "zq2onnx eval --npz FILE with the model's own inputs measures the error of its outputs"

ChooseOutput = Callable[[Path, ir.Model], ir.Value]


@dataclass(frozen=True)
class ModelFile:
    """A model file's size.

    Attributes:
        path: the file, as it was given.
        bytes: its size with all external data.
        bits_per_weight: as `passes.measure_sizes` counts; None where it counts none.
    """

    path: Path
    bytes: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class Subject(ModelFile):
    """A model of text under evaluation.

    Attributes:
        inputs: how they are made from text.
        output: name of the output that is measured.
        vocabulary: the least count of tokens that its graph or config.json admits; None where
            neither tells.
        fixed_length: the one length its graph takes; None where it takes any.
        context: the longest text that its config.json promises; None where that is not said.
    """

    inputs: tuple[TextInput, ...]
    output: str
    vocabulary: int | None
    fixed_length: int | None
    context: int | None


def measure_file(path: Path, model: ir.Model) -> ModelFile:
    """Measure a model file.

    Raises:
        UserError: its external data is missing.
    """
    try:
        size = file_bytes(path)
    except OSError as error:
        raise UserError(
            f"{path}: its external data {error.filename} cannot be read ({error.strerror})"
        ) from error
    return ModelFile(path, size, bits_per_weight(model))


def examine(path: Path, choose_output: ChooseOutput) -> Subject:
    """Read a text model's description.

    Args:
        path: the file.
        choose_output: finds the output to measure, or raises UserError.

    Raises:
        UserError: the file or its external data is missing, it is no ONNX model, or no text can give
            what it reads.
    """
    model = read_model(path)
    file = measure_file(path, model)
    inputs = free_inputs(model)
    if not any(value.name == "input_ids" for value in inputs):
        raise UserError(f"{path}: no input named input_ids", "a model that reads text", _OWN_INPUTS)
    for value in inputs:
        if value.name in INPUTS and static_dim(value, 0) not in (None, 1):
            raise UserError(
                f"{path}: input {value.name} is of shape {value.shape}", "a batch of 1, or a dynamic one"
            )
    made = text_inputs(model, path, _OWN_INPUTS)
    output = choose_output(path, model)
    config = read_config(path)
    return Subject(
        path=path,
        bytes=file.bytes,
        bits_per_weight=file.bits_per_weight,
        inputs=made,
        output=output.name or "",
        vocabulary=vocabulary(model, output if output.name == "logits" else None, config),
        fixed_length=fixed_length(inputs),
        context=context_length(config),
    )


def choose_length(subjects: Sequence[Subject], length: int | None) -> int:
    """The length asked for, or the models' own; what a graph fixes is not open to choice.

    Raises:
        UserError: a graph takes another length, or nothing tells a length.
    """
    length = _default_length(subjects) if length is None else length
    for subject in subjects:
        if subject.fixed_length not in (None, length):
            raise UserError(
                f"{subject.path}: its graph takes {subject.fixed_length} tokens, not {length}",
                remedy=f"--length {subject.fixed_length}",
            )
    return length


def _default_length(subjects: Sequence[Subject]) -> int:
    fixed = next((subject.fixed_length for subject in subjects if subject.fixed_length is not None), None)
    context = next((subject.context for subject in subjects if subject.context is not None), None)
    if fixed is not None:
        return fixed
    if context is None:
        config = subjects[0].path.parent / "config.json"
        raise UserError(f"{config}: not found, or without a context length", remedy="give --length")
    return min(context, LONGEST_DEFAULT)
