"""Reads off a model's file what its evaluation needs to know: nothing is run, no weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import read_model
from zq2onnx.passes.measure_sizes import bits_per_weight, file_bytes

INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""The inputs that evaluation knows how to feed, each `[batch, length]`."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")
_LOOKUPS = ("Gather", "GatherBlockQuantized")


@dataclass(frozen=True)
class Subject:
    """A causal language model under evaluation.

    Attributes:
        path: the file, as it was given.
        bytes: its size with all external data.
        bits_per_weight: as `passes.measure_sizes` counts; None where it counts none.
        inputs: names and dtypes of its inputs, all of them among `INPUTS`.
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
    config = _read_config(path.parent / "config.json")
    return Subject(
        path=path,
        bytes=size,
        bits_per_weight=bits_per_weight(model),
        inputs=tuple((value.name or "", _dtype(value)) for value in inputs),
        output=output.name or "",
        vocabulary=_vocabulary(model, output, config),
        fixed_length=next(filter(None, (_static(value, 1) for value in inputs)), None),
        context=next((config[key] for key in _CONTEXT_KEYS if key in config), None),
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
    if _static(value, 0) not in (None, 1):
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


def _vocabulary(model: ir.Model, logits: ir.Value, config: dict[str, int]) -> int | None:
    """The lesser of the logits' width and the rows that input_ids looks up; else what config.json says."""
    counts = [_static(logits, 2)]
    for value in model.graph.inputs:
        if value.name == "input_ids":
            counts += [_table_rows(use.node) for use in value.uses() if use.idx == 1]
    return min((count for count in counts if count), default=config.get("vocab_size"))


def _table_rows(node: ir.Node) -> int | None:
    """Rows of the embedding that a Gather or GatherBlockQuantized reads; None for other nodes."""
    if node.op_type not in _LOOKUPS or node.inputs[0] is None:
        return None
    table = node.inputs[0]
    producer = table.producer()
    if producer is not None and producer.op_type in ("DequantizeLinear", "Cast", "Identity"):
        table = producer.inputs[0] or table
    if table.const_value is None or len(table.const_value.shape) != 2:
        return None
    return int(table.const_value.shape.numpy()[0])


def _static(value: ir.Value, axis: int) -> int | None:
    """A dimension that the graph fixes, else None."""
    if value.shape is None or axis >= len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def _dtype(value: ir.Value) -> npt.DTypeLike:
    return np.int64 if value.dtype is None else value.dtype.numpy()


def _read_config(path: Path) -> dict[str, int]:
    """The positive integers of a config.json, those of its text_config included; {} without the file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object")
    nested = config.get("text_config")
    merged = {**config, **nested} if isinstance(nested, dict) else config
    return {key: value for key, value in merged.items() if type(value) is int and value > 0}
