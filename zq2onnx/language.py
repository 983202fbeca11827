"""What a language model's graph and its config.json say of the texts it takes, and whose tokenizer it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from zq2onnx.configuration import positive_integers, read_configuration
from zq2onnx.errors import UserError
from zq2onnx.text import base_vocabulary, tokenizer_file

INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""The inputs that text alone can give, each `[batch, length]`."""

_LOOKUPS = ("Gather", "GatherBlockQuantized")
_REQUIRED = "the tokenizer that the model was trained with"


class EncodedText(Protocol):
    """A text as tokens."""

    @property
    def text(self) -> Path:
        """The file."""

    @property
    def largest_id(self) -> int:
        """The greatest id of what is used of it."""


def read_config(model: Path) -> dict[str, int]:
    """The positive integers of the config.json beside a model, those of its text_config included.

    Returns:
        {} where there is no such file.

    Raises:
        UserError: the file cannot be read or is no JSON object.
    """
    return positive_integers(read_configuration(model.parent))


def fixed_length(inputs: Sequence[ir.Value]) -> int | None:
    """The one length of text that a graph takes; None where it takes any."""
    return next(filter(None, (static_dim(value, 1) for value in inputs if value.name in INPUTS)), None)


def vocabulary(model: ir.Model, logits: ir.Value | None, config: Mapping[str, int]) -> int | None:
    """The lesser of the logits' width and the rows that input_ids looks up; else what config.json says.

    Args:
        model: a language model.
        logits: its output `[batch, length, vocabulary]`; None where it has none.
        config: what `read_config` returned.
    """
    counts = [] if logits is None else [static_dim(logits, 2)]
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


def free_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that must be fed: those without a default."""
    return [value for value in model.graph.inputs if value.const_value is None]


def static_dim(value: ir.Value, axis: int) -> int | None:
    """A dimension that the graph fixes, else None."""
    if value.shape is None or axis >= len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def check_tokenizer(model: Path, tokenizer: Path) -> None:
    """Refuse a tokenizer whose tokens are not those of the one beside the model.

    Tokens added later, such as a chat's, may differ.

    Raises:
        UserError: they are another model's, or one of the files cannot be read.
    """
    given, own = tokenizer_file(tokenizer), model.parent / "tokenizer.json"
    if not own.is_file() or given.read_bytes() == own.read_bytes():
        return
    ours, theirs = base_vocabulary(given), base_vocabulary(own)
    if ours != theirs:
        differing = len(ours.items() ^ theirs.items())
        raise UserError(
            f"{given}: its {len(ours)} tokens are not the {len(theirs)} of {own}, beside {model}"
            f" ({differing} differ)",
            _REQUIRED,
            f"--tokenizer {own}",
        )


def check_vocabulary(model: Path, known: int | None, texts: Sequence[EncodedText], tokenizer: Path) -> None:
    """Refuse ids that a model does not know.

    Args:
        model: the model file, for the message.
        known: tokens it knows; None where that is not said, and nothing is checked.
        texts: what it is to read.
        tokenizer: what made the ids.

    Raises:
        UserError: a text holds one.
    """
    for text in texts:
        if known is not None and text.largest_id >= known:
            raise UserError(
                f"{tokenizer}: it encodes {text.text} with ids up to {text.largest_id}, and"
                f" {model} knows {known} tokens: it is another model's tokenizer",
                _REQUIRED,
            )
