"""Follows a transformers model with torch.export, and names what the graph takes and gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zq2onnx.models.cache import POSITIONS, run_cached, takes_positions
from zq2onnx.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

WRAPPED = "captured"
"""Attribute of the traced module that holds the model; it begins every name in the graph."""
TEXT = ("input_ids", "attention_mask")
_BATCH, _SEQUENCE, _PAST, _TOTAL = "batch", "sequence", "past", "past + sequence"


def trace_plain(loaded: Checkpoint) -> ir.Model:
    """A graph of `TEXT`, `[batch, sequence]`, that computes all of the text at every run."""
    import torch

    class Wrapper(torch.nn.Module):
        """Fixes the order of the inputs, and leaves one output."""

        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, loaded.model)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            outputs = getattr(self, WRAPPED)(input_ids=input_ids, attention_mask=attention_mask)
            return outputs[loaded.output]

    # Sizes that differ from each other and from 0 and 1, which torch.export would take as fixed.
    example = torch.zeros(2, 5, dtype=torch.int64)
    axes = {0: torch.export.Dim(_BATCH), 1: _length(_SEQUENCE, loaded)}
    return _export(Wrapper(), (example, torch.ones_like(example)), TEXT, [loaded.output], (axes, axes))


def trace_cached(loaded: Checkpoint) -> ir.Model:
    """A graph of new tokens and the keys and values of those before them.

    Inputs are `TEXT`, `position_ids` where the model does not count positions from the mask itself, and
    `past_key_values.N.key|value`; outputs the logits and `present.N.key|value`.
    """
    import torch

    names = (*TEXT, POSITIONS) if takes_positions(loaded.model) else TEXT

    class Wrapper(torch.nn.Module):
        """Takes and gives the cache as plain tensors."""

        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, loaded.model)

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            text = dict(zip(names, tensors, strict=False))
            return run_cached(getattr(self, WRAPPED), text, tensors[len(names) :])

    past = _example_past(loaded)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    positions = torch.arange(3, 8).expand(2, 5)
    text = (ids, torch.ones(2, 8, dtype=torch.int64), positions)[: len(names)]
    batch, length = torch.export.Dim(_BATCH), _length(_PAST, loaded)
    tokens = {0: batch, 1: _length(_SEQUENCE, loaded)}
    axes = [tokens, {0: batch, 1: torch.export.Dim.DYNAMIC}, tokens][: len(names)]
    axes += [{0: batch, 2: length}] * len(past)
    parts = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
    model = _export(
        Wrapper(),
        (*text, *past),
        [*names, *(f"past_key_values.{part}" for part in parts)],
        [loaded.output, *(f"present.{part}" for part in parts)],
        (tuple(axes),),
    )
    _name_total(model)
    return model


def _length(name: str, loaded: Checkpoint) -> Any:
    """A free dimension; of models with a longest text, which some hold in a table, no longer than that."""
    import torch

    config: Any = loaded.model.config
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return torch.export.Dim(name, max=longest if isinstance(longest, int) and longest > 8 else None)


def _example_past(loaded: Checkpoint) -> list[torch.Tensor]:
    """Keys and values of three tokens: how many there are, and of what shapes, the model itself says."""
    import torch

    ids = torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad():
        _, *past = run_cached(loaded.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ())
    return past


def _export(
    wrapper: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Any,
) -> ir.Model:
    import torch

    program = torch.onnx.export(
        wrapper.eval(),
        example,
        dynamo=True,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None
    model: ir.Model = program.model
    return model


def _name_total(model: ir.Model) -> None:
    """Call the mask's length what it is. torch.export proves it equal to a sum, and calls it by a number."""
    import onnx_ir as ir

    mask = next(value for value in model.graph.inputs if value.name == TEXT[1])
    assert mask.shape is not None
    number = re.compile(rf"\b{re.escape(str(mask.shape[1]))}\b")
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            text = str(dim)
            if text == f"{_SEQUENCE} + {_PAST}" or number.fullmatch(text):
                value.shape[axis] = ir.SymbolicDim(_TOTAL)
            elif number.search(text):
                value.shape[axis] = ir.SymbolicDim(number.sub(f"({_TOTAL})", text))
